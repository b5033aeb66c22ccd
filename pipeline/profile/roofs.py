"""Roofs: the least time that this machine needs for a phase's essential work."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from mujoco.batch import Batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from envs import transition as transitions
from envs.physics.cpu import available_cores
from envs.task_functions import defines
from pipeline.run import Run

TURN = 0.2  # seconds of each roof's turn
_COPY = 64 * 2**20  # bytes: more than caches hold
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default: 0, _aten.addmm.default: 1, _aten.bmm.default: 0, _aten.baddbmm.default: 1}

Shapes = list[tuple[tuple[int, ...], tuple[int, ...]]]


class Roofs:
    """Measures roofs in turns, between blocks of the loop, on the run's own states, sizes and threads.

    Bare physics: `mujoco.batch` (or Warp's captured control step) from the run's states with its last controls; no task
    functions, no reset. Matrix products: those of the updates alone, one after another. Memory: the bytes that sampling
    and writing move, at the bandwidth of a large copy.
    """

    def __init__(self, run: Run):
        self._run = run
        self._turns: dict[str, list[float]] = {}
        self._work: dict[str, Callable[[], float]] = {}

    def turn(self) -> None:
        """Measure each roof once."""
        self._work = self._work or self._make()
        for name, work in self._work.items():
            self._turns.setdefault(name, []).append(work())

    def seconds_per_step(self, updates: float) -> dict[str, float]:
        """Seconds of each phase's roof per vector step of so many updates."""
        config = self._run.config
        medians = {name: median(turns) for name, turns in self._turns.items()}
        env = self._run.env
        row = transitions.num_bytes(env.observation_dim, env.action_dim)
        per_byte = 2 * medians.pop("copy")  # a byte is read and written
        roofs = {"physics": medians["physics"], "buffer write": config.num_envs * row * per_byte}
        roofs["sample"] = updates * config.batch_size * row * per_byte
        for name in medians.keys() - {"physics"}:
            every = config.policy_delay if name.startswith("actor") else 1
            roofs[name] = updates / every * medians[name]
        return roofs

    def _make(self) -> dict[str, Callable[[], float]]:
        return {
            "physics": _bare_warp(self._run) if hasattr(self._run.env.physics, "advance") else _bare_batch(self._run),
            "copy": partial(_time_per_byte, self._run.device),
            **{
                name: partial(_time, _products(shapes, self._run.device), lambda: None, self._run.device)
                for name, shapes in _product_shapes(self._run).items()
            },
        }


def _time(call: Callable[[], Any], prepare: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of a call, on CUDA until the GPU is done."""
    durations: list[float] = []
    end = time.perf_counter() + TURN
    while len(durations) < 3 or time.perf_counter() < end:
        prepare()
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        durations.append(time.perf_counter() - start)
    return median(durations)


def _time_per_byte(device: torch.device) -> float:
    source = torch.ones(_COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _time(lambda: target.copy_(source), lambda: None, device) / (2 * _COPY)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bare_batch(run: Run) -> Callable[[], float]:
    """Time of a control step of `mujoco.batch` alone, from the run's present states."""
    physics, controls = run.env.physics, _random_controls(run)
    batch = Batch(physics.model, run.env.num_envs, run.config.num_threads or available_cores())

    def prepare() -> None:
        batch.state[...] = physics.get_state()["integration"].numpy()
        if controls is not None:
            batch.bind("ctrl")[...] = controls.numpy()

    return partial(_time, partial(batch.step, nstep=run.env.task.frame_skip), prepare, run.device)


def _bare_warp(run: Run) -> Callable[[], float]:
    """Time of Warp's control step alone, from the run's present states, which it restores."""
    physics: Any = run.env.physics
    step = partial(physics.advance, _random_controls(run), run.env.task.frame_skip)

    def work() -> float:
        state = physics.get_state()
        seconds = _time(step, lambda: physics.set_state(state), run.device)
        physics.set_state(state)
        return seconds

    return work


def _random_controls(run: Run) -> Tensor | None:
    """Random ctrl, (N, nu); None, which keeps the present one, if the task computes it from actions."""
    if defines(run.env.task, "control"):
        return None
    low, high = run.env.control_low.cpu(), run.env.control_high.cpu()
    controls = low + (high - low) * torch.rand(run.env.num_envs, len(low))
    return controls.to(run.env.physics.device, run.env.physics.dtype)


class _RecordProducts(TorchDispatchMode):
    """Records the shapes of both factors of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Shapes = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            left, right = args[_PRODUCTS[func] :][:2]
            self.shapes.append((tuple(left.shape), tuple(right.shape)))
        return func(*args, **(kwargs or {}))


def _product_shapes(run: Run) -> dict[str, Shapes]:
    """Matrix products of each update, from an eager call whose changes are undone."""
    agent, state = run.agent, list(run.agent.tensors())
    values = [tensor.detach().clone() for tensor in state]
    updates = {"critic update": agent.update_critic, "actor and temperature update": agent.update_actor}
    if run.config.policy_delay == 1:
        updates = {"critic, actor and temperature update": agent.update}
    found = {}
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for name, update in updates.items():
            with _RecordProducts() as record:
                update(run.buffer.sample(run.config.batch_size)[0])
            found[name] = record.shapes
    with torch.no_grad():
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)
    return found


def _products(shapes: Shapes, device: torch.device) -> Callable[[], None]:
    """Matrix products of random factors; on the CPU those of matrices by oneDNN, as in compiled updates."""
    calls: list[Callable[[], Tensor]] = []
    for left_shape, right_shape in shapes:
        left, right = torch.randn(left_shape, device=device), torch.randn(right_shape, device=device)
        if device.type == "cpu" and left.dim() == 2 and torch.backends.mkldnn.is_available():
            transposed = right.t().contiguous()
            linear = torch.ops.mkldnn._linear_pointwise.default
            calls.append(partial(linear, left, transposed, None, "none", [], ""))
        else:
            calls.append(partial(torch.matmul, left, right))

    def work() -> None:
        for call in calls:
            call()

    return work
