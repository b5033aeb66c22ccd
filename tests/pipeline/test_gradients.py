"""saltus gradients: bias and variance of the estimators of the actor's gradient, measured on a run."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import Command
from PIL import Image
from pipeline_helpers import OBSERVATION_DIM, make_agent, small_config, train_here
from run_helpers import quiet_console
from tensordict import TensorDict

from pipeline import files
from pipeline.gradients import compare as compare_module
from pipeline.gradients.compare import Estimator, compare
from pipeline.gradients.report import conclusion, draw, table
from pipeline.logger import Logger
from pipeline.run import Run
from pipeline.run_dir import create
from pipeline.torchrl_adapter import critic_parameters
from saltus import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
FEW = ("--states", 8, "--estimates", 3, "--reference", 4)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    train_here(path, total_env_steps=200, eval_every=10**9, preset="sac", normalize_observations=True)
    return path


def test_the_command_prints_a_table_and_writes_a_picture(command: Command, run_dir: Path) -> None:
    outcome = command("gradients", run_dir, *FEW)
    assert outcome.code == 0, outcome.err
    assert "InvertedPendulum-v5 after 200 env steps, 39 updates; alpha" in outcome.text
    for name in ("reparameterised", "implicit", "score with baseline", "score", "deterministic (DDPG)"):
        assert name in outcome.out
    path = run_dir / "gradients.png"
    assert outcome.out.splitlines()[-1] == str(path)
    assert Image.open(path).format == "PNG"


def test_the_seed_decides_the_numbers_and_output_the_file(command: Command, run_dir: Path, tmp_path: Path) -> None:
    first, again, other = (
        command("gradients", run_dir, *FEW, "--seed", seed, "--output", tmp_path / "mine.png").out for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert (tmp_path / "mine.png").exists()


def test_a_run_without_a_checkpoint_is_refused(command: Command, run_dir: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run_dir, tmp_path / "copy")
    shutil.rmtree(copied / "checkpoints")
    outcome = command("gradients", copied, *FEW)
    assert outcome.code == 1
    assert outcome.err == f"saltus: {copied} has no checkpoint: start the run again\n"


def test_an_empty_replay_buffer_is_refused(command: Command, tmp_path: Path) -> None:
    config = small_config(preset="sac")
    run = Run(config, tmp_path / "run")
    create(config, run.run_dir, run.env.task.model)
    with Logger(run.run_dir, config, 0, quiet_console()) as logger:
        run.save(logger)
    outcome = command("gradients", run.run_dir, *FEW)
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert re.search(r"the replay buffer of .*000\.pt is empty, and the estimators are compared", outcome.err)
    assert f"`saltus resume {run.run_dir}` fills it" in outcome.err


def test_the_result_is_printed_where_the_picture_cannot_be_written(
    command: Command, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    outcome = command("gradients", run_dir, *FEW)
    assert "reparameterised" in outcome.out
    assert f"could not write {run_dir}/gradients.png: No space left on device. The result is printed" in outcome.err


def states(count: int) -> TensorDict:
    return TensorDict({"observation": torch.randn(count, OBSERVATION_DIM)}, batch_size=[count])


def test_unbiased_estimators_pass_and_the_deterministic_one_is_found_biased() -> None:
    agent = make_agent("sac", alpha_init=0.5)
    with torch.no_grad():
        for parameter in critic_parameters(agent.loss).values():
            parameter.mul_(3)
    reported: list[int] = []
    found = compare(agent, states(16), 60, 300, 0, reported.append)
    assert [one.name for one in found if one.biased] == ["deterministic (DDPG)"]
    spread = {one.name: one.std for one in found}
    assert spread["reparameterised"] < spread["score"]
    assert spread["deterministic (DDPG)"] < 1e-3
    assert reported == sorted(reported)
    assert reported[-1] == 300 + len(compare_module.ESTIMATORS) * 60


def test_the_baseline_takes_the_offset_of_each_states_values() -> None:
    """Values far from zero make the plain score function noisy, and a baseline of the wrong sign doubles that."""
    agent = make_agent("sac")
    with torch.no_grad():
        for name, parameter in critic_parameters(agent.loss).items():
            if name.endswith("bias"):
                parameter.add_(5.0)
    spread = {one.name: one.std for one in compare(agent, states(8), 20, 20, 0)}
    assert spread["score with baseline"] < 0.5 * spread["score"]


@pytest.mark.parametrize(("factor", "name"), [(-1.0, "a wrong sign"), (0.5, "a wrong factor")])
def test_a_wrong_estimator_is_found_biased(factor: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = compare_module.estimators.implicit
    monkeypatch.setattr(compare_module.estimators, "implicit", lambda *arguments: factor * right(*arguments))
    found = compare(make_agent("sac", alpha_init=0.01), states(64), 40, 200, 0)
    implicit = next(one for one in found if one.name == "implicit")
    assert implicit.biased, name
    assert implicit.bias == pytest.approx(abs(1 - factor), rel=0.2)


def test_critics_that_ignore_the_action_are_refused() -> None:
    agent = make_agent("sac", alpha_init=1e-30)
    with torch.no_grad():
        for parameter in critic_parameters(agent.loss).values():
            parameter.zero_()
        agent.loss.log_alpha.fill_(-math.inf)
    with pytest.raises(SaltusError, match=r"the actor's gradient is 0\.0 on this batch: the critics do not depend"):
        compare(agent, states(4), 2, 2, 0)


def test_the_error_of_a_mean_falls_to_the_bias() -> None:
    unbiased = Estimator("one", 0.1, 0.2, 0.25, 2.0, [0.1])
    biased = Estimator("two", 5.0, 3.0, 4.0, 1.0, [0.1])
    assert not unbiased.biased
    assert unbiased.error(4) == pytest.approx(1.0)
    assert biased.bias == pytest.approx(4.0)
    assert biased.error(10**12) == pytest.approx(4.0)
    assert conclusion([unbiased, biased]) == [
        "lowest variance, no bias found: one",
        "biased: two, by 4 times the gradient's norm, which more actions do not reduce",
    ]
    assert conclusion([biased])[0].startswith("biased: two")
    unseen = Estimator("one", 0.3, 0.5, 1.0, 2.0, [0.1])
    assert conclusion([unseen]) == ["too few estimates to see a bias: raise --estimates and --reference"]
    assert draw([unbiased, biased], "title").startswith(b"\x89PNG")
    assert table([unbiased, biased], 7).row_count == 2
