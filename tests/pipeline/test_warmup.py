"""`saltus warmup`: what it compiles, the training finds in the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from cli_helpers import Command
from pipeline_helpers import small_arguments, small_config

from envs import simulation
from pipeline import warmup
from pipeline.warmup import Compiled, plan
from saltus import SaltusError
from saltus.device import warm_start

TASK = "InvertedPendulum-v5"
WARMUP = """
import sys
from pipeline.train_options import parse_options
from pipeline.warmup import plan

print(*(job() for job in plan(parse_options(sys.argv[1:], "warmup").config)))
"""
TRAIN = """
import json, sys
from torch._dynamo.utils import counters
from pipeline import cli

sys.argv = ["saltus", "train", *sys.argv[1:]]
cli.main()
print(json.dumps(counters["inductor"]))
"""


@pytest.mark.slow
def test_training_finds_all_code_in_the_cache(tmp_path: Path) -> None:
    arguments = [TASK, *small_arguments("sac", compile=True, total_env_steps=80, eval_every=80, eval_episodes=1)]
    assert run_code(WARMUP, tmp_path, *arguments).startswith("the update: compiled in ")
    compiled = code(tmp_path)
    assert compiled
    counters = json.loads(run_code(TRAIN, tmp_path, *arguments, "--run-dir", str(tmp_path / "run")).splitlines()[-1])
    assert counters["fxgraph_cache_hit"] == 1
    assert "fxgraph_cache_miss" not in counters
    assert code(tmp_path) == compiled


def run_code(code: str, folder: Path, *arguments: str) -> str:
    """Run Python code in a process of its own, with a cache of its own; return its output."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "cache").rglob("*.so"))


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"policy_delay": 1}, ["the update"]),
        ({"policy_delay": 3}, ["the critics' update", "the actor's update"]),
        ({"compile": False}, []),
        ({"policy_delay": 1, "physics": "warp"}, ["the update", "Warp's kernels"]),
        ({"compile": False, "physics": "warp"}, ["Warp's kernels"]),
    ],
)
def test_each_update_and_warps_kernels_compile_if_the_training_runs_them(
    overrides: dict[str, Any], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "compile_update", lambda config, number, name: Compiled(name, 1.0, True, ""))
    monkeypatch.setattr(warmup, "compile_kernels", lambda config: Compiled("Warp's kernels", 1.0, True, ""))
    assert [job().name for job in plan(small_config(TASK, **{"compile": True, **overrides}))] == names


def test_an_environment_of_another_library_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(simulation, "missing_packages", lambda: [])
    many = {"num_envs": 600, "total_env_steps": 100_000, "compile": True, "policy_delay": 1}
    assert len(plan(small_config("gym:Pendulum-v1", **many))) == 1
    assert len(plan(small_config(TASK, **many))) == 2


def test_batch_has_the_form_of_the_trainings() -> None:
    config = small_config(
        TASK, "fast", n_step=3, compile=True, batch_size=512, learning_starts=600, total_env_steps=2000
    )
    learner, batch = warmup.make_learner(config)
    assert batch.batch_size == (config.batch_size,)
    assert "steps_to_next_obs" in batch
    assert len(learner.compiled_updates) == 2


def test_compiled_code_says_whether_it_is_new() -> None:
    assert str(Compiled("the update", 12.34, True, "")) == "the update: compiled in 12.3 s"
    assert str(Compiled("the update", 1, False, "")) == "the update: in the cache already, loaded in 1.0 s"


def test_nothing_to_compile_is_said(command: Command) -> None:
    outcome = command("warmup", TASK, *small_arguments(compile=False))
    assert outcome.text == "nothing to compile: --no-compile, and the CPU simulates"


def test_a_directory_is_refused(command: Command) -> None:
    outcome = command("warmup", TASK, "--run-dir", "runs/one")
    assert (outcome.code, outcome.text) == (1, "saltus: --run-dir has no effect here: warmup makes no run")


def test_updates_without_a_cache_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "cache_lasts", lambda: False)
    with pytest.raises(SaltusError, match="cannot be cached: set TORCHINDUCTOR_CACHE_DIR to a folder that can be"):
        plan(small_config(TASK, compile=True))


def test_temporary_cache_does_not_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "lasting"))
    assert warm_start.cache_lasts()
    with pytest.warns(UserWarning, match="compiled code cannot be cached"):
        folder = warm_start.temporary_cache_folder("A_VARIABLE", OSError("a reason"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
    assert not warm_start.cache_lasts()


def test_a_killed_process_is_an_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "ProcessPoolExecutor", Mock(side_effect=BrokenProcessPool))
    outcome = command("warmup", TASK, *small_arguments(compile=True))
    assert outcome.err.startswith("saltus: a process that compiled was killed (is the memory full?): free memory, or ")


def test_a_failed_compilation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    with pytest.raises(SaltusError, match=r"compilation failed.* The reason: no compiler"):
        warmup.compile_update(small_config(TASK, compile=True), 0, "the update")
