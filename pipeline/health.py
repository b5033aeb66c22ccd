"""Health: says when training does not hold, from the rows of a run's tables."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

Row = Mapping[str, float]

# Fall of the evaluations. One bad evaluation between good ones is common and passes: means and medians of five tell it
# from a policy that is lost.
FALL_EVALUATIONS = 5
# A quarter of what was learned: steady runs on Hopper, HalfCheetah and Humanoid lose less than a fifth.
FALL = 0.25

# Episodes that end early. Hopper's and Humanoid's first evaluations last 70 to 200 of 1,000 steps; those of good runs
# pass a fifth of the limit before 300,000 env steps.
EARLY_LENGTH = 0.2
EARLY_ENV_STEPS = 300_000
EARLY_SHARE = 0.1  # of the run: the recipes of many worlds need more env steps

# Standing still. A slow gait earns other terms: Humanoid's slowest are 10% above the survive term, and their returns
# rise by more than 1% in six evaluations.
STILL_EVALUATIONS = 6
STILL_BAND = 0.1
STILL_RISE = 0.01
STILL_SPREAD = 0.25  # a survive term falls to 0.8 per step in episodes of five steps

# Critics. Their error grows with the returns, by less than a factor of 50 in good runs; a single batch may exceed that.
CRITIC_ROWS = 3
CRITIC_GROWTH = 100.0
CRITIC_MEDIAN_ROWS = 10  # fewer rows have no median worth the name
CRITIC_REWARDS = 1000.0  # a value is about 100 rewards at a discount of 0.99, 200 at 0.995

# Temperature. With scaled rewards it falls to 3e-5 in good runs, and holds the entropy at its target there.
ALPHA_ROWS = 10
ALPHA_FLOOR = 1e-6
ALPHA_GROWTH = 100.0

LAST_BELOW_BEST = 0.1  # evaluations of ten episodes differ by less, for one steady policy


class Health:
    """Watches a run's rows; returns a message for each state that begins.

    A state that ends and begins again gives another message. Everything depends on the rows alone: the rows of a run's
    tables, in their order, restore it.

    Args:
        time_limit: the task's `max_episode_steps`.
        progress: the share of the run that is done, of its env steps and seconds so far.
        target_entropy: target entropy of the policy.
        alpha_init: initial temperature.
        learns_temperature: whether the temperature is learned; a fixed one gives no warning.

    Attributes:
        last: the last row of evaluation results; empty before the first.
        nothing_learned: every world-step so far failed.
    """

    def __init__(
        self,
        time_limit: int,
        progress: Callable[[float, float], float],
        target_entropy: float,
        alpha_init: float,
        learns_temperature: bool = True,
    ):
        self._failures = _Failures()
        self._detectors = (
            self._failures,
            _Fall(),
            _EarlyEnds(time_limit, progress),
            _StandingStill(time_limit),
            _Critics(),
            *([_Temperature(target_entropy, alpha_init)] if learns_temperature else []),
        )
        self.last: Row = {}

    @property
    def nothing_learned(self) -> bool:
        return self._failures.state.holds

    def metrics(self, row: Row) -> list[str]:
        """Messages after a row of training metrics."""
        return [message for detector in self._detectors if (message := detector.metrics(row))]

    def evaluation(self, row: Row) -> list[str]:
        """Messages after a row of evaluation results."""
        self.last = row
        return [message for detector in self._detectors if (message := detector.evaluation(row))]


def describe_policies(best: Row, last: Row, run_dir: object, last_is_saved: bool = True) -> str:
    """Returns of the best and the last evaluation, and the commands that play these policies.

    Args:
        best: ``return_mean`` and ``env_steps`` of the best policy.
        last: those of the last evaluation.
        run_dir: the run's directory.
        last_is_saved: whether the last checkpoint holds the policy of the last evaluation.
    """
    line = f"best evaluation: {_describe(best)}"
    if best["env_steps"] == last["env_steps"]:
        return f"{line}, the last one; `saltus evaluate {run_dir}` plays more episodes with that policy"
    line += f"; last: {_describe(last)}; `saltus evaluate {run_dir}` plays "
    fell = last["return_mean"] < best["return_mean"] - LAST_BELOW_BEST * abs(best["return_mean"])
    if fell and last_is_saved:
        return f"{line}the best policy, with `--policy last` the last one"
    return f"{line}more episodes with the best policy"


def _describe(row: Row) -> str:
    return f"{row['return_mean']:.1f} after {row['env_steps']:,.0f} env steps"


@dataclass
class _State:
    """Whether a state holds. It begins and ends at different values, so that it does not flicker between them."""

    holds: bool = False

    def begins(self, entered: bool, left: bool) -> bool:
        """Update; return whether the state begins now."""
        begins = entered and not self.holds
        self.holds = entered or (self.holds and not left)
        return begins


class _Detector:
    """Finds one state. The methods return a message if it begins, else an empty string."""

    def __init__(self) -> None:
        self.state = _State()

    def metrics(self, row: Row) -> str:
        return ""

    def evaluation(self, row: Row) -> str:
        return ""


class _Failures(_Detector):
    """Every world-step failed, so that rewards are 0 and observations do not change."""

    def metrics(self, row: Row) -> str:
        failed = row["unstable"] + row["nonfinite"] >= row["env_steps"]
        if not self.state.begins(failed, not failed):
            return ""
        return (
            f"every one of {row['env_steps']:,.0f} world-steps failed (unstable: {row['unstable']:,.0f}, not finite: "
            f"{row['nonfinite']:,.0f}): nothing can be learned from them. Check the task's functions, or lower its "
            "model's timestep"
        )


class _Fall(_Detector):
    """The latest evaluations are far below the level of earlier ones, the highest median of five in a row."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: deque[Row] = deque(maxlen=2 * FALL_EVALUATIONS)
        self._lowest = math.inf
        self._best: Row = {"return_mean": -math.inf}
        self._level: Row = {"return_mean": -math.inf, "return_low": -math.inf}

    def evaluation(self, row: Row) -> str:
        self._rows.append(row)
        self._lowest = min(self._lowest, row["return_mean"])
        if len(self._rows) < 2 * FALL_EVALUATIONS:
            return ""
        earlier, recent = list(self._rows)[:FALL_EVALUATIONS], list(self._rows)[FALL_EVALUATIONS:]
        self._level = max(self._level, sorted(earlier, key=_return_mean)[FALL_EVALUATIONS // 2], key=_return_mean)
        self._best = max(self._best, *earlier, key=_return_mean)
        level, now = self._level["return_mean"], _mean(recent, "return_mean")
        fall, scale = level - now, max(abs(level), level - self._lowest)
        certain = _mean(recent, "return_high") < self._level["return_low"]  # not the noise of few episodes
        if not self.state.begins(fall > FALL * scale and certain, fall < FALL / 2 * scale):
            return ""
        return (
            f"the last {FALL_EVALUATIONS} evaluations, since {recent[0]['env_steps']:,.0f} env steps, return "
            f"{now:.1f} on average, far below the best one, {_describe(self._best)}. A lower --actor-lr and "
            "--critic-lr often help; the best policy is kept"
        )


class _EarlyEnds(_Detector):
    """The episodes of every evaluation end long before the time limit."""

    def __init__(self, time_limit: int, progress: Callable[[float, float], float]):
        super().__init__()
        self._time_limit, self._progress = time_limit, progress
        self._longest = 0.0

    def evaluation(self, row: Row) -> str:
        self._longest = max(self._longest, row["length_mean"])  # a task that ends at its goal has long ones at first
        early = 0 < self._longest < EARLY_LENGTH * self._time_limit
        done = self._progress(row["env_steps"], row["seconds"])
        late = row["env_steps"] >= EARLY_ENV_STEPS and done >= EARLY_SHARE
        if not self.state.begins(early and late, left=False):
            return ""
        return (
            f"after {row['env_steps']:,.0f} env steps episodes still end early: mean length {row['length_mean']:.0f} "
            f"of {self._time_limit:,} in the last evaluation, never above {self._longest:.0f}. A larger --utd-ratio "
            "often helps; else check the task's `terminated` and initial states"
        )


class _StandingStill(_Detector):
    """Episodes last to the time limit, and return one constant term of the reward, without a rise.

    A term is constant if its mean per step is about the same in all rows, also in those of random actions. A task with
    a single term, such as InvertedPendulum-v5, pays for nothing else.
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
            f"limit and the return, {_mean(self._recent, 'return_mean'):.1f}, equals the reward's term "
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
        rise = _mean(rows[half:], "return_mean") - _mean(rows[:half], "return_mean")
        for name, (low, high) in self._terms.items():
            value = max(low, high, key=abs)
            total = value * self._time_limit
            constant = high - low < STILL_SPREAD * abs(value)
            returned = all(abs(row["return_mean"] - total) <= STILL_BAND * abs(total) for row in rows)
            if constant and returned and rise < STILL_RISE * abs(total):
                return name, value
        return None


class _Critics(_Detector):
    """The critics' error is far above its median, or above all that the rewards can explain."""

    def __init__(self) -> None:
        super().__init__()
        self._recent: deque[float] = deque(maxlen=CRITIC_ROWS)
        self._sorted: list[float] = []
        self._rewards = _RewardScale()

    def metrics(self, row: Row) -> str:
        self._rewards.update(row)
        error = row["td_error"]
        if math.isnan(error):
            return ""
        self._recent.append(error)
        limit, reason = min(self._limits())
        insort(self._sorted, error)
        exceeded = len(self._recent) == CRITIC_ROWS and min(self._recent) > limit
        if not self.state.begins(exceeded, min(self._recent) < limit / 10):
            return ""
        return (
            f"the critics' error explodes: td_error is {error:.3g} at {row['env_steps']:,.0f} env steps, and {reason}. "
            "A lower --critic-lr often helps"
        )

    def _limits(self) -> Iterator[tuple[float, str]]:
        """The limits of the error, each with its reason. Infinite without rewards, or with few rows."""
        count, reward = len(self._sorted), self._rewards.largest
        median = self._sorted[count // 2] if count >= CRITIC_MEDIAN_ROWS else math.inf
        yield CRITIC_GROWTH * median, f"its median before is {median:.3g}"
        yield CRITIC_REWARDS * (reward or math.inf), f"the mean reward per step is at most {reward:.3g}"


class _Temperature(_Detector):
    """The temperature no longer holds the entropy at its target, or outweighs the rewards."""

    def __init__(self, target_entropy: float, alpha_init: float):
        super().__init__()
        self._exploding = _State()
        self._target = target_entropy
        self._initial = alpha_init
        self._tiny: deque[bool] = deque(maxlen=ALPHA_ROWS)
        self._huge: deque[bool] = deque(maxlen=ALPHA_ROWS)
        self._rewards = _RewardScale()

    def metrics(self, row: Row) -> str:
        self._rewards.update(row)
        alpha, entropy = row["alpha"], row["entropy"]
        if math.isnan(alpha):
            return ""
        far = abs(entropy - self._target) > max(1.0, abs(self._target) / 2)
        self._tiny.append(alpha < ALPHA_FLOOR and far)
        self._huge.append(alpha > ALPHA_GROWTH * max(self._initial, self._rewards.largest))
        numbers = (
            f"alpha is {alpha:.3g} and the entropy {entropy:.3g}, with a target of {self._target:.3g}, at "
            f"{row['env_steps']:,.0f} env steps"
        )
        if self.state.begins(_always(self._tiny), not any(self._tiny)):
            return f"the temperature vanishes: {numbers}. A lower --alpha-lr or another --target-entropy often helps"
        if self._exploding.begins(_always(self._huge), not any(self._huge)):
            return f"the temperature explodes: {numbers}. A lower --alpha-lr or --target-entropy often helps"
        return ""


class _RewardScale:
    """The largest mean reward per step of any row, as a magnitude."""

    def __init__(self) -> None:
        self.largest = 0.0

    def update(self, row: Row) -> None:
        if row["episode_length"] > 0:
            self.largest = max(self.largest, abs(row["episode_return"] / row["episode_length"]))


def _return_mean(row: Row) -> float:
    return row["return_mean"]


def _mean(rows: Iterable[Row], name: str) -> float:
    return fmean(row[name] for row in rows)


def _always(flags: deque[bool]) -> bool:
    return len(flags) == ALPHA_ROWS and all(flags)
