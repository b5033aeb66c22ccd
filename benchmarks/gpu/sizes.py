"""How much each section of the GPU kit does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Solver: TypeAlias = Literal["model", "newton"]


@dataclass(frozen=True)
class Sizes:
    """How much each section does.

    Attributes:
        worlds: numbers of worlds by task. All `updates` are measured with the first task's dimensions, and the first of
            `updates` with those of the other tasks as well.
        warmup_calls: calls of a case before it is measured; enough to capture every round of updates.
        repeats, seconds: turns of each case and their length.
        steps_per_call: control steps between synchronizations.
        spreading_steps: control steps that bring worlds to all stages of their episodes.
        updates: pairs of batch size and updates per round; all ways of updating are measured with the first.
        buffer: transitions in the replay buffer.
        compile: whether updates are compiled.
        parity: the CPU engine's solvers that Warp is compared with, by task.
        parity_worlds, parity_steps: worlds, and control steps of each.
        rollout_worlds, rollout_steps: worlds, and control steps at most.
        training: task, seconds and options of each short training run.
        cpu_worlds: numbers of worlds of the CPU engine, by task, for its scaling with cores.
        test_seconds: time limit of the tests.
    """

    worlds: dict[str, tuple[int, ...]]
    repeats: int
    seconds: float
    updates: tuple[tuple[int, int], ...]
    buffer: int
    parity: dict[str, tuple[Solver, ...]]
    parity_worlds: int
    parity_steps: int
    rollout_worlds: int
    rollout_steps: int
    training: tuple[tuple[str, float, str], ...]
    cpu_worlds: dict[str, int]
    compile: bool = True
    warmup_calls: int = 12
    steps_per_call: int = 10
    spreading_steps: int = 200
    test_seconds: float = 220.0


PARITY: dict[str, tuple[Solver, ...]] = {
    "Hopper-v5": ("model",),
    "HalfCheetah-v5": ("model",),
    "InvertedPendulum-v5": ("model",),
    "Humanoid-v5": ("model", "newton"),
}
RARELY = "--log-every 100000 --checkpoint-every 1000000000"
ON_GPU = Sizes(
    worlds={"Hopper-v5": (4096, 16384), "Humanoid-v5": (4096, 8192)},
    repeats=3,
    seconds=0.7,
    updates=((256, 20), (8192, 20)),
    buffer=100_000,
    parity=PARITY,
    parity_worlds=256,
    parity_steps=50,
    rollout_worlds=1024,
    rollout_steps=1000,
    training=(
        ("Hopper-v5", 60, f"{RARELY} --eval-every 100000"),
        ("Humanoid-v5", 110, f"{RARELY} --eval-every 200000 --num-envs 512 --total-env-steps 4000000"),
    ),
    cpu_worlds={"Hopper-v5": 128, "Humanoid-v5": 128},
    test_seconds=110.0,
)
SHORT = "--physics warp --num-envs 8 --utd-ratio 0.125 --total-env-steps 1200 --learning-starts 400 --eval-every 600"
REDUCED = Sizes(
    worlds={"Hopper-v5": (4, 8), "Humanoid-v5": (4,)},
    repeats=2,
    seconds=0.2,
    updates=((64, 2),),
    buffer=2_000,
    parity=PARITY,
    parity_worlds=32,
    parity_steps=25,
    rollout_worlds=32,
    rollout_steps=1000,
    training=(("Hopper-v5", 60, f"{SHORT} --eval-episodes 2 --no-compile"),),
    cpu_worlds={"Hopper-v5": 16},
)
