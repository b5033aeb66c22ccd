"""Where tests run: on their share of the cores and, unless their module is marked gpu, on the CPU."""

import os
from collections.abc import Iterator

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    # Threads of one of pytest-xdist's workers would only wait for those of another. It is read when torch is imported,
    # here and in the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def without_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests see no CUDA device, nor do the processes they start, unless their module is marked gpu."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("gpu") is None:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
