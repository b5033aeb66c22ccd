"""Mistakes in the functions of a task, found when an environment is made or in a later step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from env_helpers import Actions, CartBall, equal
from torch import Tensor
from validation_helpers import HINGE, Hinge, refused, variant

import envs
from envs import Task


def in_place(state: Any) -> Any:
    state.qpos[:, 0] -= 1
    return state


def drifting(self: Task, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    self.qpos0[0] += 0.1
    return self.qpos0.repeat(num_envs, 1), self.qvel0.repeat(num_envs, 1)


def spoiled_action(self: Task, state: Any, action: Tensor, next_state: Any) -> Tensor:
    action.clamp_(-0.1, 0.1)
    return next_state.qpos[:, 0]


def heavier(self: Task, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
    self.model.body_mass[1] *= 2
    return {}


def frictionless(self: Task, state: Any) -> Tensor:
    self.model.geom_friction[:] = 0
    return state.qpos


def weightless(self: Task, state: Any, action: Tensor, next_state: Any) -> Tensor:
    self.model.opt.gravity[2] = 0
    return next_state.qpos[:, 0]


def lifted(self: Task, num_envs: int, generator: torch.Generator) -> Any:
    self.data0.qpos[2] += 1
    return Task.reset(self, num_envs, generator)


def smooth(self: Task, state: Any, action: Tensor, next_state: Any) -> Tensor:
    previous = getattr(self, "previous", torch.zeros_like(action))
    self.previous = action
    return (action - previous).square().sum(-1)


def smooth_by_dict(self: Task, state: Any, action: Tensor, next_state: Any) -> Tensor:
    previous = self.memory.get("action", torch.zeros_like(action))
    self.memory["action"] = action
    return (action - previous).square().sum(-1)


REFUSED: list[tuple[str, Callable[..., Any], list[str]]] = [
    # Worlds mixed: by a mean, one world for all, the last one, a neighbour, a normalisation, a sorted batch.
    ("observation", lambda self, s: s.qpos - s.qpos.mean(), ["mixes worlds", "dim=-1"]),
    ("observation", lambda self, s: s.qpos - s.qpos.mean(dim=0), ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos - s.qpos[0], ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos - s.qpos[-1:], ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos + s.qpos.roll(1, 0), ["mixes worlds"]),
    ("observation", lambda self, s: s.qpos.sort(dim=0).values, ["mixes worlds"]),
    ("reward", lambda self, s, a, n: n.qpos[:, 0] - n.qpos.max(), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: n.qpos.mean().expand(len(n)), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: (n.qpos[:, 0], {"all": n.qvel.sum().expand(len(n))}), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: (a - a.mean(0)).square().sum(-1), ["mixes worlds"]),
    ("reward", lambda self, s, a, n: s.qpos[:, 0] - s.qpos[:, 0].mean(), ["mixes worlds"]),
    # Arguments changed in place.
    ("observation", lambda self, s: in_place(s).qpos, ["changes state.qpos in place", "clone"]),
    ("reward", lambda self, s, a, n: in_place(s).qpos[:, 0], ["changes state.qpos in place"]),
    ("reward", lambda self, s, a, n: in_place(n).qpos[:, 0], ["changes state.qpos in place"]),
    ("reward", spoiled_action, ["changes its action in place"]),
    ("terminated", lambda self, s: in_place(s).qpos[:, 0] > 9, ["changes state.qpos in place"]),
    ("observation", lambda self, s: s.qpos.clamp_(-1e6, 1e6), ["changes state.qpos in place"]),  # at no initial state
    ("reward", lambda self, s, a, n: a.clamp_(-1e6, 1e6).sum(-1), ["changes its action in place"]),
    ("reset", drifting, ["changes self.qpos0", "in place"]),
    # The model, or the default state.
    ("randomize", heavier, [" changes self.model.body_mass: return the fields instead", "saltus.draw_fields"]),
    # Not finite, but not at the first state.
    ("reward", lambda self, s, a, n: n.qpos[:, 0] * math.nan, ["not finite", "one step"]),
    ("reward", lambda self, s, a, n: n.qpos[:, 0] / 0, ["not finite", "one step"]),
    ("reward", lambda self, s, a, n: n.qpos[:, 4] + 1e300, ["not finite in float32", "one step"]),
    ("reward", lambda self, s, a, n: (n.qpos[:, 0], {"x": n.qpos[:, 0] / 0}), ["term 'x'", "not finite", "one step"]),
    ("observation", lambda self, s: s.qpos + 1e300, ["not finite in float32", "initial state"]),
    ("observation", lambda self, s: torch.where(s.time[:, None] > 0, math.nan, s.qpos), ["not finite", "one step"]),
]


@pytest.mark.parametrize(("function", "body", "parts"), REFUSED)
def test_mistake_is_refused_at_construction(function: str, body: Callable[..., Any], parts: list[str]):
    task = variant(function, body)
    task.fields = (*CartBall.fields, "time")
    refused(lambda: envs.make(task, 5), f"Wrong.{function}", *parts)


@pytest.mark.parametrize(("body", "place"), [(smooth, "self.previous"), (smooth_by_dict, "an attribute of the task")])
def test_state_on_the_task_is_not_taken_for_mixed_worlds(body: Callable[..., Any], place: str):
    task = variant("reward", body)
    task.memory = {}
    refused(
        lambda: envs.make(task, 5),
        f"Wrong.reward keeps state of earlier calls, in {place}:",
        "Return it from `reset` as a tensor of the task's own, read it as state.<name>, and renew it in `advance`",
    )


@pytest.mark.parametrize(
    ("function", "body", "message"),
    [
        ("observation", frictionless, "changes self.model.geom_friction in place: set it in `mjcf`, or return fields"),
        ("reward", weightless, "changes self.model.opt.gravity in place: set it in `mjcf`"),
        ("reset", lifted, "changes self.data0.qpos in place: return initial states from `reset`"),
    ],
)
def test_functions_leave_the_model_and_the_default_state(function: str, body: Callable[..., Any], message: str):
    refused(lambda: envs.make(variant(function, body), 5), f"a function of Wrong {message}")


@pytest.mark.parametrize("name", ["", " ", "x\ny", 1, None])
def test_terms_have_names_of_columns(name: Any):
    task = variant("reward", lambda self, s, a, n: (n.qpos[:, 0], {name: n.qpos[:, 0]}))
    refused(lambda: envs.make(task, 5), "Wrong.reward", f"a term named {name!r}; expected a printable name")


@pytest.mark.parametrize("timestep", ["0", "-0.002"])
def test_time_that_stands_still_is_refused(timestep: str):
    class Still(CartBall):
        mjcf = CartBall.mjcf.replace("0.005", timestep)

    refused(lambda: envs.make(Still, 2), "Still", "timestep", "above 0")


@pytest.mark.parametrize("scale", [-1, math.nan, math.inf])
@pytest.mark.parametrize("task", ["Ant-v5", "Hopper-v5", "HalfCheetah-v5", "Humanoid-v5", "InvertedPendulum-v5"])
def test_scale_of_initial_noise_is_0_or_more(task: str, scale: float):
    refused(lambda: envs.make(task, 2, reset_noise_scale=scale), f"reset_noise_scale is {scale}", "0 or more")


@pytest.mark.parametrize("body", [lambda self, s: s.qpos[:, 0] > -9, lambda self, s: torch.ones(len(s)).bool()])
def test_episodes_of_one_step_are_refused_in_many_worlds(body: Callable[..., Any]):
    task = variant("terminated", body)
    refused(lambda: envs.make(task, 32), "Wrong.terminated", "every episode would have one step")
    with pytest.warns(UserWarning, match="terminated is true at 31 of 31 initial states"):
        envs.make(task, 31)  # which may be chance


def test_task_that_was_checked_before_is_checked_for_forms_only():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.make(variant("reward", lambda self, s, a, n: n.qpos[:, 0] - n.qpos[:, 0].mean()), 4, check_task=False)
        envs.make(variant("terminated", lambda self, s: torch.ones(len(s)).bool()), 40, check_task=False)
    scalar = variant("reward", lambda self, s, a, n: n.qpos.sum())
    refused(lambda: envs.make(scalar, 4, check_task=False), "Wrong.reward", "shape ()")


def counting(self: Task, state: Any) -> Tensor:
    self.count = getattr(self, "count", 0) + 1
    return state.qpos + self.count


WARNED: list[tuple[str, Callable[..., Any], str]] = [
    ("reset", lambda self, n, g: (self.qpos0 + torch.rand(n, 9), self.qvel0.repeat(n, 1)), "reset .*equal generators"),
    (
        "reset",
        lambda self, n, g: (self.qpos0 + torch.as_tensor(np.random.rand(n, 9)), self.qvel0.repeat(n, 1)),
        "reset .*equal generators",
    ),
    ("observation", lambda self, s: s.qpos + torch.rand_like(s.qpos), "observation .*the same state"),
    ("observation", counting, "observation .*the same state"),
    ("reward", lambda self, s, a, n: torch.rand(len(n)), "reward .*the same state"),
    ("terminated", lambda self, s: torch.rand(len(s)) > 0.5, "terminated .*the same state"),
    ("randomize", lambda self, n, g: {"body_mass": 1 + torch.rand(n, 4)}, "randomize .*equal generators"),
    ("terminated", lambda self, s: s.qpos[:, 0] > 0, r"terminated is true at \d+ of 40 initial states"),
]


@pytest.mark.parametrize(("function", "body", "message"), WARNED)
@pytest.mark.filterwarnings("ignore:Wrong")
def test_doubtful_task_is_warned_about(function: str, body: Callable[..., Any], message: str):
    with pytest.warns(UserWarning, match=rf"Wrong\.{message}"):
        envs.make(variant(function, body), 40).reset()


def grid(num_envs: int) -> Tensor:
    return torch.linspace(-1, 1, num_envs)[:, None] * torch.ones(9)


def with_seeded_goal(self: Task, num_envs: int, generator: torch.Generator) -> Any:
    qpos = self.qpos0 + 0.1 * torch.rand(num_envs, 9, generator=generator)
    return {"qpos": qpos, "goal": torch.rand(num_envs, generator=torch.Generator().manual_seed(0))}


SEEDED: list[tuple[Callable[..., Any], str]] = [
    (with_seeded_goal, "goal"),
    (
        lambda self, n, g: (torch.as_tensor(np.random.default_rng(0).normal(0, 0.1, (n, 9))), self.qvel0.repeat(n, 1)),
        "qpos",
    ),
    (
        lambda self, n, g: (0.1 * torch.randn(n, 9, generator=torch.Generator().manual_seed(0)), 0 * torch.ones(n, 8)),
        "qpos",
    ),
]


@pytest.mark.parametrize(("reset", "name"), SEEDED)
def test_random_starts_follow_the_generator(reset: Callable[..., Any], name: str):
    text = rf"Wrong\.reset draws random numbers, and returns the same {name} for another generator: they are"
    with pytest.warns(UserWarning, match=text):
        envs.make(variant("reset", reset), 4)


DETERMINISTIC: list[Callable[..., Any]] = [
    Task.reset,
    lambda self, n, g: (self.qpos0 + grid(n), self.qvel0.repeat(n, 1)),
    lambda self, n, g: (self.qpos0 + grid(n) + 0.0 * torch.rand(n, 9, generator=g), self.qvel0.repeat(n, 1)),
]


@pytest.mark.parametrize("reset", DETERMINISTIC)
def test_starts_that_are_not_random_need_no_generator(reset: Callable[..., Any]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.make(variant("reset", reset), 4)


ACCEPTED: list[tuple[str, Callable[..., Any]]] = [
    ("observation", lambda self, s: s.qpos - s.qpos.mean(dim=-1, keepdim=True)),
    ("observation", lambda self, s: torch.cat([s.qpos.sin(), s.qvel.tanh() * 1e3], -1)),
    ("observation", lambda self, s: s.qpos @ torch.ones(9, 300, dtype=s.qpos.dtype)),
    ("observation", lambda self, s: s.qpos + torch.arange(len(s))[:, None]),  # a constant of its own for each world
    ("observation", lambda self, s: s.qpos.clone().clamp_(-0.1, 0.1)),
    ("reward", lambda self, s, a, n: n.qvel.norm(dim=-1)),
    ("reward", lambda self, s, a, n: a.square().sum(-1)),
    ("terminated", lambda self, s: s.qpos[:, 0].abs() > 5),
]


@pytest.mark.parametrize(("function", "body"), ACCEPTED)
@pytest.mark.parametrize("num_envs", [1, 2, 7])
def test_sound_task_is_accepted_without_a_warning(function: str, body: Callable[..., Any], num_envs: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.make(variant(function, body), num_envs).reset()


def test_checks_do_not_change_what_follows():
    """The first draw of the environment's generator is its first initial state."""
    env = envs.make(CartBall, 4, seed=3)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(3).generate_state(1)[0]))
    qpos, qvel = env.task.reset(4, generator)
    env.reset()
    assert torch.equal(env.state.qpos, qpos)
    assert torch.equal(env.state.qvel, qvel)
    assert env.statistics()["steps"] == 0


def test_physics_that_fails_at_every_initial_state_is_refused_with_mujocos_words():
    boxes = "".join(f'<body pos="{i} 0 .09"><freejoint/><geom type="box" size=".1 .1 .1"/></body>' for i in range(8))
    xml = f"""<mujoco><size memory="12K"/><worldbody><geom type="plane" size="5 5 .1"/>{boxes}
    <body pos="0 0 9"><joint name="j"/><geom size=".1"/></body></worldbody>
    <actuator><motor joint="j" ctrlrange="-1 1"/></actuator></mujoco>"""

    class Heap(CartBall):
        mjcf = xml
        fields = ("qpos", "qvel")
        reset, observation = Task.reset, lambda self, state: state.qpos
        reward, terminated = lambda self, state, action, next_state: next_state.qpos[:, 0], Task.terminated

    refused(lambda: envs.make(Heap, 2), "Heap", "initial state", "stack overflow", "raise <size memory=.../>")


def test_physics_that_fails_in_the_first_step_is_warned_about():
    xml = HINGE.format('<motor joint="j" ctrlrange="1 2" gear="1e15"/>')
    with pytest.warns(
        UserWarning, match="physics of task Strong fails in the first step, with random controls: it div"
    ):
        envs.make(type("Strong", (Hinge,), {"mjcf": xml}), 2)


# Results that change after construction


def later(function: str) -> Callable[[Task, Callable[[Any], Any]], None]:
    """A way to replace what one of the task's functions returns."""

    def change(task: Task, spoil: Callable[[Any], Any]) -> None:
        original = getattr(task, function)
        setattr(task, function, lambda *arguments: spoil(original(*arguments)))

    return change


LATER: list[tuple[str, Callable[[Any], Any], list[str]]] = [
    ("observation", lambda value: value[:, :1], ["(3, 1)", "(3, 23)"]),
    ("observation", lambda value: value.sum(), ["()", "(3, 23)"]),
    ("observation", lambda value: value.numpy(), ["ndarray", "(3, 23)"]),
    ("reward", lambda value: value[0].mean(), ["()", "(3,)"]),
    ("reward", lambda value: value[0][:, None], ["(3, 1)", "(3,)"]),
    ("reward", lambda value: (1.0, value[1]), ["a float", "(3,)"]),
    ("reward", lambda value: None, ["a NoneType", "(3,)"]),
    ("reward", lambda value: (*value, 1), ["a tuple; expected a reward, or it and a dict of terms"]),
    ("reward", lambda value: (value[0], None), ["a tuple; expected a reward, or it and a dict of terms"]),
    ("reward", lambda value: (value[0], {name: one.mean() for name, one in value[1].items()}), ["terms", "height ()"]),
    ("reward", lambda value: (value[0], dict.fromkeys(value[1], 0.0)), ["terms", "height ()"]),
    ("terminated", lambda value: value.any(), ["()", "bool", "(3,)"]),
    ("terminated", lambda value: value.double(), ["float64", "bool"]),
]


@pytest.mark.parametrize(("function", "spoil", "parts"), LATER)
def test_result_that_changes_its_form_is_refused(function: str, spoil: Callable[[Any], Any], parts: list[str]):
    env = envs.make(CartBall, 3)
    env.reset()
    later(function)(env.task, spoil)
    refused(lambda: env.step(torch.zeros(3, 2)), f"CartBall.{function}", *parts)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda start: (start[0][:1], start[1]), ["reset (qpos) returned", "(1, 9)", "(3, 9)"]),
        (lambda start: (start[0], start[1].tolist()), ["reset (qvel) returned a list", "(3, 8)"]),
        (lambda start: (*start, {}), ["reset returned a tuple; expected (qpos, qvel), or a dict, as when the"]),
        (lambda start: None, ["reset returned a NoneType; expected (qpos, qvel), or a dict, as when the"]),
    ],
)
def test_initial_states_that_change_their_form_are_refused(spoil: Callable[[Any], Any], parts: list[str]):
    env = envs.make(CartBall, 3)
    later("reset")(env.task, spoil)
    refused(env.reset, *parts)


# Gradients


def test_learned_functions_and_actions_need_no_detach():
    class Learned(CartBall):
        weight: ClassVar[Tensor] = torch.nn.Parameter(torch.ones(9, dtype=torch.float64))

        def observation(self, state: Any) -> Tensor:
            return state.qpos * self.weight

        def reward(self, state: Any, action: Tensor, next_state: Any) -> Tensor:
            return next_state.qpos @ self.weight

    for normalized in (True, False):
        learned, plain = (envs.make(Learned, 2, normalized_actions=normalized) for _ in range(2))
        assert torch.equal(learned.reset(), plain.reset())
        action = Actions(plain)()
        with torch.enable_grad():
            transition, obs = learned.step(action.clone().requires_grad_())
        assert equal(transition, plain.step(action)[0])
        assert not any(value.requires_grad for value in [obs, *transition.values(True, True)])


@pytest.mark.parametrize(
    "action", [[[0.0, 0.0]] * 2, np.zeros((2, 2), np.float32), None], ids=["list", "array", "None"]
)
def test_action_of_another_type_is_refused(action: Any):
    env = envs.make(CartBall, 2)
    env.reset()
    refused(
        lambda: env.step(action), f"the action is a {type(action).__name__}", "torch.float32 tensor of shape (2, 2)"
    )
