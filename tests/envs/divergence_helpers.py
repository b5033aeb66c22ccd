"""A failed world among others."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

BAD = 1  # the world that fails
OTHERS = [0, 2]


def assert_failed(transition: TensorDictBase, world: int = BAD) -> None:
    """Assert that a world was truncated with reward 0 and an unchanged observation."""
    row = transition[world]
    assert row["next", "truncated"].item()
    assert row["next", "done"].item()
    assert not row["next", "terminated"].item()
    assert row["next", "reward"].item() == 0
    assert torch.equal(row["next", "observation"], row["observation"])
