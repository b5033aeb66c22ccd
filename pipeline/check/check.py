"""The whole check of a task."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mujoco
import torch

import envs
from envs import BatchEnv, Task
from envs.entry_names import observation_entries
from envs.function_errors import line_of
from envs.object_names import control_label
from envs.task_options import decode_options, encode_options, is_same
from pipeline.check.findings import Finding, Findings
from pipeline.check.gpu import probe_gpu
from pipeline.check.probes import probe_class, probe_functions, probe_model, probe_warp
from pipeline.check.rollout import Failure, Overflow, Range, Rollout, roll_out
from saltus.errors import SaltusError, warn_once

SCALES = 1000.0  # ratio of observations' magnitudes above which they are worth normalising
TINY = 1e-3  # of all observations: a network hardly sees them
LARGE = 1e4  # of an observation, or of a reward per step: values are then about a million, and squared errors larger
SHORT = 0.05  # of the time limit
FAILED = 0.01  # share of world-steps
STILL = 1e-4  # standard deviation, or its ratio to the mean, below which an observation hardly changes
CLAMPED = 0.5  # share of a control's steps
SLOW = 0.5  # of the bare engine's rate


@dataclass
class Check:
    """The result of `check`.

    Attributes:
        findings: in the order in which they were made.
        env: the environment, if the task could be made.
        rollout: the rollout, if it came to its end.
        names, privileged_names: of the entries of the observation's groups "policy" and "critic"; empty where an entry
            is computed.
    """

    findings: list[Finding] = field(default_factory=list)
    env: BatchEnv | None = None
    rollout: Rollout | None = None
    names: list[str] = field(default_factory=list)
    privileged_names: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether there is an error."""
        return any(finding.severity == "error" for finding in self.findings)


@torch.no_grad()
def check(task: type[Task], options: dict[str, Any], num_envs: int, steps: int, seed: int) -> Check:
    """Make worlds of a task, try its functions, and roll out random actions.

    Warnings that the environment gives when it is made are findings as well.

    Args:
        task: the class.
        options: its options, by name.
        num_envs: number of worlds.
        steps: control steps of the rollout.
        seed: of initial states and actions.
    """
    result = Check()
    try:
        result.findings += _check_options(task, options)
        result.env = env = _make(task, options, num_envs, seed, result.findings)
        env.reset()
        result.findings += probe_class(task)
        result.findings += probe_model(env)
        result.findings += probe_functions(env)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # failures are counted below
            result.rollout = rollout = roll_out(env, steps, seed)
            result.names, result.privileged_names = (
                [entry["name"] if entry else "" for entry in observation_entries(env, group)]
                for group in ("policy", "critic")
            )
    except SaltusError as error:
        result.findings.append(Finding("error", str(error)))
        return result
    except Exception as error:  # a mistake in the task's functions
        result.findings.append(Finding("error", f"{type(error).__name__} in {line_of(task, error)}: {error}"))
        return result
    result.findings += _failures(env, rollout)
    result.findings += _observations(rollout, result.names, result.privileged_names)
    for describe in (_controls, _rewards, _episodes, _rate):
        result.findings += describe(env, rollout)
    result.findings += probe_gpu(env, task(**options))
    result.findings += probe_warp(env.task, num_envs)
    return result


def _make(task: type[Task], options: dict[str, Any], num_envs: int, seed: int, findings: list[Finding]) -> BatchEnv:
    """Make the environment; its warnings become findings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        warn_once.cache_clear()
        try:
            return envs.make(task, num_envs, seed=seed, physics="cpu", **options)
        finally:
            findings += [Finding("warning", str(one.message)) for one in caught if one.category is UserWarning]


def _check_options(task: type[Task], options: dict[str, Any]) -> Findings:
    """Whether options come back from a run's config.json."""
    restored = decode_options(task, encode_options(task, options))
    for name, value in options.items():
        if not is_same(restored[name], value):
            yield Finding("error", f"option {name} is {value!r}, and {restored[name]!r} after a run is resumed")


def _failures(env: BatchEnv, rollout: Rollout) -> Findings:
    failure, totals = rollout.first_failure, rollout.totals
    count = totals["unstable"] + totals["nonfinite"]
    if failure is None and count:
        yield Finding(
            "error",
            f"{count:,.0f} initial states failed and were replaced by the default one: check `reset`",
        )
    if failure is not None:
        share = count / totals["steps"]
        if failure.unstable:
            where, reason = _diverging_part(env, failure), f"physics failed: {env.physics.failure_advice}"
        else:
            where, reason = "", "control, observation or reward was not finite"
        yield Finding(
            "error" if share > FAILED else "warning",
            f"{count:,.0f} of {totals['steps']:,.0f} world-steps failed ({share:.2%}), the first in world "
            f"{failure.world} at step {failure.step}{where}, where {reason}",
        )
    if rollout.first_overflow is not None:
        yield Finding(
            "warning",
            f"contacts or constraints were dropped in {totals['overflowed']:,.0f} world-steps, the first "
            f"{_place_of_overflow(env, rollout.first_overflow)}: {env.physics.overflow_advice}",
        )


def _place_of_overflow(env: BatchEnv, overflow: Overflow) -> str:
    """The world and the step of an overflow, by repeating the step."""
    env.physics.set_state(overflow.before)
    env.physics.step(None, env.task.frame_skip, overflow.inputs)
    worlds = env.physics.overflowed().nonzero().flatten().tolist()
    return (
        f"in world {worlds[0]} at step {overflow.step}" if worlds else f"in an initial state after step {overflow.step}"
    )


def _diverging_part(env: BatchEnv, failure: Failure) -> str:
    """The body or joint at which MuJoCo found the state of a failure diverged, by repeating the step."""
    env.physics.set_state(failure.before)
    data, model = env.physics.mj_data(failure.world), env.physics.world_model(failure.world)
    for name, values in failure.inputs.items():
        getattr(data, name)[...] = values.numpy()
    for _ in range(env.task.frame_skip):
        try:
            mujoco.mj_step(model, data)
        except mujoco.FatalError:
            return ""
        for kind in (mujoco.mjtWarning.mjWARN_BADQACC, mujoco.mjtWarning.mjWARN_BADQVEL):
            if data.warning[kind].number:
                body = model.body(int(model.dof_bodyid[data.warning[kind].lastinfo]))
                return f", at body {body.name or f'#{body.id}'}"
        if data.warning[mujoco.mjtWarning.mjWARN_BADQPOS].number:
            return f", at qpos[{data.warning[mujoco.mjtWarning.mjWARN_BADQPOS].lastinfo}]"
    return ""


def _observations(rollout: Rollout, names: list[str], privileged_names: list[str]) -> Findings:
    if not rollout.observations.known:
        return
    yield from _ranges_of(rollout.observations, rollout.sound_observations, "observation", names)
    if rollout.privileged is not None and rollout.sound_privileged is not None:
        yield from _ranges_of(rollout.privileged, rollout.sound_privileged, "privileged observation", privileged_names)
    if not rollout.start_spread.any():
        yield Finding("note", "every episode begins with the same observation: `reset` draws no random state")


def _ranges_of(ranges: Range, sound: Range, entry: str, names: list[str]) -> Findings:
    """Findings about observations, each called `entry`. `sound` are the ranges in worlds that never failed."""
    labels = [f"{index} {name}".strip() for index, name in enumerate(names)]
    constant = ranges.high == ranges.low
    if constant.any():
        numbers = constant.nonzero().flatten().tolist()
        yield Finding(
            "warning" if constant.all() else "note",
            f"{entry}s that never change: {_listed(numbers)} of {len(constant)}",
        )
    if not sound.known:
        return
    largest = torch.maximum(sound.low.abs(), sound.high.abs())
    extreme = "reach" if largest.max() > LARGE else "stay below" if 0 < largest.max() < TINY else None
    if extreme and not constant.all():
        index = int(largest.argmax())
        yield Finding(
            "warning",
            f"{entry}s {extreme} {largest[index]:.3g} ({entry} {labels[index]}): use --normalize-observations, or "
            "scale them to about 1 in `observation`",
        )
        if extreme == "stay below":
            return
    still = sound.std < STILL * sound.mean.abs().clamp(min=1)
    if (still & ~constant).any():
        yield Finding(
            "note",
            f"{entry}s that hardly change (standard deviation below {STILL:g}, or below {STILL:g} of the mean): "
            f"{_listed([labels[index] for index in (still & ~constant).nonzero().flatten().tolist()])}",
        )
    changing = (~still).nonzero().flatten()
    if not len(changing):
        return
    low, high = (int(changing[pick(sound.std[changing])]) for pick in (torch.argmin, torch.argmax))
    ratio = float(sound.std[high] / sound.std[low])
    if ratio > SCALES:
        ends = (f"{sound.std[one]:.2g} ({entry} {labels[one]})" for one in (low, high))
        yield Finding(
            "warning",
            f"the standard deviations of {entry}s differ by a factor of {ratio:,.0f}, from {' to '.join(ends)}: "
            "--normalize-observations often helps, or scale them in `observation`",
        )


def _controls(env: BatchEnv, rollout: Rollout) -> Findings:
    clamped = (rollout.clamped > CLAMPED).nonzero().flatten().tolist()
    if clamped:
        names = [control_label(env.task.model, index) for index in clamped]
        yield Finding(
            "warning",
            f"MuJoCo clamps most controls to their range, so that many actions act alike: {_listed(names)} (up to "
            f"{rollout.clamped.max():.0%} of the steps). Scale what `control` returns, or set action_low and "
            "action_high",
        )


def _rewards(_env: BatchEnv, rollout: Rollout) -> Findings:
    if not rollout.rewards.known:
        return
    low, high = float(rollout.rewards.low[0]), float(rollout.rewards.high[0])
    if low == high:
        yield Finding("warning", f"the reward is always {low:g}: nothing can be learned from it")
    elif max(-low, high) > LARGE:
        yield Finding("warning", f"rewards reach {max(-low, high, key=abs):.3g} per step: scale them to about 1")
    for name, ranges in rollout.terms.items():
        if not (ranges.low.any() or ranges.high.any()):
            yield Finding("note", f"the reward's term {name} is always 0 with random actions")


def _episodes(env: BatchEnv, rollout: Rollout) -> Findings:
    lengths = torch.tensor(rollout.lengths, dtype=torch.float64)
    limit = env.task.max_episode_steps
    if not len(lengths):
        return
    at_once = float((lengths <= 1).double().mean())
    if at_once > 0.01 and limit > 1:
        yield Finding("error", f"{at_once:.0%} of the episodes end after one step: check `terminated` and `reset`")
    elif float(lengths.median()) < SHORT * limit:
        yield Finding(
            "note",
            f"episodes of random actions last {lengths.median():.0f} of {limit:,} steps (median): the policy first "
            "learns not to end them",
        )


def _rate(_env: BatchEnv, rollout: Rollout) -> Findings:
    if rollout.share_of_bare_rate < SLOW:
        yield Finding(
            "note",
            f"steps have about {rollout.share_of_bare_rate:.0%} of the bare engine's rate: the task's functions take "
            "the rest (`saltus profile` says how much each)",
        )


def _listed(entries: Sequence[object], most: int = 12) -> str:
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return ", ".join(map(str, entries[:most])) + more
