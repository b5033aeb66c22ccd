from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cli_helpers import command, swinger  # noqa: F401 - fixtures


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: small networks gain nothing from more, and idle threads slow down a busy core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
