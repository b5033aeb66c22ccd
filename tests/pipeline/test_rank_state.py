"""Checkpoints of several ranks, whose files are written one after another in this process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from checkpoint_helpers import names
from pipeline_helpers import small_config

from pipeline import checkpoint, rank_state
from pipeline.ranks import ALONE, Ranks


class OneOfTwo(Ranks):
    """A rank that hears of the other only the name of their save."""

    size = 2

    def __init__(self, rank: int, save_name: str):
        self.rank, self._save_name = rank, save_name

    def gather(self, value: Any) -> list[Any]:
        return [self._save_name] * 2 if isinstance(value, str) else [value]


def save(folder: Path, value: int, save_name: str, ranks: tuple[int, ...] = (1, 0), env_steps: int = 10) -> None:
    """Save a value as the state of these ranks."""
    state = dict.fromkeys(rank_state.OWN, torch.tensor(value)) | {"env_steps": env_steps, "ranks": 2}
    for rank in ranks:
        rank_state.save(folder, small_config(), state, OneOfTwo(rank, save_name))


def load(folder: Path) -> list[int]:
    """Both ranks' values in the last checkpoint, which must be intact."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = checkpoint.load_last(folder)
        rank_state.agree(content, small_config(), ALONE)
    return [int(state["observation"]) for state in (content["state"], *content["parts"])]


def test_saving_a_step_again_leaves_its_checkpoint_valid_at_every_moment(tmp_path: Path) -> None:
    save(tmp_path, 1, "aa")
    save(tmp_path, 2, "bb", ranks=(1,))
    assert load(tmp_path) == [1, 1]
    save(tmp_path, 3, "cc")
    assert load(tmp_path) == [3, 3]


def test_parts_that_no_checkpoint_has_are_deleted(tmp_path: Path) -> None:
    save(tmp_path, 1, "aa")
    save(tmp_path, 2, "bb", ranks=(1,))
    save(tmp_path, 3, "cc")
    assert names(tmp_path) == ["000000000010.pt", "000000000010.rank1.cc.pt"]
    save(tmp_path, 4, "dd", env_steps=20)
    save(tmp_path, 5, "ee", env_steps=30)
    assert names(tmp_path) == [f"0000000000{name}.pt" for name in ("20", "20.rank1.dd", "30", "30.rank1.ee")]


def test_parts_of_earlier_versions_are_read_and_deleted(tmp_path: Path) -> None:
    save(tmp_path, 1, "aa")
    (tmp_path / "000000000010.rank1.aa.pt").rename(tmp_path / "000000000010.rank1.pt")
    assert load(tmp_path) == [1, 1]
    save(tmp_path, 2, "bb")
    assert names(tmp_path) == ["000000000010.pt", "000000000010.rank1.bb.pt"]
