"""The proof kit: every GPU test and GPU benchmark in one run, one JSON and one set of tables.

Sections follow each other in the order of their worth, each in a process of its own. One that fails is reported with
its reason and stops nothing; the file is written anew after each, so that a run that is cut short leaves what it has.
Without a GPU the same sections run in a reduced form, on Warp's CPU device, which shows that the kit works.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Literal, TypeAlias

import torch
from tensordict import TensorDict

import envs
from benchmarks import peers, result, runner
from benchmarks.data import random_transitions
from benchmarks.parity import interval, random_episodes, step_differences
from benchmarks.training import train_for
from benchmarks.update import BATCH_SIZE, HIDDEN, learning, make_learner
from envs.physics.warp import WarpPhysics
from envs.physics.warp_memory import release_memory
from saltus.device.cuda_graph import find_synchronizations
from saltus.device.memory import free_bytes

TASKS = ("Hopper-v5", "Humanoid-v5")
Solver: TypeAlias = Literal["model", "newton"]
Engine: TypeAlias = Literal["cpu", "warp"]
SOLVERS: tuple[Solver, ...] = ("model", "newton")
ENGINES: tuple[Engine, ...] = ("cpu", "warp")
SHARES = {"median": 0.5, "99%": 0.99, "worst": 1.0}  # quantiles of differences
PARITY_TASKS = ("Hopper-v5", "HalfCheetah-v5", "InvertedPendulum-v5", "Humanoid-v5")


@dataclass(frozen=True)
class Sizes:
    """How much of everything, on a GPU and in the reduced form."""

    worlds: dict[str, tuple[int, ...]]
    repeats: int
    seconds: float
    updates: tuple[tuple[int, int], ...]  # batch size, updates a round
    buffer: int
    parity_worlds: int
    parity_steps: int
    rollout_worlds: int
    rollout_steps: int
    training: tuple[tuple[str, float, str], ...]  # task, seconds, options


RARELY = "--eval-every 1000000 --log-every 100000 --checkpoint-every 1000000000"
ON_GPU = Sizes(
    worlds={"Hopper-v5": (1024, 4096, 16384), "Humanoid-v5": (1024, 4096, 8192)},
    repeats=3,
    seconds=0.7,
    updates=((256, 20), (256, 80), (2048, 20), (8192, 20)),
    buffer=100_000,
    parity_worlds=256,
    parity_steps=50,
    rollout_worlds=1024,
    rollout_steps=1000,
    training=(
        ("Hopper-v5", 75, f"--num-envs 1024 --utd-ratio 0.03125 --total-env-steps 20000000 {RARELY}"),
        ("Humanoid-v5", 110, f"--num-envs 2048 --utd-ratio 0.015625 --total-env-steps 60000000 {RARELY}"),
    ),
)
EVALUATION = re.compile(r"evaluation at .*: return (-?[\d.]+) ")
LEVELS = (1000, 3000, 5000, 8000)
SHORT = "--physics warp --num-envs 8 --utd-ratio 0.125 --total-env-steps 1200 --learning-starts 400 --eval-every 600"
REDUCED = Sizes(
    worlds={"Hopper-v5": (4, 8), "Humanoid-v5": (4,)},
    repeats=2,
    seconds=0.2,
    updates=((64, 2),),
    buffer=2_000,
    parity_worlds=32,
    parity_steps=25,
    rollout_worlds=32,
    rollout_steps=1000,
    training=(("Hopper-v5", 60, f"{SHORT} --eval-episodes 2 --no-compile"),),
)


# A measurement, or a table of them.
Finding: TypeAlias = dict[str, Any] | result.Table
# Calls of a case before it is measured: enough for every round of updates to have been recorded.
WARMUP_CALLS = 12
TO_SAVE = 40.0  # seconds that a training run has to save and end
FOR_TESTS = 220.0  # seconds
TESTS_AT_ONCE = 6  # most of their time is compilation, on the CPU
TIMED_OUT = 124  # as timeout(1) has it


@dataclass
class Kit:
    """What a section works with, and what it found.

    Attributes:
        deadline: of the whole kit, by time.monotonic().
        send: takes every finding at once, so that it is kept whatever comes after it.
    """

    device: torch.device
    sizes: Sizes
    deadline: float
    send: Callable[[Finding], None]

    def note(self, section: str, **values: Any) -> None:
        """Keep one measurement."""
        self.send({"section": section, **values})

    def table(self, title: str, columns: list[str], rows: list[list[result.Cell]]) -> None:
        """Keep one table."""
        self.send(result.Table(title, columns, rows))

    def compare(self, section: str, title: str, cases: Mapping[str, Callable[[], runner.Work]], subject: str) -> None:
        """Measure cases side by side, and keep rates and their table; one that fails is left out, with its reason."""
        made: dict[str, runner.Work] = {}
        missing: dict[str, str] = {}
        for name, make in cases.items():
            try:
                work = make()
                for _ in range(WARMUP_CALLS):
                    work()
                made[name] = work
            except Exception as error:
                traceback.print_exc()
                missing[name] = f"failed: {_first_line(error)}"
        if subject not in made:
            raise RuntimeError(f"{title}: {subject} {missing[subject]}")
        measured = runner.measure(made, self.sizes.repeats, self.sizes.seconds, warmup_calls=0)
        for row in result.rows_of(measured, section=section, title=title):
            self.send(row)
        self.send(result.comparison(title, measured, subject, missing, {}))
        if missing:
            raise RuntimeError(f"{title}: {', '.join(missing)} failed")

    def device_of(self, engine: Engine) -> torch.device:
        """Where an engine's worlds are."""
        return self.device if engine == "warp" else torch.device("cpu")

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


def gpu(minutes: float = 8.5, sections: tuple[str, ...] = (), output: Path | None = None) -> None:
    """Run every GPU test and benchmark; without a GPU, a reduced form of them.

    Each section has a process of its own, which is ended when the time is over: neither a hang nor a GPU in a bad state
    spoils the others.

    Args:
        minutes: for everything.
        sections: which ones; by default all.
        output: the file to write; by default benchmarks/results/gpu-<device>.json.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise SystemExit(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    sizes, deadline = ON_GPU if on_gpu else REDUCED, time.monotonic() + 60 * minutes
    name = torch.cuda.get_device_name().lower().replace(" ", "-") if on_gpu else "reduced"
    path = output or result.RESULTS / f"gpu-{name}.json"
    settings = {"minutes": minutes, "device": str(device), "reduced": not on_gpu}
    rows: list[list[result.Cell]] = []
    found: list[Finding] = []
    for section in sections or tuple(SECTIONS):
        start = time.monotonic()
        outcome = _in_a_process_of_its_own(section, device, sizes, deadline, found.append)
        rows.append([section, outcome, time.monotonic() - start])
        tables = [one for one in found if isinstance(one, result.Table)]
        tables.append(result.Table("Sections", ["section", "outcome", "seconds"], rows))
        result.write(path, settings, [one for one in found if not isinstance(one, result.Table)], tables)
    result.show(tables, path)
    if any(row[1] != "done" for row in rows):
        raise SystemExit(1)


def _in_a_process_of_its_own(
    section: str, device: torch.device, sizes: Sizes, deadline: float, keep: Callable[[Finding], None]
) -> str:
    """Run a section, keep what it finds as it finds it, and return how it went."""
    if time.monotonic() >= deadline:
        return "not run: no time was left"
    print(f"== {section} ({deadline - time.monotonic():.0f} s left)", flush=True)
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_run_section, args=(there, section, device, sizes, deadline))
    process.start()
    there.close()
    try:
        while here.poll(max(0.0, deadline - time.monotonic())):
            received = here.recv()
            if isinstance(received, str):
                return received
            keep(received)
        return "stopped: no time was left"
    except EOFError:
        process.join(10)
        return f"failed: its process ended with exit code {process.exitcode}"
    finally:
        process.kill()


def _run_section(pipe: Connection, section: str, device: torch.device, sizes: Sizes, deadline: float) -> None:
    warnings.filterwarnings("ignore", message="the model asks for the PGS solver")
    try:
        SECTIONS[section](Kit(device, sizes, deadline, pipe.send))
        pipe.send("done")
    except Exception as error:  # whatever it is: the other sections are worth having
        traceback.print_exc()
        pipe.send(f"failed: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason}"[:300]


def run_tests(kit: Kit) -> None:
    """The tests that need a GPU, each in a process of its own, several at once; without a GPU all are skipped, in one.

    A recording that fails may leave its process unable to draw random numbers on the device.
    """
    listed = _pytest(kit.deadline, "--collect-only", "tests/test_gpu.py").output
    tests = [line for line in listed if line.startswith("tests/") and "::" in line]
    if not tests:
        raise RuntimeError(f"no tests were found: {' '.join(listed[-1:])}")
    groups = [[test] for test in tests] if kit.device.type == "cuda" else [tests]
    until = time.monotonic() + min(FOR_TESTS, kit.left() - 5)
    with ThreadPoolExecutor(TESTS_AT_ONCE) as pool:
        ended = list(pool.map(lambda group: _pytest(until, "-vv", "-rfE", *group), groups))
    output = [line for one in ended for line in one.output]
    passed = [line.split()[0] for line in output if " PASSED" in line]
    skipped = [line.split()[0] for line in output if " SKIPPED" in line]
    failed = [line for line in output if line.startswith(("FAILED", "ERROR"))]
    for group, one in zip(groups, ended, strict=True):
        if one.code not in (0, TIMED_OUT) and not any(line in failed for line in one.output):
            failed.append(f"EXIT CODE {one.code} {' '.join(group)}")  # its process died
    cut = [test for group, one in zip(groups, ended, strict=True) if one.code == TIMED_OUT for test in group]
    cut = [test for test in cut if test not in (*passed, *skipped)]
    summary = f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped, {len(cut)} cut short"
    kit.note("tests", summary=summary, passed=passed, failed=failed, skipped=skipped, cut_short=cut)
    lines = [summary, *failed, *[f"CUT SHORT {test}" for test in cut]]
    kit.table("GPU tests", ["result"], [[line] for line in lines])
    if wrong := [one for one in ended if one.code != 0]:
        for one in wrong:
            print("\n".join(one.output[-60:]), flush=True)
        raise RuntimeError(summary)


@dataclass(frozen=True)
class Ended:
    """What a process printed, and its exit code."""

    code: int
    output: list[str]


def _pytest(until: float, *arguments: str) -> Ended:
    """Run tests that need a GPU, until a time by time.monotonic() at the latest."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *arguments]
    with TemporaryFile("w+") as file:
        try:
            limit, root = max(0.0, until - time.monotonic()), Path(__file__).parents[1]
            code = subprocess.run(command, cwd=root, stdout=file, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
        file.seek(0)
        return Ended(code, [line for line in file.read().splitlines() if line.strip()])


def parity(kit: Kit) -> None:
    """One control step from the same states on both engines, and returns of random rollouts."""
    sizes, rows = kit.sizes, list[list[result.Cell]]()

    def compare(label: str, reference: envs.BatchEnv, other: envs.BatchEnv, **labels: str) -> None:
        errors = step_differences(reference, other, sizes.parity_steps)
        found = {name: float(torch.quantile(errors, share)) for name, share in SHARES.items()}
        kit.note("parity", **labels, **found, states=len(errors))
        rows.append([label, *[f"{value:.1e}" for value in found.values()]])

    for task in PARITY_TASKS:
        make = partial(envs.make, task, sizes.parity_worlds, seed=3)
        solvers = SOLVERS if task == "Humanoid-v5" else SOLVERS[:1]
        for solver in solvers:
            pair = make(physics="cpu", solver=solver), make(physics="warp", device=kit.device)
            compare(f"{task}, CPU solver: {solver}", *pair, task=task, solver=solver)
        if len(solvers) > 1:
            pair = make(physics="cpu", solver="model"), make(physics="cpu", solver="newton")
            compare(f"{task}, CPU, newton against model", *pair, task=task, solver="newton against model on the CPU")
    columns = ["one control step: relative difference of the observation", *SHARES]
    kit.table("Warp against the CPU engine", columns, rows)
    rows = []
    for task in PARITY_TASKS:
        for engine in ENGINES:
            env = envs.make(task, sizes.rollout_worlds, seed=5, physics=engine, device=kit.device_of(engine))
            found = {name: interval(values) for name, values in random_episodes(env, sizes.rollout_steps).items()}
            kit.note("rollouts", task=task, engine=engine, **found)
            rows.append([f"{task}, {engine}", *["{:.4g} +- {:.2g}".format(*one) for one in found.values()]])
    columns = ["random actions: mean, and half of its 95% interval", "return", "length", "height (or angle)"]
    kit.table("Statistics of random episodes", columns, rows)


def steps(kit: Kit) -> None:
    """Env steps/s of BatchEnv beside mujoco_warp's own captured step of the same model."""
    for task, worlds in [(name, count) for name in TASKS for count in kit.sizes.worlds[name]]:
        free = free_bytes(kit.device)
        ours, bare = _warp_env(kit, task, worlds), _warp_env(kit, task, worlds)
        cases = {"saltus": partial(_stepping, kit, ours), "bare mujoco_warp": partial(_bare, kit, bare)}
        kit.compare("steps", f"{task}, {worlds} worlds: env steps/s", cases, "saltus")
        engines = [env.physics for env in (ours, bare) if isinstance(env.physics, WarpPhysics)]
        announced = sum(engine.num_bytes + engine.working_bytes for engine in engines)
        kit.note("memory", task=task, worlds=worlds, announced=announced, taken=free - free_bytes(kit.device))
        del ours, bare, cases, engines
        release_memory(kit.device)  # their graphs refer to them, so that only a collection frees what they take


def _warp_env(kit: Kit, task: str, worlds: int) -> envs.BatchEnv:
    env = envs.make(task, worlds, physics="warp", device=kit.device)
    env.reset()
    return env


def _actions(env: envs.BatchEnv) -> itertools.cycle:
    generator = torch.Generator(env.device).manual_seed(0)
    size = (16, env.num_envs, env.action_dim)
    return itertools.cycle(2 * torch.rand(size, generator=generator, device=env.device) - 1)


def _stepping(kit: Kit, env: envs.BatchEnv, at_once: int = 10) -> runner.Work:
    actions = _actions(env)

    def step() -> int:
        for _ in range(at_once):
            env.step(next(actions))
        peers.synchronize(kit.device)
        return at_once * env.num_envs

    return step


def _bare(kit: Kit, env: envs.BatchEnv, at_once: int = 10) -> runner.Work:
    """The engine's captured control step, and nothing else: no reading, no reward, no reset.

    Every call begins anew: worlds that nobody resets would lie on the floor, which takes the solver longer.
    """
    physics, actions, frame_skip = env.physics, _actions(env), env.task.frame_skip
    assert isinstance(physics, WarpPhysics)
    start = physics.get_state()

    def step() -> int:
        physics.set_state(start)
        for _ in range(at_once):
            physics.advance(next(actions), frame_skip)
        peers.synchronize(kit.device)
        return at_once * env.num_envs

    return step


def updates(kit: Kit) -> None:
    """Updates/s of sac, captured, and LeanRL's way, over batch size and updates a round."""
    first = kit.sizes.updates[0]
    pairs = [("Hopper-v5", one) for one in kit.sizes.updates] + [("Humanoid-v5", first)]
    for task, (batch_size, count) in pairs:
        data = _data(kit, task)
        ours = partial(learning, task, data, count, batch_size=batch_size)
        cases: dict[str, Callable[[], runner.Work]] = {
            "saltus sac": partial(ours, preset="sac"),
            "saltus sac, bfloat16 products": partial(ours, preset="sac", matmul_dtype="bfloat16"),
        }
        if kit.device.type == "cuda":
            cases["saltus sac, TF32 products"] = partial(ours, preset="sac", matmul_dtype="tf32")
        if batch_size == first[0]:
            cases["saltus fast"] = partial(ours, preset="fast")
            cases["LeanRL's way"] = partial(runner.isolated, partial(_leanrl, kit, task, batch_size, count))
        if (batch_size, count) == first:
            cases["saltus sac, not compiled"] = partial(ours, preset="sac", compile=False)
        kit.compare("updates", f"{task}: updates/s, batch {batch_size}, {count} a round", cases, "saltus sac")


def _data(kit: Kit, task: str) -> TensorDict:
    env = envs.make(task, 1)
    return random_transitions(kit.sizes.buffer, env.observation_dim, env.action_dim).to(kit.device)


def _leanrl(kit: Kit, task: str, batch_size: int, count: int) -> runner.Work:
    return peers.leanrl(_data(kit, task), batch_size, HIDDEN, count)


def synchronization(kit: Kit) -> None:
    """Host synchronisations inside a round of updates and inside a control step, by torch's sync debug mode."""
    task = "Hopper-v5"
    env = _warp_env(kit, task, kit.sizes.worlds[task][0])
    data = _data(kit, task)
    batch_size, count = kit.sizes.updates[0]
    learner, buffer = make_learner(task, data, "sac", batch_size=batch_size)
    actions = _actions(env)
    work: dict[str, Callable[[], Any]] = {
        "round of updates": lambda: learner.round(buffer, count),
        "control step": lambda: env.step(next(actions)),
    }
    rows: list[list[result.Cell]] = []
    for name, call in work.items():
        _repeat(call, 4)
        found = find_synchronizations(partial(_repeat, call, 3))[1] if kit.device.type == "cuda" else []
        kit.note("synchronization", work=name, count=len(found), places=found)
        rows.append([name, len(found) if kit.device.type == "cuda" else "needs CUDA", "; ".join(found[:3])])
    kit.table("Host synchronisations, by torch's sync debug mode", ["in a", "found", "where"], rows)


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def profile(kit: Kit) -> None:
    """Kernels of a round, and the share of the time that one runs."""
    batch_size, count = kit.sizes.updates[0]
    rows: list[list[result.Cell]] = []
    for preset in ("sac", "fast"):
        data = _data(kit, "Hopper-v5")
        learner, buffer = make_learner("Hopper-v5", data, preset, batch_size=batch_size)
        for _ in range(WARMUP_CALLS):
            learner.round(buffer, count)
        peers.synchronize(kit.device)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if kit.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiled:
            start = time.perf_counter()
            for _ in range(5):
                learner.round(buffer, count)
            peers.synchronize(kit.device)
            seconds = time.perf_counter() - start
        kernels = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
        each = len(kernels) / (5 * count)
        kit.note("profile", preset=preset, kernels_per_update=each, busy_share=busy / seconds, seconds=seconds)
        rows.append([preset, each, busy / seconds])
    kit.table("Profile of rounds", ["preset", "kernels an update", "share of time busy"], rows)


def loop(kit: Kit) -> None:
    """Acting, stepping, storing and learning, beside the sum of stepping alone and learning alone."""
    count = kit.sizes.updates[0][1]
    rows: list[list[result.Cell]] = []
    for task in TASKS:
        worlds = kit.sizes.worlds[task][-1]
        step, learn = _parts_of_the_loop(kit, task, worlds, count)
        seconds = {
            "stepping": _seconds(kit, step),
            "learning": _seconds(kit, learn),
            "both": _seconds(kit, step, learn),
        }
        ratio = (seconds["stepping"] + seconds["learning"]) / seconds["both"]
        kit.note("loop", task=task, worlds=worlds, updates_a_step=count, ratio=ratio, **seconds)
        title = f"{task}, {worlds} worlds, {count} updates a step"
        rows.append([title, *[1e3 * value for value in seconds.values()], ratio, worlds / seconds["both"]])
    columns = ["", "stepping, ms", "learning, ms", "both, ms", "sum of parts / both", "env steps/s"]
    kit.table("The loop on the device", columns, rows)


def _parts_of_the_loop(
    kit: Kit, task: str, worlds: int, count: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    env = _warp_env(kit, task, worlds)
    data = random_transitions(10 * worlds, env.observation_dim, env.action_dim).to(kit.device)
    settings = {"batch_size": min(BATCH_SIZE, 5 * worlds), "num_envs": worlds, "utd_ratio": count / worlds}
    learner, buffer = make_learner(task, data, "sac", total_env_steps=10**9, **settings)
    observation = env.reset()

    def step() -> None:
        nonlocal observation
        action = learner.act(observation, torch.randn(worlds, env.action_dim, device=kit.device))
        transition, observation = env.step(action)
        buffer.extend(transition.set("action", action))

    return step, lambda: learner.round(buffer, count)


def _seconds(kit: Kit, *calls: Callable[[], object]) -> float:
    """Median seconds of the calls together."""
    for _ in range(4):
        for call in calls:
            call()
    peers.synchronize(kit.device)
    times = []
    for _ in range(kit.sizes.repeats):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < kit.sizes.seconds:
            for call in calls:
                call()
            peers.synchronize(kit.device)
            done += 1
        times.append((time.perf_counter() - start) / done)
    return median(times)


def training(kit: Kit) -> None:
    """Short training curves, wall-clock from process start, evaluated on the CPU engine."""
    rows: list[list[result.Cell]] = []
    failed = []
    for task, seconds, options in kit.sizes.training:
        with TemporaryDirectory(prefix="saltus-", ignore_cleanup_errors=True) as folder:
            arguments = [task, "--device", kit.device.type, "--run-dir", f"{folder}/run", *options.split()]
            limit = min(seconds, kit.left() - TO_SAVE - 10)
            exit_code, took, lines = train_for(limit, arguments, Path(folder) / "cache", grace=TO_SAVE)
        curve = [(when, float(found[1])) for when, line in lines if (found := EVALUATION.match(line))]
        output = [line.replace(folder, "RUN") for _, line in lines[-40:]]
        kit.note("training", task=task, options=options, exit_code=exit_code, seconds=took, curve=curve, output=output)
        reached = [next((when for when, value in curve if value >= level), None) for level in LEVELS]
        best = max((value for _, value in curve), default=None)
        rows.append([f"{task} {options}", len(curve), best, *reached])
        if exit_code != 0:
            failed.append(f"{task}: exit code {exit_code}: {output[-1] if output else 'no output'}")
    columns = ["run", "evaluations", "best return", *[f"s to {level:,}" for level in LEVELS]]
    kit.table("Short training runs, seconds from process start", columns, rows)
    if failed:
        raise RuntimeError("; ".join(failed))


# What takes longest to compile comes late: on a machine that has compiled nothing yet, time may run out.
SECTIONS: dict[str, Callable[[Kit], None]] = {
    "tests": run_tests,
    "synchronization": synchronization,
    "steps": steps,
    "training": training,
    "parity": parity,
    "loop": loop,
    "updates": updates,
    "profile": profile,
}
