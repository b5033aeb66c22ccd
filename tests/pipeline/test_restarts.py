"""A run continues when torchrun restarts its processes. `test_ranks.py` has a restart of two ranks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cli_helpers import Command
from pipeline_helpers import small_arguments
from torch.distributed import TCPStore

from pipeline import restarts

TASK = "InvertedPendulum-v5"


@pytest.fixture
def agent_store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store and the environment that torchrun gives the single process of a job."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": 3}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return store


def test_a_restarted_job_continues_its_own_run(agent_store: TCPStore, command: Command, tmp_path: Path) -> None:
    arguments = ["train", TASK, *small_arguments("fast", total_env_steps=60, eval_episodes=1)]
    run_dir = tmp_path / "run"
    assert command(*arguments, "--run-dir", run_dir).code == 0
    again = command(*arguments, "--run-dir", run_dir)
    assert "restarted by torchrun; the run is complete" in again.text
    assert again.code == 0
    agent_store.delete_key("saltus/run")
    refused = command(*arguments, "--run-dir", run_dir)  # by another job
    assert refused.code == 1
    assert "continues the run in it; a new run needs another --run-dir" in refused.text


def test_a_job_that_ended_before_its_first_checkpoint_starts_again_in_its_directory(
    agent_store: TCPStore, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    agent_store.set("saltus/run", "runs/first")
    outcome = command("train", TASK, *small_arguments("fast", total_env_steps=60, eval_episodes=1))
    assert outcome.code == 0, outcome.text
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]


def test_restarts_need_a_store_that_outlives_the_ranks(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    outcome = command("train", TASK)
    assert outcome.code == 1
    assert "torchrun's --max-restarts needs a store that outlives the ranks" in outcome.text


def test_ranks_of_a_start_meet_in_spite_of_keys_of_earlier_ones(agent_store: TCPStore) -> None:
    for number in ("first", "second"):
        stores: dict[int, Any] = {}
        threads = [Thread(target=_meet, args=(agent_store, rank, stores)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not stores[0].check([number])
        stores[0].set("key", number)
        assert [stores[rank].get("key").decode() for rank in range(3)] == [number] * 3


def _meet(store: TCPStore, rank: int, stores: dict[int, Any]) -> None:
    own = TCPStore("127.0.0.1", store.port, is_master=False)
    stores[rank], absent = restarts.meet(own, rank, 3, timedelta(seconds=30))
    assert absent == []


def test_ranks_that_do_not_come_are_named(agent_store: TCPStore) -> None:
    short = timedelta(seconds=0.1)
    assert restarts.meet(agent_store, 1, 3, short)[1] == [0]
    assert restarts.meet(agent_store, 0, 3, short)[1] == [1, 2]
