"""Two ranks compute what one would: gradients, statistics, runs. `rank_scenarios.py` has the processes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_scenarios
import torch
from cli_helpers import Command
from pipeline_helpers import (
    DIMENSIONS,
    OBSERVATION_DIM,
    differing,
    random_transition,
    read_csv,
    small_config,
)
from rank_helpers import states
from torch.distributed import DistBackendError

from pipeline import checkpoint, launch, rank_state, torchrun
from pipeline.buffer import ReplayBuffer
from pipeline.config import Config
from pipeline.launch import is_of_collective, require_divisible, require_equal_start
from pipeline.policy import load_policy
from pipeline.rank_report import RankReport, add_statistics
from pipeline.ranks import ALONE, Ranks
from pipeline.run import Run
from saltus.errors import SaltusError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all scenarios."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(str(root / part) for part in (".", "tests", "tests/pipeline"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    command = [sys.executable, rank_scenarios.__file__, str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def results(folder: Path, name: str) -> list[Any]:
    """The results of both ranks."""
    codes = torch.load(folder / "codes.pt")[name]
    assert codes == [0, 0], [output(folder, name, rank) for rank in (0, 1)]
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)]


def output(folder: Path, name: str, rank: int) -> str:
    return " ".join((folder / f"{name}-{rank}.txt").read_text().split())


@pytest.mark.parametrize("name", rank_scenarios.GRADIENTS)
def test_two_halves_of_a_batch_have_the_gradients_and_batch_statistics_of_the_whole(folder: Path, name: str) -> None:
    for rank in results(folder, "gradients"):
        assert {part: value for part, value in rank[name].items() if value > 1e-13} == {}


def test_merged_statistics_equal_those_of_one_rank(folder: Path) -> None:
    first, second = results(folder, "statistics")
    assert differing(first["shared"], second["shared"]) == []
    for part, expected in first["alone"].items():
        for name, value in expected.items():
            torch.testing.assert_close(first["shared"][part][name], value, rtol=1e-12, atol=0)


def test_parameters_stay_equal_and_a_difference_is_refused_by_name(folder: Path) -> None:
    first, second = results(folder, "updates")
    assert differing(first["states"], second["states"]) == []
    for refusal in (first["refusal"], second["refusal"]):
        assert refusal.startswith("rank 1 no longer has the same optimizers.critic as rank 0, and would train")


def test_exchanges_are_part_of_the_recorded_update(folder: Path) -> None:
    (eager, recorded), other = (rank["results"] for rank in results(folder, "traced"))
    assert differing(eager, recorded) == []
    assert differing(recorded, other[1]) == []
    assert results(folder, "traced")[0]["sums"] >= 3  # critics, actor, temperature


def test_messages_reach_all_ranks(folder: Path) -> None:
    for rank in results(folder, "messages"):
        assert rank["any"] == [True, False]
        assert rank["from_rank_0"] == 0.1
        assert rank["gather"] == ["0", "1"]
        assert rank["rows"].tolist() == [[0, 1], [2, 3], [10, 11], [12, 13]]
        assert rank["own"]
        assert rank["maximum"] == 1
        assert rank["share"] == 3


def test_a_single_rank_exchanges_nothing() -> None:
    tensor = torch.rand(3)
    assert ALONE.mean([tensor])[0] is tensor
    assert ALONE.merge(tensor, tensor) == (tensor, tensor)
    assert ALONE.maximum(tensor) is ALONE.concatenate(tensor) is tensor
    assert (ALONE.any_rank(True), ALONE.from_rank_0(0.5), ALONE.gather("a"), ALONE.share(7)) == (True, 0.5, ["a"], 7)


@pytest.mark.parametrize("name", rank_scenarios.DIVIDED_EXAMPLES)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(name: str) -> None:
    number, nearest = rank_scenarios.DIVIDED_EXAMPLES[name]
    with pytest.raises(SaltusError) as caught:
        require_divisible(small_config(**{"num_envs": 8, "batch_size": 32, name: number}), 8)
    assert str(caught.value) == (
        f"{name} is {number:,}, a number of the whole run, and 8 ranks cannot have equal shares of it: set "
        f"--{name.replace('_', '-')} {nearest}"
    )


def test_a_refusal_of_rank_0_is_one_of_all_ranks(folder: Path) -> None:
    for refusal in results(folder, "refused"):
        assert refusal.startswith("num_envs is 4, a number of the whole run, and 3 ranks")


def test_a_run_trains_equal_networks_on_different_worlds(folder: Path) -> None:
    results(folder, "trained")
    first, second = states(folder / "trained")
    assert first["ranks"] == 2
    assert first["env_steps"] == 240
    for part in (("observation",), ("buffer", "stored", "observation"), ("buffer", "generator"), ("random",)):
        one, other = first, second
        for name in part:
            one, other = one[name], other[name]
        assert one.shape == other.shape
        assert not torch.equal(one, other), part
    assert len(first["buffer"]["stored"]["observation"]) == 120


def test_rank_0_writes_rows_with_the_rate_of_each_rank(folder: Path) -> None:
    rows = read_csv(folder / "trained" / "metrics.csv")
    assert [row["env_steps"] for row in rows] == ["80", "160", "240"]
    for row in rows:
        assert min(float(row["rank_rates/0"]), float(row["rank_rates/1"])) > 0
        assert 0 <= float(row["rank_waiting"]) <= 1
    assert [row["episodes"] for row in read_csv(folder / "trained" / "evaluations.csv")] == ["3", "3"]
    assert output(folder, "trained", 1) == ""


def test_a_signal_to_one_rank_stops_all_and_resuming_equals_never_stopping(folder: Path) -> None:
    results(folder, "stopped")
    results(folder, "resumed")
    assert "stopped by another rank and saved" in output(folder, "stopped", 0)
    assert "at 132 of 240 env steps" in output(folder, "resumed", 0)
    expected, found = states(folder / "trained"), states(folder / "stopped")
    for rank in (0, 1):
        assert differing(expected[rank], found[rank]) == []


def test_a_job_whose_rank_is_killed_continues_as_if_it_was_not(folder: Path) -> None:
    text = output(folder, "killed", 0)
    assert torch.load(folder / "codes.pt")["killed"] == [0], text
    assert "saltus: rank 1 of 2 ended" in text
    (run_dir,) = (folder / "killed" / "runs").iterdir()
    assert f"restarted by torchrun; continuing from {Path('runs') / run_dir.name}" in text
    assert "000000000160.pt, at 160 of 240 env steps" in text
    expected, found = states(folder / "trained"), states(run_dir)
    for rank in (0, 1):
        assert differing(expected[rank], found[rank]) == []
    assert [row["env_steps"] for row in read_csv(run_dir / "metrics.csv")] == ["80", "160", "240"]


def test_old_parts_of_checkpoints_are_deleted(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "trained" / "checkpoints").iterdir())
    patterns = [rf"{steps:012d}\.{part}pt" for steps in (160, 240) for part in ("", r"rank1\.[0-9a-f]{8}\.")]
    assert len(names) == 4
    assert all(sum(bool(re.fullmatch(one, name)) for name in names) == 1 for one in patterns)


def test_all_ranks_take_the_last_checkpoint_whose_parts_are_intact(folder: Path) -> None:
    first, second = results(folder, "fallback")
    assert first["chosen"][0] == second["chosen"][0] == "000000000010.pt"
    for text in (first["warned"][0], first["chosen"][1]):
        assert re.match(r"rank 1 on \S+: checkpoint \S+\.rank1\.\w+\.pt is truncated or corrupted", text)
    assert first["warned"][0].endswith(". The one before is used instead: 000000000010.pt")
    assert first["chosen"][1].endswith(". There is no other checkpoint: start the run again")
    assert first["chosen"][1] == second["chosen"][1]
    assert second["warned"] == []


@pytest.mark.parametrize(("replace", "reason"), [(False, "is missing"), (True, "belongs to another save")])
def test_a_checkpoint_without_its_own_parts_counts_as_damaged(
    folder: Path, tmp_path: Path, replace: bool, reason: str
) -> None:
    checkpoints = Path(shutil.copytree(folder / "trained" / "checkpoints", tmp_path / "checkpoints"))
    (last,) = checkpoints.glob("000000000240.rank1.*")
    last.unlink()
    if replace:
        shutil.copy(*checkpoints.glob("000000000160.rank1.*"), last)
    content = checkpoint.load_last(checkpoints)
    with pytest.warns(UserWarning, match=f"{reason}. The one before is used instead: 000000000160.pt"):
        rank_state.agree(content, Config.from_dict(content["config"]), ALONE)
    assert content["state"]["env_steps"] == 160
    assert rank_state.load_state(content, ALONE)["buffer"]["num_envs"] == 4


def test_totals_of_ranks_with_other_reward_terms_are_joined() -> None:
    reports = [
        RankReport({}, statistics, 1.0, 0.0) for statistics in ({"steps": 1.0, "a": 2.0}, {"steps": 3.0, "b": 4.0})
    ]
    assert add_statistics(reports) == {"steps": 4.0, "a": 2.0, "b": 4.0}


def test_ranks_that_differ_at_the_start_are_refused_with_what_helps() -> None:
    start = {"seed": "0", "torch threads": "1"}
    require_equal_start([start, start])
    with pytest.raises(SaltusError, match=r"seed: missing instead of 0, dropout: 0.1 instead of missing\): start all"):
        require_equal_start([start, {"dropout": "0.1", "torch threads": "1"}])
    advice = r"\(torch threads: 2 instead of 1\): set OMP_NUM_THREADS, and use machines of one kind"
    with pytest.raises(SaltusError, match=advice):
        require_equal_start([start, start | {"torch threads": "2"}])


def test_a_gpus_error_that_mentions_nccl_does_not_blame_a_rank() -> None:
    assert is_of_collective(RuntimeError("[gloo] Timed out waiting"))
    assert is_of_collective(DistBackendError("NCCL error"))
    assert not is_of_collective(torch.OutOfMemoryError("CUDA out of memory; NCCL holds 1 GiB"))
    assert not is_of_collective(RuntimeError("CUDA error in ncclKernel"))


@pytest.mark.parametrize("text", ["no", "0", "-1", "nan", "1e9"])
def test_a_timeout_that_is_no_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.TIMEOUT, text)
    with pytest.raises(SaltusError, match=f"SALTUS_RANKS_TIMEOUT is '{text}'; it must be a number of seconds above 0"):
        launch.read_timeout()


def test_a_process_of_another_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert (torchrun.size(), torchrun.rank()) == (1, 0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert (torchrun.size(), torchrun.rank()) == (4, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_commands_of_one_process_refuse_torchrun_once(
    rank: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    outcome = command("evaluate", "run")
    expected = "`saltus evaluate` is one process, and torchrun started 2: start it without torchrun"
    assert outcome.code == 1
    assert (expected in outcome.text) == (rank == 0)


def test_a_policy_plays_in_a_single_process(folder: Path) -> None:
    assert load_policy(folder / "trained")(torch.zeros(1, 4)).shape == (1, 1)


def test_a_run_continues_on_another_number_of_ranks_with_its_replay(folder: Path, command: Command) -> None:
    run_dir = folder / "hanging"
    before = states(run_dir)
    outcome = command("resume", run_dir)
    assert outcome.code == 0, outcome.text
    assert (
        "the run had 2 ranks and continues on 1: worlds and replay are dealt anew, new episodes begin" in outcome.text
    )
    after = checkpoint.load_last(run_dir / "checkpoints")["state"]
    assert after["ranks"] == 1
    assert after["env_steps"] == 240
    name = "next.observation"
    halves = [part["buffer"]["stored"][name].view(20, 2, 4) for part in before]
    assert torch.equal(after["buffer"]["stored"][name][:80].view(20, 4, 4), torch.cat(halves, dim=1))
    assert after["buffer"]["stored"]["next.done"][76:80].all()
    assert not after["buffer"]["stored"]["next.done"][:76].all()


def test_worlds_dealt_anew_begin_episodes_that_the_run_has_not_had(folder: Path, tmp_path: Path) -> None:
    content = checkpoint.load_last(folder / "trained" / "checkpoints")
    config = Config.from_dict(content["config"])
    rank_state.agree(content, config, ALONE)
    run = Run(config, tmp_path)
    first = run.observation.clone()
    run.load_state_dict(rank_state.load_state(content, ALONE))
    assert (run.observation.unsqueeze(1) != first).any(-1).all()


def test_a_run_of_one_rank_continues_on_two(folder: Path) -> None:
    results(folder, "grown")
    assert "the run had 1 ranks and continues on 2: worlds and replay are dealt anew" in output(folder, "grown", 0)
    first, second = states(folder / "grown")
    assert (first["ranks"], first["env_steps"]) == (2, 240)
    stored = [part["buffer"]["stored"]["observation"] for part in (first, second)]
    assert len(stored[0]) == len(stored[1]) == 120
    assert not torch.equal(*stored)


def test_rank_0s_clock_ends_a_run_and_ranks_without_episodes_wait(folder: Path) -> None:
    results(folder, "timed")
    first, _ = states(folder / "timed")
    assert first["ended"]
    assert read_csv(folder / "timed" / "evaluations.csv")[-1]["episodes"] == "1"


def test_a_divergence_on_one_rank_ends_all_with_its_message(folder: Path) -> None:
    assert torch.load(folder / "codes.pt")["diverged"] == [1, 1]
    for rank in (0, 1):
        assert "critic_loss" in output(folder, "diverged", rank)


def test_updates_run_eagerly_on_all_ranks_if_one_cannot_compile(folder: Path) -> None:
    for rank in results(folder, "uncompiled"):
        assert rank == {"results": ["plain", "plain"], "compiled": False}


@pytest.mark.parametrize("steps", [2, 5, 9])
@pytest.mark.parametrize(("saved", "size"), [(1, 2), (2, 1), (2, 4), (4, 2), (3, 2)])
def test_dealing_keeps_the_newest_transitions_of_every_world_in_order(saved: int, size: int, steps: int) -> None:
    worlds, capacity = 12, 74  # the rings are full after 7 steps at the latest, in the middle of a step
    parts = []
    for rank in range(saved):
        own = worlds // saved
        buffer = ReplayBuffer(capacity // saved, DIMENSIONS)
        for step in range(steps):
            transition = random_transition(own)
            transition["observation"][:] = step
            transition["observation"][:, 0] = torch.arange(rank * own, (rank + 1) * own)
            buffer.extend(transition)
        parts.append(buffer.state_dict())
    kept = min(steps, capacity // saved // (worlds // saved), capacity // size // (worlds // size))
    for rank in range(size):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        own = worlds // size
        buffer = ReplayBuffer(capacity // size, DIMENSIONS, n_step=3)
        buffer.refill(**rank_state.deal(parts, worlds, ranks))
        found = buffer.state_dict()["stored"]["observation"].view(kept, own, OBSERVATION_DIM)
        assert torch.equal(found[..., 0], torch.arange(rank * own, (rank + 1) * own).float().expand(kept, own))
        assert torch.equal(found[..., 1], torch.arange(steps - kept, steps).float().unsqueeze(1).expand(kept, own))


def test_ranks_that_differ_are_refused(folder: Path) -> None:
    text = "rank 1 differs from rank 0 (seed: 1 instead of 0): start all ranks with"
    assert [text in output(folder, "different", rank) for rank in (0, 1)] == [True, False]
    assert torch.load(folder / "codes.pt")["different"] == [1, 1]


def test_a_rank_that_hangs_is_named(folder: Path) -> None:
    text = output(folder, "hanging", 0)
    assert "saltus: rank 1 of 2 ended, or took no part in a collective operation for 6 s" in text
    assert "resumes from its last checkpoint" in text


def test_all_ranks_name_the_one_whose_part_of_a_checkpoint_cannot_be_written(folder: Path) -> None:
    assert torch.load(folder / "codes.pt")["full_disk"] == [1, 1]
    checkpoints = folder / "full_disk" / "checkpoints"
    reason = (
        rf"could not write checkpoint {checkpoints / '000000000160.rank1'}\.\w+\.pt: File too large. The last good "
        f"checkpoint is {checkpoints / '000000000080.pt'}. Make room on the disk, then resume the run"
    )
    assert re.search(f"saltus: rank 1 on {socket.gethostname()}: {reason}", output(folder, "full_disk", 0))
    assert re.search(f"saltus: rank 1: {reason}", output(folder, "full_disk", 1))
    common, part = states(folder / "full_disk")  # of the checkpoint before
    assert common["env_steps"] == 80
    assert len(part["buffer"]["stored"]["observation"]) == 40
    assert not any(path.suffix == ".partial" for path in checkpoints.iterdir())


def test_a_rank_that_never_starts_is_an_error(folder: Path) -> None:
    text = output(folder, "missing", 0)
    assert "saltus: this rank found no other of 2 within 1 s" in text
