"""Runs with discrete actions: from the command line to files, with exact resume; eager, traced and compiled."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import WIDE, round_results
from pipeline_helpers import differing, make_agent, make_learner, small_config, train_here
from run_helpers import continue_run, train_run
from torch import fx

from pipeline.export import export_policy
from pipeline.learner import Learner
from pipeline.policy import load_policy
from pipeline.run import Run
from pipeline.stored_run import open_run
from saltus.device.synchronizations import SYNCHRONIZING

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore::DeprecationWarning:torch")
FORMS = [("joint", "exact"), ("factored", "exact"), ("factored", "score"), ("factored", "soft-q")]
forms = pytest.mark.parametrize(("policy", "update"), FORMS, ids=["-".join(form) for form in FORMS])
LEVELS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
SWIMMER: dict[str, Any] = {
    "task": "Swimmer-v5",
    "task_options": {"max_episode_steps": 30},
    "preset": "sac-discrete",
    "n_step": 3,
    "noise_repeat": 4,
}


def are_levels(actions: torch.Tensor) -> bool:
    return bool(torch.isin(actions, LEVELS).all())


@pytest.mark.parametrize(("policy", "update"), [FORMS[0], FORMS[3]])
def test_run_resumes_exactly_and_its_files_act_as_its_policy(tmp_path: Path, policy: str, update: str) -> None:
    config = small_config(**SWIMMER, policy=policy, discrete_update=update, max_contacts=0)
    whole = train_run(config, tmp_path / "whole")
    train_run(config, tmp_path / "run", until=200)
    resumed = Run(config, tmp_path / "run")
    resumed.load_state_dict(open_run(tmp_path / "run")[1]["state"])
    continue_run(resumed)
    assert differing(resumed.agent.state_dict(), whole.agent.state_dict()) == []
    assert differing(resumed.best, whole.best) == []
    stored = whole.buffer.sample(400)[0]["action"]
    assert are_levels(stored)
    assert len(stored.unique()) == 5

    loaded = load_policy(tmp_path / "run", "last")
    observation = torch.randn(9, 8)
    expected = whole.agent.policy(observation)
    assert torch.equal(loaded(observation), expected)
    assert are_levels(expected)
    assert torch.equal(whole.agent.policy_on_cpu()(observation), expected)
    export_policy(loaded, tmp_path / "exported")
    program = torch.export.load(tmp_path / "exported" / "policy.pt2").module()
    torch.testing.assert_close(program(observation), expected)
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "exported" / "policy.onnx")
        (action,) = session.run(None, {"observation": observation.numpy()})
        torch.testing.assert_close(torch.from_numpy(action), expected)


def test_best_policy_of_soft_q_is_the_one_that_was_evaluated(tmp_path: Path) -> None:
    """Its critics are part of the policy: the best policy keeps copies of them."""
    run = train_run(small_config(**SWIMMER, discrete_update="soft-q"), tmp_path)
    run.best["policy"]["network"] = {name: 0 * value for name, value in run.best["policy"]["network"].items()}
    before = run.agent.loss.state_dict()["qvalue_network_params.module.body.0.weight"].clone()
    assert before.abs().max() > 0, "a copy"
    run.agent.load_policy_state(run.best["policy"])
    assert torch.equal(run.agent.policy(torch.randn(3, 8)), -torch.ones(3, 2)), "all levels are equal, the first wins"


def test_preset_trains_from_the_command_line(tmp_path: Path) -> None:
    output = train_here(tmp_path / "run", "Pendulum-v1", preset="sac-discrete", total_env_steps=200)
    assert "evaluation at 200 env steps" in output
    config = open_run(tmp_path / "run")[0]
    assert load_policy(tmp_path / "run").agent.actor.levels.counts == (5,), "the levels of a continuous actuator"
    assert config.action_levels == "auto"


@forms
def test_held_noise_repeats_the_quantile_of_the_action(policy: str, update: str) -> None:
    agent = make_agent("sac-discrete", policy=policy, discrete_update=update)
    observation, noise = torch.randn(50, 5), torch.randn(50, 3)
    assert torch.equal(agent.act(observation, noise), agent.act(observation, noise))
    assert are_levels(agent.act(observation, 100 * noise)), "also of extreme noise"


@pytest.mark.parametrize(
    ("policy", "update", "choices"),
    [*((*form, (3, 3, 3)) for form in FORMS), ("factored", "score", (2, 4, 3)), ("factored", "soft-q", (2, 4, 3))],
)
def test_traced_updates_equal_eager_ones_and_do_not_synchronize(
    policy: str, update: str, choices: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def keep(traced: fx.GraphModule, *_arguments: Any, **_options: Any) -> fx.GraphModule:
        names.extend(str(node.target).removeprefix("aten.") for node in traced.graph.nodes)
        return traced

    monkeypatch.setattr(torch._inductor, "standalone_compile", keep)
    settings = {"policy": policy, "discrete_update": update, "action_choices": choices, "n_step": 3, **WIDE}
    eager, traced = (make_learner("sac-discrete", compile=flag, **settings) for flag in (False, True))
    assert differing(round_results(traced, [4, 2]), round_results(eager, [4, 2])) == []
    assert not traced.compiling
    assert [name for name in names if name.startswith(SYNCHRONIZING)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "update"),
    [FORMS[2], *(pytest.param(*form, marks=pytest.mark.learning) for form in (FORMS[0], FORMS[3]))],
)
def test_compiled_updates_agree_with_eager_ones_within_rounding(policy: str, update: str) -> None:
    settings = {"policy": policy, "discrete_update": update, "action_levels": 3, "policy_delay": 1, **WIDE}
    results = []
    for flag in (False, True):
        agent = make_agent("sac-discrete", compile=flag, **settings)
        for optimizer in agent.optimizers.values():
            optimizer.eps = 1e-5  # so that no step amplifies rounding errors
        learner = Learner(agent)
        results.append((round_results(learner, [4] * 3), learner.compiled))
    ((eager, state, random), _), ((compiled, other, same_random), ran) = results
    assert ran
    assert torch.equal(random, same_random)
    for left, right in zip(eager, compiled, strict=True):
        assert {"critic_loss", "actor_loss", "entropy"} <= left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n} {text}")
    for name, value in state["loss"].items():
        torch.testing.assert_close(other["loss"][name], value, rtol=1e-2, atol=1e-4, msg=name)
