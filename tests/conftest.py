"""Settings of all tests: threads, no CUDA unless a module is marked gpu, warnings given anew."""

import os
from collections import Counter
from collections.abc import Iterator

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    # Workers share the cores. Set before torch is imported, here and in processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor otherwise tries the compiler with each set of vector instructions, in every process and cache.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import pytest
from forked_saltus import Zygote

from saltus.errors import warn_once


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --learning."""
    parser.addoption("--learning", action="store_true", help="also run the tests that train or compile for long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that learn, unless asked for. Begin with the files that have the most slow tests.

    No worker is then left alone with a slow file at the end.
    """
    if not config.getoption("--learning"):
        for item in items:
            if item.get_closest_marker("learning"):
                item.add_marker(pytest.mark.skip(reason="trains or compiles for long: pytest --learning"))
    slow = Counter(
        item.path for item in items if item.get_closest_marker("slow") and not item.get_closest_marker("skip")
    )
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="module")
def without_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hide CUDA devices from tests and the processes they start, unless their module is marked gpu."""
    import torch  # late: xdist's first process runs no tests

    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("gpu") is None:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: small networks gain nothing from more, and idle threads slow down a busy core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def blank_learning_curves() -> Iterator[None]:
    """Draw no learning curves. Modules that test them override this fixture."""
    from blank_pictures import draw_blank  # late, as above

    from pipeline import plot

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "_draw", draw_blank)
        yield


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts processes of saltus in a temporary folder."""
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


@pytest.fixture(autouse=True)
def forget_warnings() -> None:
    """Let each test see the warnings that a process gives once."""
    warn_once.cache_clear()
