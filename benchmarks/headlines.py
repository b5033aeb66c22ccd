"""The main figures: one line for each measurement, from the newest result of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Protocol

from benchmarks import environment, rates, training, update
from benchmarks.gpu.tables import comparisons
from benchmarks.result import Result
from benchmarks.statistics import interquartile_mean, median_time, worst_time
from benchmarks.table import Cell, Table, text
from benchmarks.training_run import Trained, present_names, task_name
from benchmarks.training_tables import by_system, times_to

# Options with a value that do not change what a run learns, or that a table shows in another way.
_NEUTRAL = (
    "--device", "--physics", "--num-threads", "--total-env-steps", "--eval-every", "--eval-episodes", "--log-every",
    "--checkpoint-every",
)  # fmt: skip
Headline = tuple[str, Result, str]


class ResultsOf(Protocol):
    """The results of a benchmark, the newest first, as `generated.Page.of` gives them."""

    def __call__(self, *benchmarks: str, gpu: bool | None = None) -> list[Result]: ...


def headlines(of: ResultsOf) -> Iterator[Headline]:
    """The measurement, its result file and its value, of each main figure."""
    seen: set[tuple[str, ...]] = set()
    for result in of("training", gpu=False):
        for title, runs, threshold, _ in training.by_task(result):
            if title.startswith("InvertedPendulum") or any(":" in run.task for run in runs):
                continue  # every recipe solves it; tasks of files are examples
            key = (title.partition(",")[0], *sorted(by_system(runs)))
            if runs and key not in seen:
                seen.add(key)
                yield from _training(result, key[0], runs, threshold)
    for result in of("training", gpu=True):
        for title, runs, threshold, _ in training.by_task(result):
            if len(runs) > 1:  # one seed shows little
                yield from _new(seen, _training(result, title.partition(",")[0], runs, threshold))
    for result in of("environment"):
        yield from _new(seen, _rates(result, environment.SALTUS, "env steps/s, {num_envs} worlds of {task}"))
    for result in of("update"):
        subject = result.settings.get("subject", update.SAC)
        if any(row["case"] in update.PEERS for row in result.measurements):
            yield from _new(
                seen, _rates(result, subject, f"updates/s of {subject}, sizes of {{task}}, batch {{batch_size}}")
            )
    for result in [one for one in of("gpu", gpu=True) if "note" not in one.settings]:
        yield from _new(seen, _gpu_steps(result))


def _new(seen: set[tuple[str, ...]], found: Iterator[Headline]) -> Iterator[Headline]:
    """The headlines whose measurement no newer result has."""
    for headline in found:
        if (headline[0],) not in seen:
            seen.add((headline[0],))
            yield headline


def _training(result: Result, task: str, runs: Sequence[Trained], threshold: float | None) -> Iterator[Headline]:
    settings = result.settings
    task = " ".join([task, *recipe_options(settings["options"])])
    limit = "" if settings["minutes"] is None else f", {settings['minutes']:g} minutes"
    cores = settings["cores_per_run"]
    setting = f"{limit} on {cores} {'core' if cores == 1 else 'cores'}"
    if result.hardware.get("gpu"):
        at_once = settings["runs_at_once"]
        setting += " and a GPU" if at_once == 1 else f" and 1/{at_once} of a GPU"
    systems = by_system(runs)
    if len(systems) > 1:
        finals = {name: _interquartile([run.last["mean"] for run in own if run.last]) for name, own in systems.items()}
        seeds = max(map(len, systems.values()))
        yield f"{task}, last policy{setting}, {_seeds(seeds)}", result, "; ".join(f"{n} {v}" for n, v in finals.items())
        return
    parts = []
    if threshold is not None:
        steps, seconds = times_to(runs, threshold, "env_steps"), times_to(runs, threshold, "wall_seconds")
        count = sum(when is not None for when in seconds)
        if count == 0 and len(runs) == 1:
            return  # docs/results.md has it
        parts.append(f"{count} of {len(runs)} reach {threshold:,g}")
        for name, found in (
            (("median", median_time), ("worst", worst_time)) if len(runs) > 1 else [("after", worst_time)]
        ):
            if (when := found(seconds)) is not None:
                parts.append(f"{name} {when:,.0f} s, {found(steps):,.0f} env steps")
    last = [run.last["mean"] for run in runs if run.last]
    if len(last) == 1:
        parts.append(f"last policy {text(float(last[0]))}")
    elif last:
        name = "mean" if len(last) < 4 else "interquartile mean"  # which leaves out nothing of three
        parts.append(f"last policies {_interquartile(last)} ({name}), {text(float(min(last)))} (worst)")
    yield f"{task}{setting}, {_seeds(len(runs))}", result, "; ".join(parts)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _interquartile(values: Sequence[float]) -> str:
    mean = interquartile_mean(values)
    return "none" if mean is None else text(mean.value)


def _rates(result: Result, subject: str, title: str) -> Iterator[Headline]:
    for task, rows in rates.by_task(result).items():
        if task not in environment.TARGETS:
            continue  # docs/results.md has the others
        values = {row["case"]: row["rates"] for row in rows if row.get("rates")}
        if subject not in values:
            continue
        peers = [name for name in (*environment.PEERS, *update.PEERS) if name in values]
        ratios = [f"{_ratio(values[subject], values[name]):.2f} times {name}" for name in peers]
        value = f"{text(float(median(values[subject])))}{': ' if ratios else ''}{', '.join(ratios)}"
        yield title.format(task=task, **result.settings), result, value


def _ratio(subject: Sequence[float], other: Sequence[float]) -> float:
    return median(mine / theirs for mine, theirs in zip(subject, other, strict=False))


def _gpu_steps(result: Result) -> Iterator[Headline]:
    rows = [row for row in result.measurements if row["section"] == "steps"]
    largest: dict[str, tuple[int, str, str]] = {}
    for table in comparisons(rows):
        task, _, worlds = table.title.partition(" worlds")[0].partition(", ")
        _, rate, *_ = table.rows[0]
        found = int(worlds), text(rate), task  # docs/gpu.md says how the ratio to the bare engine was measured
        largest[task] = max(largest.get(task, found), found)
    for count, value, task in largest.values():
        yield f"env steps/s, {count:,} worlds of {task}", result, value


def recipe_options(options: Sequence[str]) -> list[str]:
    """The options of a run that change what is learned: not its device, its length, or its intervals."""
    pairs = list(zip(options[::2], options[1::2], strict=False))
    return [word for pair in pairs if pair[0] not in _NEUTRAL for word in pair]


def longest(result: Result) -> Table:
    """The longest run of each preset and task in one result file."""
    columns = ["preset", "task", "longest run, env steps", "seeds"]
    steps: dict[tuple[str, str], dict[int, float]] = {}
    for preset, task, seed, row in _runs(result):
        done = max([*row["curve"].get("env_steps", []), (row["last"] or {}).get("env_steps", 0)], default=0)
        if done:
            steps.setdefault((preset, task), {})[seed] = done
    cells: list[list[Cell]] = [
        [f"`{preset}`", task, round(max(done.values())), len(done)] for (preset, task), done in steps.items()
    ]
    return Table("", columns, cells)


def _runs(result: Result) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Preset with its options, task, seed and measurement of each run of saltus."""
    for row in result.measurements:
        if result.benchmark == "recipes" and row["recipe"] != "stable-baselines3":
            yield present_names(row["recipe"]), task_name(result.settings["task"]), row["seed"], row
        elif row.get("system") == "saltus" and "missing" not in row:
            preset = " ".join([row["preset"] or "fast", *recipe_options(row["options"])])
            yield preset, task_name(row["task"]), row["seed"], row
