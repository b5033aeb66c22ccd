"""`saltus profile` on CUDA, on the CPU: the parts of a captured round, and the rounds that capture every variant."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeline_helpers import filled_buffer, make_learner, small_config

from pipeline import learner as learner_module
from pipeline.learner import Learner
from pipeline.profile import cuda
from pipeline.profile import measure as measuring
from pipeline.profile.measure import Measurement, Step
from pipeline.profile.options import warmup_rounds
from pipeline.profile.result import summarize
from pipeline.profile.verdict import verdict
from pipeline.ranks import ALONE
from saltus.device.cuda_graph import WARMUP_CALLS


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize(
    ("delay", "updates"),
    [
        (1, {"critic, actor and temperature update": 1.0}),
        (4, {"critic update": 1.0, "actor and temperature update": 0.25}),
    ],
)
def test_a_part_of_a_round_counts_as_often_as_it_follows_a_critic_update(
    delay: int, updates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call takes a second, and a round of 40 updates samples 32 batches, then 8."""
    learner, buffer = make_learner("sac", policy_delay=delay, utd_ratio=10.0, matmul_dtype="tf32"), filled_buffer()
    sampled, precisions, sample = [], set(), buffer.sample

    def replay(function: Callable[[], Any], run: Any) -> float:
        sampled.clear()
        function()
        precisions.add(torch.get_float32_matmul_precision())
        return float(len(sampled) or 1)

    monkeypatch.setattr(buffer, "sample", lambda size, count=1: sampled.append((size, count)) or sample(size, count))
    monkeypatch.setattr(cuda, "_replay_seconds", replay)
    run: Any = SimpleNamespace(config=learner.agent.config, learner=learner, buffer=buffer)
    assert cuda._part_seconds(run) == {"sample": 2 / 40, **updates}
    assert precisions == {"high"}, "products of another precision than the updates'"


class Compiled:
    """An update that compiles at its first call."""

    compiled = pending = False

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, batch: None) -> dict[str, torch.Tensor]:
        self.compiled = True
        return {}


class Counted:
    """A captured function that counts its calls, and makes them."""

    def __init__(self, function: Callable[[], Any], *_: Any) -> None:
        self._function, self.calls = function, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self._function()


class Batches:
    """A buffer whose batches are empty."""

    generator = None

    def sample(self, _size: int, count: int) -> list[None]:
        return [None] * count


@pytest.mark.parametrize(("delay", "updates"), [(1, 40), (2, 3), (3, 1), (3, 33), (7, 5), (20, 1), (20, 8), (20, 40)])
def test_the_warmup_captures_every_variant_of_a_round(
    delay: int, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds before all updates are compiled capture nothing."""
    monkeypatch.setattr(learner_module, "CompiledUpdate", Compiled)
    monkeypatch.setattr(learner_module, "CapturedFunction", Counted)
    config = small_config(compile=True, policy_delay=delay, utd_ratio=updates / 4)
    agent: Any = SimpleNamespace(
        config=config, device=None, ranks=ALONE, tensors=None, update=None, update_critic=None, update_actor=None
    )
    buffer: Any = Batches()
    learner = Learner(agent, capture=True)
    for _ in range(warmup_rounds(config)):
        learner.round(buffer, config.updates_per_round)
    rounds: Any = learner._captured_rounds
    warm = {*rounds}
    assert min(one.calls for one in rounds.values()) > WARMUP_CALLS
    for _ in range(2 * delay):
        learner.round(buffer, config.updates_per_round)
    assert {*rounds} == warm


CPU_PHYSICS = {"physics": 0.0015, "task functions": 0.0005, "captured round": 0.0002, "act": 0.0008}  # 3 ms


def rates_of(step: dict[str, float], gpu: float, **overrides: Any) -> list[tuple[str, str]]:
    """Env steps/s and updates/s that a verdict predicts for twice the worlds and for twice the updates."""
    config = small_config(num_envs=128, utd_ratio=1 / 16, compile=True, total_env_steps=10_000, **overrides)
    measured = Measurement(config, "cuda:0", "cpu", round_seconds=gpu, wall_clock=1.0)
    measured.steps = [Step(block, step, 8) for block in range(5)]
    predicted = (re.search(r"about ([\d,]+) env steps/s, ([\d,]+) updates/s", line) for line in lines_of(measured))
    return [found.groups() for found in predicted if found]  # type: ignore[misc]


def lines_of(measured: Measurement) -> list[str]:
    return verdict(summarize(measured))


@pytest.mark.parametrize(
    ("waiting", "gpu", "worlds", "updates"),
    [
        # The GPU takes 9 ms, and 1 ms of the wait is for the actions: twice the updates take 9 ms more.
        (0.007, 0.009, ("25,600", "800"), ("6,737", "842")),
        # The GPU is done while the CPU simulates: twice the updates cost 1 ms, twice the worlds 2 ms.
        (0.001, 0.002, ("42,667", "1,333"), ("25,600", "3,200")),
    ],
)
def test_the_gpu_learns_while_the_cpu_simulates(
    waiting: float, gpu: float, worlds: tuple[str, str], updates: tuple[str, str]
) -> None:
    """A vector step takes the longer of both, and the wait for the actions."""
    assert rates_of({**CPU_PHYSICS, "waiting": waiting}, gpu) == [worlds, updates]


def test_only_vector_steps_with_a_round_wait_for_it() -> None:
    """Of 4 vector steps of 3 ms, one waits for 9 ms: 4.5 ms on average, and 6.75 ms with twice the updates."""
    assert rates_of({**CPU_PHYSICS, "waiting": 0.0015}, 0.009, steps_per_round=4)[1][0] == "18,963"


def test_rates_are_not_predicted_without_the_time_of_a_round() -> None:
    """As of a run that ended within the measurement."""
    assert rates_of({**CPU_PHYSICS, "waiting": 0.007}, 0.0) == []


@pytest.mark.parametrize(("delay", "cycle"), [(1, 1), (3, 3), (4, 2)])
def test_the_time_of_a_round_is_the_mean_of_a_cycle(delay: int, cycle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of two updates takes a second, and one second more for each update of the actor."""
    clock, done = [0.0], [0]

    def run_round(_buffer: Any, count: int) -> None:
        numbers = range(done[0] + 1, done[0] + count + 1)
        clock[0] += 1 + sum(number % delay == 0 for number in numbers)
        done[0] += count

    monkeypatch.setattr(cuda.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    config = small_config(policy_delay=delay, utd_ratio=0.5)
    run: Any = SimpleNamespace(config=config, buffer=None, learner=SimpleNamespace(round=run_round))
    assert cuda.round_seconds(run) == pytest.approx(1 + 2 / delay)
    assert done[0] % (2 * cycle) == 0, "the next rounds are other variants than before"


class Loop:
    """A run that counts its kernels: 10 in a vector step, 100 in a round, and one for each update of the actor."""

    def __init__(self, **settings: Any) -> None:
        self.config = small_config(total_env_steps=10_000, **settings)
        self.vector_steps = self.updates = self.kernels = 0
        self.device = torch.device("cuda:0")
        self.env = SimpleNamespace(simulation_device=torch.device("cpu"))
        self.learner = SimpleNamespace(captured=False)
        self.buffer = SimpleNamespace(extend=lambda transition: None)
        self.read: list[str] = []

    def act(self) -> None:
        self.read.append("actions")

    def learn(self, _logger: Any) -> None:
        count = self.config.updates_per_round
        numbers = range(self.updates + 1, self.updates + count + 1)
        self.updates += count
        self.kernels += 100 + sum(number % self.config.policy_delay == 0 for number in numbers)

    def step(self, _action: Any) -> None:
        self.vector_steps += 1
        self.kernels += 10

    def log(self, _logger: Any) -> None:
        self.read.append("metrics")


def measured_graphs(run: Any, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """The result of `_measure_graphs`, with stand-ins for the profiler, for sync debug mode and for a graph's node."""

    def count_kernels(call: Callable[[], Any]) -> int:
        before = run.kernels
        call()
        return run.kernels - before

    def find_waits(call: Callable[[], Any]) -> list[str]:
        run.read = []
        call()
        return run.read

    monkeypatch.setattr(measuring, "count_kernels", count_kernels)
    monkeypatch.setattr(measuring, "find_waits", find_waits)
    monkeypatch.setattr(measuring, "node_seconds", lambda device: 1e-6)
    measured = Measurement(run.config, "cuda:0", "cpu", steps=[Step(0, {"rest": 1.0}, 1)], wall_clock=1.0)
    measuring._measure_graphs(run, None, measured)  # type: ignore[arg-type]
    return measured


@pytest.mark.parametrize(
    ("every", "delay", "nodes"),
    [(1, 1, 10 + 100 + 2), (8, 1, 10 + 102 / 8), (8, 3, 10 + (100 + 2 / 3) / 8)],
)
def test_launches_are_those_of_the_mean_vector_step(
    every: int, delay: int, nodes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of two updates: every vector step's, or every eighth one's."""
    run = Loop(steps_per_round=every, utd_ratio=2 / (4 * every), policy_delay=delay)
    result = summarize(measured_graphs(run, monkeypatch))
    assert result["launches"] == {"nodes": pytest.approx(nodes), "seconds": pytest.approx(nodes * 1e-6)}


def test_waits_of_every_vector_step_are_told_from_those_of_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(measured_graphs(Loop(), monkeypatch))
    assert "The host waits for the GPU at each vector step: in actions." in lines
    assert "The host waits for the GPU at each row of metrics: in metrics." in lines
