"""SAC updates per second: saltus with several presets, compiled and eager, and other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict

import envs
from benchmarks import checkout, peers, rates, result, runner
from benchmarks.baseline import against
from benchmarks.campaign import Campaign
from benchmarks.code import code_hash
from benchmarks.data import random_transitions
from benchmarks.table import Table, show
from envs.physics.cpu import available_cores
from pipeline import presets
from pipeline.agent import Agent
from pipeline.buffer import ReplayBuffer
from pipeline.dimensions import Dimensions
from pipeline.learner import Learner

SAC, PLAIN = "saltus sac", "saltus sac, not compiled"
PEERS: dict[str, Callable[..., runner.Work]] = {
    "Stable-Baselines3": peers.stable_baselines,
    "SBX": peers.sbx,
    "TorchRL": peers.torchrl,
    "LeanRL's way": peers.leanrl,
}
PRESETS = ("redq", "droq", "crossq", "xqc", "fast")
TWIN = "saltus redq, twin critics"
ROUNDED, EXACT_FAST = "saltus sac, bfloat16 products", "saltus fast, float32 products"
PRODUCTS = "sac's matrix products alone"
CASES = (SAC, PLAIN, ROUNDED, TWIN, *(f"saltus {name}" for name in PRESETS), EXACT_FAST, PRODUCTS, *PEERS)
TARGETS = {"Hopper-v5": {"Stable-Baselines3": 2.5, "SBX": 1.4}, "Humanoid-v5": {"Stable-Baselines3": 1.8, "SBX": 1.8}}
BATCH_SIZE, HIDDEN = 256, (256, 256)


def update(
    tasks: tuple[str, ...] = ("Hopper-v5",),
    updates_per_round: int = 8,
    buffer_size: int = 100_000,
    repeats: int = 10,
    seconds: float = 5.0,
    warmup_rounds: int = 10,
    device: Literal["cpu", "cuda"] = "cpu",
    cases: tuple[str, ...] = CASES,
    baseline: Path | None = None,
    output: Path | None = None,
) -> None:
    """SAC updates/s from a filled replay buffer, sampling included: batch 256, 2x256 networks, all cores.

    All presets use networks of the same widths here. Critics differ between presets, and actors of presets other than
    sac learn at every third to twentieth update only. Each other library runs in a process of its own. The rate of
    sac's matrix products alone shows the cost of the rest of an update. The result file is written after each turn. The
    same command, given again, does the turns that are missing.

    Args:
        cases: the cases to measure; the others are compared with the first.
        tasks: the tasks whose observation and action sizes to use.
        updates_per_round: updates per call.
        buffer_size: transitions in the buffer.
        repeats: turns of each case.
        seconds: length of a turn.
        warmup_rounds: calls of each case before the first turn; the first call compiles.
        device: of saltus, TorchRL and LeanRL's way; the others choose for themselves.
        baseline: another checkout of saltus, to measure the first case with, too; then both checkouts run in processes
            of their own.
        output: the file to write or to continue; by default benchmarks/results/update-cpu<cores>.jsonl.
    """
    if baseline is not None and not cases[0].startswith("saltus"):
        raise SystemExit(f"a baseline is measured with the first case, which is {cases[0]!r} and not one of saltus's")
    threads = available_cores()
    torch.set_num_threads(threads)
    settings = {
        "batch_size": BATCH_SIZE,
        "hidden": HIDDEN,
        "num_threads": threads,
        "updates_per_round": updates_per_round,
        "buffer_size": buffer_size,
        "repeats": repeats,
        "seconds": seconds,
        "warmup_rounds": warmup_rounds,
        "device": device,
        "subject": cases[0],
        "baseline": baseline and checkout.commit(baseline),
        "code": code_hash("saltus", "pipeline", "benchmarks/update.py", "benchmarks/peers.py"),
    }
    served = {
        "benchmark": "update", "case": cases[0], "buffer_size": buffer_size, "updates": updates_per_round,
        "device": device, "threads": threads,
    }  # fmt: skip
    baselines = {task: against(cases[0], baseline, served | {"task": task}) for task in tasks}
    campaign = Campaign(
        output or result.default_path("update"), "update", settings,
        rates.jobs({task: [*(dict.fromkeys(cases) | baselines[task])] for task in tasks}),
        complete=lambda row: rates.is_complete(row, repeats), every=rates.PROGRESS_EVERY,
    )  # fmt: skip
    with campaign.interruptible(lambda: rates.describe_progress(campaign, repeats, seconds)):
        for task in tasks:
            env = envs.make(task, 1)
            data = random_transitions(buffer_size, env.observation_dim, env.action_dim).to(device)
            makers: dict[str, Callable[[], runner.Work]] = {
                name: partial(_make, name, task, data, updates_per_round) for name in cases
            }
            rates.measure(campaign, task, makers | baselines[task], repeats, seconds, warmup_rounds)
    show(tables(campaign.result), campaign.path)


def tables(found: result.Result) -> list[Table]:
    """The updates/s of each task's cases."""
    settings = found.settings
    subject = settings.get("subject", SAC)
    title = f"batch {settings['batch_size']}, {settings['num_threads']} threads: updates/s"
    return [
        rates.comparison(f"sizes of {task}, {title}", rows, subject, TARGETS.get(task) if subject == SAC else None)
        for task, rows in rates.by_task(found).items()
    ]


def _make(case: str, task: str, data: TensorDict, updates: int) -> runner.Work:
    if case in PEERS:
        return runner.isolated(partial(PEERS[case], data, BATCH_SIZE, HIDDEN, updates))
    if case == PRODUCTS:
        return _products(data, updates)
    overrides: dict[str, dict[str, Any]] = {
        PLAIN: {"compile": False},
        ROUNDED: {"matmul_dtype": "bfloat16"},
        EXACT_FAST: {"matmul_dtype": "float32"},
        TWIN: {"num_critics": 2},
    }
    return learning(task, data, updates, case.split()[1].strip(","), **overrides.get(case, {}))


def learning(task: str, data: TensorDict, updates: int, preset: str, **overrides: Any) -> runner.Work:
    """Rounds of a preset's updates, with networks of the same widths in all cases."""
    learner, buffer = make_learner(task, data, preset, **overrides)

    def round() -> int:
        learner.round(buffer, updates)
        peers.synchronize(learner.agent.device)
        return updates

    return round


def make_learner(task: str, data: TensorDict, preset: str, **overrides: Any) -> tuple[Learner, ReplayBuffer]:
    """A preset's learner, on the data's device, and a buffer filled with the data."""
    sizes = {"batch_size": BATCH_SIZE, "learning_starts": 10_000, "actor_hidden": HIDDEN, "critic_hidden": HIDDEN}
    config = presets.preset(preset, task, **{**sizes, **overrides})
    dimensions = Dimensions(data["observation"].shape[1], data["action"].shape[1])
    n_step = config.rewards_per_target(dimensions.action_dim)
    buffer = ReplayBuffer(len(data), dimensions, data.device, n_step=n_step, gamma=config.initial_discount)
    rows = len(data) // 10
    for vector_step in data[: 10 * rows].split(rows):
        buffer.extend(vector_step)
    return Learner(Agent(config, dimensions, data.device)), buffer


def product_shapes(observation_dim: int, action_dim: int) -> list[tuple[int, int, int]]:
    """Rows, summed dimension and columns of each matrix product in an update of sac."""
    actor = list(pairwise([observation_dim, *HIDDEN, 2 * action_dim]))
    critics = [*pairwise([observation_dim + action_dim, *HIDDEN, 1])] * 2
    inner = [layer for layer in critics if layer[0] in HIDDEN]
    # Critic loss: actor and target critics forward, critics forward and backward. Actor loss: actor and critics
    # forward, critics backward to the action, actor backward. Gradients with respect to observations are not needed.
    forward = [*actor, *actor, *critics, *critics, *critics]
    to_action = [(action_dim, HIDDEN[0])] * 2
    weights, inputs = [*actor, *critics], [*actor[1:], *inner, *inner, *to_action]
    shapes = [(BATCH_SIZE, fan_in, fan_out) for fan_in, fan_out in forward]
    shapes += [(fan_out, BATCH_SIZE, fan_in) for fan_in, fan_out in weights]
    return shapes + [(BATCH_SIZE, fan_out, fan_in) for fan_in, fan_out in inputs]


def _products(data: TensorDict, updates: int) -> runner.Work:
    """The matrix products of sac's updates alone, one after another; on the CPU by oneDNN."""
    device, shapes = data.device, product_shapes(data["observation"].shape[1], data["action"].shape[1])
    factors = [(torch.randn(m, k, device=device), torch.randn(n, k, device=device)) for m, k, n in shapes]
    multiply = torch.nn.functional.linear
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        multiply = partial(torch.ops.mkldnn._linear_pointwise.default, B=None, attr="none", scalars=[], algorithm="")

    def work() -> int:
        for _ in range(updates):
            for left, right in factors:
                multiply(left, right)
        peers.synchronize(device)
        return updates

    return work
