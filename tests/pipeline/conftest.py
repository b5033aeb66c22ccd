from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cli_helpers import command, swinger  # noqa: F401 - fixtures

from saltus.device import compiled_update


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose much where threads wait for a busy core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_warned_of_yet() -> None:
    """A compilation that fails is told once in a process: here, once in a test."""
    compiled_update.warn_once.cache_clear()
