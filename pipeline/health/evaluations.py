"""Detectors on evaluations: a fall, episodes that end early, a policy that stands still."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, variance

from pipeline.health.detector import Detector, Progress, Row, mean
from pipeline.numbers import describe_return

# Fall of the evaluations. One bad evaluation between good ones is common and passes: means and medians of five tell it
# from a policy that is lost. A third of a short run's evaluations decides, at least three, if they have a few episodes.
FALL_EVALUATIONS = 5
FALL_FEWEST = 3
# A quarter of what was learned: steady runs on Hopper, HalfCheetah and Humanoid lose less than a fifth.
FALL = 0.25
# Standard errors between two means. One in 25 steady policies exceeds 4 in a run of 40 evaluations of one episode.
FALL_ERRORS = 5.0

# Episodes that end early. Hopper's and Humanoid's first evaluations last 70 to 200 of 1,000 steps; those of good runs
# pass a fifth of the limit before 300,000 env steps.
EARLY_LENGTH = 0.2
EARLY_ENV_STEPS = 300_000
EARLY_SHARE = 0.1  # of the run: the recipes of many worlds need more env steps
# Good runs of fewer env steps pass a fifth of the limit near their end.
EARLY_END_OF_RUN = 0.9
EARLY_FEWEST_ENV_STEPS = 50_000

# Standing still. A slow gait earns other terms: Humanoid's slowest are 10% above the survive term, and their returns
# rise by more than 1% in six evaluations.
STILL_EVALUATIONS = 6
STILL_BAND = 0.1
STILL_RISE = 0.01
STILL_SPREAD = 0.25  # a survive term falls to 0.8 per step in episodes of five steps
STILL_OTHER = 0.01  # random actions on Hopper earn more than that by moving forward


class Fall(Detector):
    """The latest evaluations are far below the level of earlier ones, the highest median of as many in a row."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._rows: list[Row] = []
        self._first = 0  # row of the level
        self._level: Row = {"return_mean": -math.inf}
        self._best: Row = self._level

    def evaluation(self, row: Row) -> str:
        self._rows.append(row)
        size = self._window(row)
        if len(self._rows) < 2 * size:
            return ""
        earlier, recent = self._rows[-2 * size : -size], self._rows[-size:]
        middle = sorted(earlier, key=_return_mean)[size // 2]
        if _return_mean(middle) > _return_mean(self._level):
            self._level, self._first = middle, len(self._rows) - 2 * size
        self._best = max(self._best, *earlier, key=_return_mean)
        level, now = self._level["return_mean"], mean(recent, "return_mean")
        lowest = min(map(_return_mean, self._rows))
        fall, scale = level - now, max(abs(level), level - lowest)
        limit = FALL * FALL_EVALUATIONS / size * scale  # more than one bad evaluation of them
        entered = fall > limit and _differ(self._rows[self._first : -size], recent)
        if not self.state.begins(entered, fall < limit / 2):
            return ""
        return (
            f"the last {size} evaluations, since {recent[0]['env_steps']:,.0f} env steps, return "
            f"{describe_return(now)} on average, far below the best one, {describe_evaluation(self._best)}. A lower "
            "--actor-lr and --critic-lr often help; the best policy is kept"
        )

    def _window(self, row: Row) -> int:
        """The number of evaluations that are compared, of those that the whole run will have."""
        done = max(self._progress(row["env_steps"], row["seconds"]), 1e-6)
        fewest = FALL_FEWEST if row["episodes"] > 2 else FALL_EVALUATIONS
        return max(fewest, min(FALL_EVALUATIONS, round(len(self._rows) / done) // 3))


def _differ(earlier: Sequence[Row], recent: Sequence[Row]) -> bool:
    """Whether the mean of earlier evaluations is above that of recent ones by more than noise.

    The noise is that of their episodes. If each has one episode, it is the spread of evaluations within both groups.
    """
    rows, groups = [*earlier, *recent], (earlier, recent)
    if all(row["episodes"] > 1 for row in rows):
        noise = fmean(row["return_std"] ** 2 / row["episodes"] for row in rows)
    else:
        squares = sum(variance(map(_return_mean, group)) * (len(group) - 1) for group in groups)
        noise = squares / (len(rows) - len(groups))
    error = math.sqrt(noise * (1 / len(earlier) + 1 / len(recent)))
    return mean(earlier, "return_mean") - mean(recent, "return_mean") > FALL_ERRORS * error


class EarlyEnds(Detector):
    """The episodes of training and of every evaluation end long before the time limit."""

    def __init__(self, time_limit: int, progress: Progress):
        super().__init__()
        self._time_limit, self._progress = time_limit, progress
        self._longest = 0.0  # a task that ends at its goal has long episodes at first, those of random actions

    def metrics(self, row: Row) -> str:
        self._longest = max(self._longest, row["episode_length"])
        return ""

    def evaluation(self, row: Row) -> str:
        self._longest = max(self._longest, row["length_mean"])
        early = 0 < self._longest < EARLY_LENGTH * self._time_limit
        done = self._progress(row["env_steps"], row["seconds"])
        late = row["env_steps"] >= EARLY_ENV_STEPS and done >= EARLY_SHARE
        ending = row["env_steps"] >= EARLY_FEWEST_ENV_STEPS and done >= EARLY_END_OF_RUN
        if not self.state.begins(early and (late or ending), left=False):
            return ""
        return (
            f"after {row['env_steps']:,.0f} env steps episodes still end early: mean length {row['length_mean']:.0f} "
            f"of {self._time_limit:,} in the last evaluation, never above {self._longest:.0f}. A larger --utd-ratio "
            "often helps; else check the task's `terminated` and initial states"
        )


class StandingStill(Detector):
    """Episodes last to the time limit, and return one constant term of the reward, without a rise.

    A term is constant if its mean per step is about the same in all rows, also in those of random actions. A task
    whose other terms are costs, such as InvertedDoublePendulum-v5, pays for nothing else. A constant cost ends with
    the episode, at a goal.
    """

    def __init__(self, time_limit: int):
        super().__init__()
        self._time_limit = time_limit
        self._terms: dict[str, tuple[float, float]] = {}  # lowest and highest mean per step
        self._recent: deque[Row] = deque(maxlen=STILL_EVALUATIONS)

    def metrics(self, row: Row) -> str:
        for name, value in row.items():
            if name.startswith("reward_terms/") and math.isfinite(value):
                low, high = self._terms.get(name, (value, value))
                self._terms[name] = min(low, value), max(high, value)
        return ""

    def evaluation(self, row: Row) -> str:
        self._recent.append(row)
        found = self._constant_term()
        if not self.state.begins(found is not None, found is None) or found is None:
            return ""
        name, value = found
        return (
            f"the policy stands still: since {self._recent[0]['env_steps']:,.0f} env steps episodes last to the time "
            f"limit and the return, {describe_return(mean(self._recent, 'return_mean'))}, equals the reward's term "
            f"{name.removeprefix('reward_terms/')} ({value:.3g} per step). If the task asks for more, another "
            "--seed or a smaller weight of that term often helps"
        )

    def _constant_term(self) -> tuple[str, float] | None:
        """The constant term that the recent evaluations return, and its value per step."""
        if len(self._recent) < STILL_EVALUATIONS or len(self._terms) < 2:
            return None
        if not all(row["length_mean"] >= self._time_limit for row in self._recent):
            return None
        half = STILL_EVALUATIONS // 2
        rows = list(self._recent)
        rise = mean(rows[half:], "return_mean") - mean(rows[:half], "return_mean")
        for name, (low, high) in self._terms.items():
            value = max(low, high, key=abs)
            total = value * self._time_limit
            constant = high - low < STILL_SPREAD * abs(value)
            returned = all(abs(row["return_mean"] - total) <= STILL_BAND * abs(total) for row in rows)
            other = max(most for term, (_, most) in self._terms.items() if term != name)
            asks_for_more = value < 0 or other > STILL_OTHER * value
            if constant and returned and asks_for_more and rise < STILL_RISE * abs(total):
                return name, value
        return None


def describe_evaluation(row: Row) -> str:
    """Mean return and env steps of an evaluation."""
    return f"{describe_return(row['return_mean'])} after {row['env_steps']:,.0f} env steps"


def _return_mean(row: Row) -> float:
    return row["return_mean"]
