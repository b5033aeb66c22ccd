"""Learning curves of `saltus train` and of other libraries over seeds, and their statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from benchmarks import pictures, result
from benchmarks.campaign import Campaign, Row, failed, progress
from benchmarks.cores import core_sets, run_pinned
from benchmarks.hardware import hardware
from benchmarks.installed import install_command, is_installed, require_shared_storage, require_statistics
from benchmarks.seeds import Seeds
from benchmarks.statistics import first_reached
from benchmarks.table import Cell, Table, show
from benchmarks.training_run import Case, System, Trained, code_hash, saltus_arguments, task_name, train
from benchmarks.training_tables import failures_table
from benchmarks.training_tables import tables as tables_of_task
from pipeline import presets as known_presets
from pipeline.train_options import parse_train, split_words
from pipeline.tune.options import SHORTEST_LEASE
from saltus.errors import SaltusError

PEERS = {"stable-baselines3": "stable_baselines3", "sbx": "sbx"}  # modules
DEFAULT_MINUTES = 10.0
LEASE = 180  # seconds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the benchmark. See `training`."""

    tasks: tuple[str, ...]
    options: tuple[str, ...]
    systems: tuple[System, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float | None
    threshold: tuple[float, ...]
    floor: tuple[float, ...]
    episodes: int
    cores_per_run: int
    runs_at_once: int


def training(
    tasks: tyro.conf.Positional[tuple[str, ...]],
    options: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    systems: tuple[System, ...] = ("saltus",),
    presets: tuple[str, ...] = (),
    seeds: Seeds = (0, 1, 2),
    minutes: float | None = None,
    threshold: tuple[float, ...] = (),
    floor: tuple[float, ...] = (),
    episodes: int = 100,
    cores_per_run: int | None = None,
    storage: str | None = None,
    lease: int = LEASE,
    output: Path | None = None,
) -> None:
    """Learning curves of `saltus train TASK` over wall-clock time and env steps, and statistics over seeds.

    Time counts from process start, compilation included. A run that has the machine to itself has an empty compilation
    cache. The result file is written after each run, with a picture of all curves next to it at the end. The same
    command, given again, does the runs that are missing or failed.

    Args:
        tasks: the tasks to train on.
        options: more options for `saltus train`, after a `--`.
        systems: saltus, and other libraries with their default settings, except for 5,000 random actions at the start.
        presets: presets of saltus to compare, by default the default one. Options that change a preset may follow it:
            "sac --critic-lr 1e-3".
        seeds: seeds and ranges of seeds: 0 1 2 or 100-109.
        minutes: time limit of each run; its policies are evaluated after it. By default 10, or none if the options
            have --total-env-steps.
        threshold: a mean return, or one for each task. The first evaluation that reaches it is reported.
        floor: a mean return, or one for each task, below which later evaluations are counted; by default the threshold.
        episodes: episodes of the final evaluations, which are independent of the choice of the best policy.
        cores_per_run: cores that each run is pinned to, and its number of threads, whatever OMP_NUM_THREADS is; as many
            runs as fit are done at once. By default all cores, one run after another.
        storage: the URL of a database, such as sqlite:///cases.db, in which workers on any number of machines share the
            runs: the same command, given to each, does those that nobody has done. Each writes all of them at the end.
        lease: seconds after which the run of a worker that no longer answers is done again, with --storage.
        output: the file to write or, without --storage, to continue; by default
            benchmarks/results/training-<tasks>-cpu<cores>.jsonl.
    """
    tasks, options = _split(tasks, options)
    sets = core_sets(cores_per_run)
    if minutes is None and "--total-env-steps" not in split_words([*options]):
        minutes = DEFAULT_MINUTES
    settings = Settings(
        tasks=tasks, options=options, systems=systems, presets=presets, seeds=seeds, minutes=minutes,
        threshold=threshold, floor=floor, episodes=episodes, cores_per_run=len(sets[0]), runs_at_once=len(sets),
    )  # fmt: skip
    check(settings)
    if storage is not None:
        require_shared_storage()
        if lease < SHORTEST_LEASE:
            raise SystemExit(f"--lease {lease}: give at least {SHORTEST_LEASE} seconds")
    elif lease != LEASE:
        raise SystemExit(f"--lease {lease} needs --storage: without it no other worker takes up a run")
    missing = not_installed(systems)
    cases = cases_of(settings, missing)
    path = output or result.default_path("-".join(["training", *map(task_name, tasks)]))

    notes = [{"system": system, "missing": command} for system, command in missing.items()]
    if storage is not None:
        from benchmarks.shared_training import train_shared

        result.replaceable(path, "training", output is not None)
        rows = train_shared(storage, lease, asdict(settings), cases, sets)
        found = result.write(path, "training", asdict(settings), [*rows, *notes])
    else:
        found = train_here(path, settings, cases, notes, sets)
    show(tables(found), path)
    pictures.draw(found)


def train_here(
    path: Path, settings: Settings, cases: Sequence[Case], notes: Sequence[Row], sets: Sequence[tuple[int, ...]]
) -> result.Result:
    """Do the cases that a result file lacks; write it after each of them."""
    jobs = {result.encode(asdict(case)): case for case in cases}
    campaign = Campaign(
        path, "training", asdict(settings), [asdict(case) for case in cases], same_settings=False, missing=notes
    )

    def add(run: Trained) -> None:
        campaign.put(run.to_json())
        campaign.say(describe_progress(campaign))

    with campaign.interruptible(lambda: describe_progress(campaign)):
        campaign.say(describe_progress(campaign))
        run_pinned(train, [jobs[campaign.key(job)] for job in campaign.remaining], sets, add)
    return campaign.result


def describe_progress(campaign: Campaign) -> str:
    """Numbers of runs, and the time that the others will take, final evaluations aside."""
    left, failures = campaign.remaining, sum(map(failed, campaign.rows))
    known = [row["seconds"] for row in campaign.rows if not failed(row)]
    seconds = None
    if left and (known or left[0]["minutes"] is not None):
        each = mean(known) if known else 60 * left[0]["minutes"]
        seconds = each * -(-len(left) // left[0]["at_once"])
    return progress(len(campaign.jobs) - len(left), len(campaign.jobs), "runs", failures, seconds)


def _split(tasks: tuple[str, ...], options: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tasks, and options from the first word with a dash: without an option before ``--``, tyro takes all for tasks."""
    words = (*tasks, *options)
    first = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:first], words[first:]


def check(settings: Settings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SystemExit: with the contradiction, and a way to resolve it.
    """
    options, presets, systems = settings.options, settings.presets, settings.systems
    if not (settings.tasks and settings.seeds and systems):
        raise SystemExit("nothing to train: name at least one task, one of --seeds and one of --systems")
    for named in (settings.tasks, systems, presets):
        twice = next((one for one in named if named.count(one) > 1), None)
        if twice is not None:
            raise SystemExit(f"{twice!r} is named twice: its runs would be the same")
    if "saltus" not in systems and (options or presets):
        kind = "options" if options else "--presets"
        raise SystemExit(f"{' '.join(options or presets)}: {kind} are for saltus, which is not among --systems")
    if settings.minutes is None and systems != ("saltus",):
        raise SystemExit("--total-env-steps limits saltus alone: limit the other systems with --minutes")
    for name, value in {"--minutes": settings.minutes, "--episodes": settings.episodes}.items():
        if value is not None and not value > 0:
            raise SystemExit(f"{name} {value:g}: give a number above 0")
    words = split_words([*options, *" ".join(presets).split()])
    for option, instead in {"--seed": "--seeds", "--run-dir": "--output", "--minutes": "--minutes"}.items():
        if option in words:
            raise SystemExit(f"{option} of saltus train is set by the benchmark: use its own option {instead}")
    if presets and "--preset" in words:
        raise SystemExit("--preset contradicts --presets: name the presets once")
    for preset in presets:
        if preset.partition(" ")[0] not in known_presets.names():
            raise SystemExit(f"{preset!r} does not start with a preset: {', '.join(known_presets.names())}")
    if settings.floor and not settings.threshold:
        raise SystemExit("--floor needs --threshold: it counts the evaluations after the threshold was reached")
    for name, values in {"--threshold": settings.threshold, "--floor": settings.floor}.items():
        if len(values) not in (0, 1, len(settings.tasks)):
            raise SystemExit(
                f"{name} has {len(values)} values for {len(settings.tasks)} tasks: give one, or one a task"
            )
    require_statistics()


def not_installed(systems: Sequence[System]) -> dict[str, str]:
    """The commands that install the libraries among `systems` that are missing, by system."""
    needed = {system: PEERS[system] for system in systems if system in PEERS}
    return {system: install_command(module) for system, module in needed.items() if not is_installed(module)}


def cases_of(settings: Settings, missing: Mapping[str, str]) -> list[Case]:
    """All cases, seed by seed, without systems that are missing.

    Raises:
        SystemExit: there are none, or saltus refuses a task or an option.
    """
    kinds = _kinds(settings, missing)
    here = hardware()
    shared: dict[str, Any] = {
        "minutes": settings.minutes, "episodes": settings.episodes, "cores": settings.cores_per_run,
        "at_once": settings.runs_at_once, "machine": f"{here['cpu']}, {here['cores']} cores",
    }  # fmt: skip
    try:
        codes = {task: code_hash(task) for task in settings.tasks}
        cases = [
            Case(**shared | kind, task=task, seed=seed, code=codes[task])
            for seed in settings.seeds
            for task in settings.tasks
            for kind in kinds
        ]
        for case in cases[: len(kinds) * len(settings.tasks)]:  # those of one seed
            if case.system == "saltus":
                parse_train(saltus_arguments(case))
    except SaltusError as error:
        raise SystemExit(f"saltus: {error}") from error
    return cases


def _kinds(settings: Settings, missing: Mapping[str, str]) -> list[dict[str, Any]]:
    """Systems, presets and options to compare, as fields of a case."""
    kinds: list[dict[str, Any]] = []
    for system in settings.systems:
        if system == "saltus":
            presets = settings.presets or (None,)
            kinds += [{"system": system, "preset": preset, "options": settings.options} for preset in presets]
        elif system not in missing:
            kinds.append({"system": system, "preset": None, "options": ()})
    if not kinds:
        raise SystemExit(f"nothing to train: {', '.join(missing)} not installed ({'; '.join(missing.values())})")
    return kinds


def by_task(found: result.Result) -> Iterator[tuple[str, list[Trained], float | None, float | None]]:
    """Title, runs, threshold and floor of each task of a result."""
    settings = found.settings
    limit = "" if settings["minutes"] is None else f", at most {settings['minutes']:g} minutes"
    count = settings["cores_per_run"]
    cores = f"{count} {'core' if count == 1 else 'cores'} per run, {settings['runs_at_once']} at once"
    runs = runs_of(found)
    for index, task in enumerate(settings["tasks"]):
        threshold, floor = (_of_task(settings[name], index) for name in ("threshold", "floor"))
        yield f"{task_name(task)}{limit}, {cores}", [run for run in runs if run.task == task], threshold, floor


def runs_of(found: result.Result) -> list[Trained]:
    """The runs of a result."""
    return [Trained.from_json(row) for row in found.measurements if "missing" not in row]


def _of_task(values: Sequence[float], index: int) -> float | None:
    """A task's value: that of all tasks, or its own, or None."""
    return None if not values else values[0] if len(values) == 1 else values[index]


def tables(found: result.Result) -> list[Table]:
    """The tables of all tasks, and of the runs that are missing."""
    missing = {row["system"]: row["missing"] for row in found.measurements if "missing" in row}
    of_tasks = [table for part in by_task(found) for table in tables_of_task(*part)]
    return of_tasks + machines_table(runs_of(found)) + failures_table(runs_of(found), missing)


def machines_table(runs: Sequence[Trained]) -> list[Table]:
    """The number of runs that each machine did; none if one did all."""
    machines = Counter(run.machine for run in runs)
    if len(machines) < 2:
        return []
    return [Table("Runs by machine", ["machine", "runs"], [[name, count] for name, count in machines.items()])]


def curves_table(found: result.Result) -> Table:
    """The first and the best evaluations of all runs, over env steps and wall-clock time."""
    columns = [
        "task",
        "system",
        "seed",
        "threshold",
        "reached after, s",
        "env steps",
        "best evaluation",
        "env steps done",
    ]
    rows: list[list[Cell]] = []
    for title, runs, threshold, _ in by_task(found):
        for run in runs:
            first = None if threshold is None else first_reached(run.returns, threshold)
            reached = [
                None if first is None else round(run.column(name)[first]) for name in ("wall_seconds", "env_steps")
            ]
            best = max(run.returns, default=None)
            done = max([*run.column("env_steps"), (run.last or {}).get("env_steps", 0)])
            level = None if threshold is None else f"{threshold:,g}"
            rows.append([title.partition(",")[0], run.label, str(run.seed), level, *reached, best, done])
    return Table("", columns, rows)
