"""Roofs: the least time that this machine needs for a phase's essential work."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from envs import transition as transitions
from envs.physics.cpu import available_cores
from envs.physics.model_fields import bare_batch, restore
from envs.physics.warp import WarpPhysics
from envs.task_functions import defines
from pipeline.profile.phases import worlds_of
from pipeline.run import Run
from saltus.device.cuda_graph import CapturedFunction

TURN = 0.2  # seconds of each roof's turn
_COPY = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}  # bytes: more than caches hold, and than launches hide
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default: 0, _aten.addmm.default: 1, _aten.bmm.default: 0, _aten.baddbmm.default: 1}

# Shapes and dtype of both factors of a matrix product.
Product = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class Roofs:
    """Measures roofs in turns, between blocks of the loop, on the run's own states, sizes and threads.

    Bare physics: `mujoco.batch` (or Warp's captured control step) from the run's states with its last controls; no task
    functions, no reset. Matrix products: those of the updates alone, one after another, on CUDA in a graph. Memory: the
    bytes that sampling and writing move, at the bandwidth of a large copy.
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
        row = transitions.num_bytes(*self._run.agent.dimensions.widths)
        per_byte = 2 * medians.pop("copy")  # a byte is read and written
        roofs = {"physics": medians["physics"], "buffer write": config.num_envs * row * per_byte}
        roofs["sample"] = updates * config.batch_size * row * per_byte
        for name in medians.keys() - {"physics"}:
            every = config.policy_delay if name.startswith("actor") else 1
            roofs[name] = updates / every * medians[name]
        return roofs

    def _make(self) -> dict[str, Callable[[], float]]:
        on_warp = isinstance(worlds_of(self._run).physics, WarpPhysics)
        return {
            "physics": _bare_warp(self._run) if on_warp else _bare_batch(self._run),
            "copy": partial(_time_per_byte, self._run.device),
            **{
                name: partial(_time, _products(products, self._run), lambda: None, self._run.device)
                for name, products in _recorded_products(self._run).items()
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
    size = _COPY[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _time(lambda: target.copy_(source), lambda: None, device) / (2 * size)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bare_batch(run: Run) -> Callable[[], float]:
    """Time of a control step of `mujoco.batch` alone, from the run's present states."""
    env, controls = worlds_of(run), _random_controls(run)
    physics = env.physics
    threads = run.config.num_threads or available_cores()
    batch = bare_batch(physics.model, env.num_envs, threads)

    def prepare() -> None:
        restore(batch, physics.get_state()["integration"])
        if controls is not None:
            batch.bind("ctrl")[...] = controls.numpy()

    return partial(_time, partial(batch.step, nstep=env.task.frame_skip), prepare, run.device)


def _bare_warp(run: Run) -> Callable[[], float]:
    """Time of Warp's control step alone, from the run's present states, which it restores."""
    env = worlds_of(run)
    physics = env.physics
    assert isinstance(physics, WarpPhysics)
    step = partial(physics.simulate, _random_controls(run), env.task.frame_skip)

    def work() -> float:
        state = physics.get_state()
        seconds = _time(step, lambda: physics.set_state(state), run.device)
        physics.set_state(state)
        return seconds

    return work


def _random_controls(run: Run) -> Tensor | None:
    """Random ctrl, (N, nu); None, which keeps the present one, if the task computes it from actions."""
    env = worlds_of(run)
    if defines(env.task, "control"):
        return None
    low, high = env.control_low.cpu(), env.control_high.cpu()
    controls = low + (high - low) * torch.rand(env.num_envs, len(low))
    return controls.to(env.physics.device, env.physics.dtype)


class _RecordProducts(TorchDispatchMode):
    """Records every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            left, right = args[_PRODUCTS[func] :][:2]
            self.products.append((tuple(left.shape), tuple(right.shape), left.dtype))
        return func(*args, **(kwargs or {}))


def _recorded_products(run: Run) -> dict[str, list[Product]]:
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
            found[name] = record.products
    with torch.no_grad():
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)
    return found


def _products(products: list[Product], run: Run) -> Callable[[], object]:
    """Matrix products of random factors, as in compiled updates: on the CPU by oneDNN, on CUDA in a graph."""
    device, calls = run.device, []
    for left_shape, right_shape, dtype in products:
        left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in (left_shape, right_shape))
        if device.type == "cpu" and left.dim() == 2 and torch.backends.mkldnn.is_available():
            transposed = right.t().contiguous()
            linear = torch.ops.mkldnn._linear_pointwise.default
            calls.append(partial(linear, left, transposed, None, "none", [], ""))
        else:
            calls.append(partial(torch.matmul, left, right))

    def work() -> dict[str, Tensor]:
        with run.learner.product_precision():
            return {str(number): call() for number, call in enumerate(calls)}

    if device.type == "cpu":
        return work
    return CapturedFunction(work, "the matrix products of an update", device)
