"""Under pytest-xdist the workers share the cores: threads of one would only wait for those of another."""

import os
from collections.abc import Iterator

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes tests start

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for those marked gpu, tests are of the CPU, also where there is a GPU, and in the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("gpu") is None:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
