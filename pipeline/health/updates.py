"""Detectors on updates: an exploding critic, targets out of range, a temperature at its floor or exploding."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Iterator

from pipeline.health.detector import Detector, Row, State

# Critics. Their error grows with the returns, by less than a factor of 50 in good runs; a single batch may exceed that.
CRITIC_ROWS = 3
CRITIC_GROWTH = 100.0
CRITIC_MEDIAN_ROWS = 10  # fewer rows have no median worth the name
CRITIC_REWARDS = 1000.0  # a value is about 100 rewards at a discount of 0.99, 200 at 0.995

# Targets of categorical critics. The default recipe clips some at first, when the entropy bonus is large.
CLIPPED_ROWS = 10
CLIPPED_SHARE = 0.3

# Temperature. With scaled rewards it falls to 3e-5 in good runs, and holds the entropy at its target there.
ALPHA_ROWS = 10
ALPHA_FLOOR = 1e-6
ALPHA_GROWTH = 100.0

# Scaled rewards: returns are about 1, at most 10 after a rare success, and come from about 100 steps.
SCALED_RETURN = 10.0
SCALED_REWARD = 0.1


class RewardScale:
    """The largest rewards of any row, as magnitudes; of scaled rewards, what the scaling makes of them.

    Attributes:
        per_step: mean reward per step.
        per_episode: mean return.
    """

    def __init__(self, scaled: bool) -> None:
        self._scaled = scaled
        self.per_step, self.per_episode = (SCALED_REWARD, SCALED_RETURN) if scaled else (0.0, 0.0)

    def update(self, row: Row) -> None:
        """Add the episodes of a row of metrics."""
        if row["episode_length"] > 0 and not self._scaled:
            self.per_episode = max(self.per_episode, abs(row["episode_return"]))
            self.per_step = max(self.per_step, abs(row["episode_return"] / row["episode_length"]))


class Critics(Detector):
    """The error of critics with squared errors is far above its median, or above all that rewards and entropy explain.

    Args:
        scaled_rewards: rewards are scaled, so that those of the rows do not explain the error.
    """

    def __init__(self, scaled_rewards: bool) -> None:
        super().__init__()
        self._recent: deque[float] = deque(maxlen=CRITIC_ROWS)
        self._sorted: list[float] = []
        self._scaled = scaled_rewards
        self._rewards = RewardScale(scaled_rewards)
        self._entropy = 0.0  # largest share of the entropy in a value, per step

    def metrics(self, row: Row) -> str:
        self._rewards.update(row)
        self._entropy = max(self._entropy, abs(row["alpha"] * row["entropy"]))
        error = row["td_error"]
        if math.isnan(error):
            return ""
        self._recent.append(error)
        limit, reason = min(self._limits(), default=(math.inf, ""))
        insort(self._sorted, error)
        exceeded = len(self._recent) == CRITIC_ROWS and min(self._recent) > limit
        if not self.state.begins(exceeded, min(self._recent) < limit / 10):
            return ""
        return (
            f"the critics' error explodes: td_error is {error:.3g} at {row['env_steps']:,.0f} env steps, and {reason}. "
            "A lower --critic-lr often helps"
        )

    def _limits(self) -> Iterator[tuple[float, str]]:
        """The limits of the error, each with its reason. A first rare reward may exceed the median, not the return."""
        if (count := len(self._sorted)) >= CRITIC_MEDIAN_ROWS:
            median = self._sorted[count // 2]
            yield max(CRITIC_GROWTH * median, self._rewards.per_episode), f"its median before is {median:.3g}"
        if self._rewards.per_step > 0 and not self._scaled:
            explained = self._rewards.per_step + self._entropy
            yield CRITIC_REWARDS * explained, f"reward and entropy are at most {explained:.3g} per step"


class ClippedTargets(Detector):
    """The targets of categorical critics stay out of the critics' range.

    Args:
        bounded_rewards: rewards are scaled so that returns lie in the range, but for the entropy bonus.
    """

    def __init__(self, value_range: float, bounded_rewards: bool) -> None:
        super().__init__()
        self._range, self._bounded = value_range, bounded_rewards
        self._recent: deque[float] = deque(maxlen=CLIPPED_ROWS)

    def metrics(self, row: Row) -> str:
        share = row["clipped_targets"]
        if math.isnan(share):
            return ""
        self._recent.append(share)
        exceeded = len(self._recent) == CLIPPED_ROWS and min(self._recent) > CLIPPED_SHARE
        if not self.state.begins(exceeded, max(self._recent) < CLIPPED_SHARE):
            return ""
        return (
            f"returns leave the critics' range, {-self._range:g} to {self._range:g}: clipped_targets is {share:.2g} at "
            f"{row['env_steps']:,.0f} env steps, and above {CLIPPED_SHARE:g} in the last {CLIPPED_ROWS} rows. A larger "
            f"--value-range or {'a lower --alpha-init' if self._bounded else '--reward-scaling bounded'} often helps"
        )


class Temperature(Detector):
    """The temperature no longer holds the entropy at its target, or outweighs the rewards."""

    def __init__(self, target_entropy: float, alpha_init: float, scaled_rewards: bool):
        super().__init__()
        self._exploding = State()
        self._target = target_entropy
        self._initial = alpha_init
        self._tiny: deque[bool] = deque(maxlen=ALPHA_ROWS)
        self._huge: deque[bool] = deque(maxlen=ALPHA_ROWS)
        self._rewards = RewardScale(scaled_rewards)

    def metrics(self, row: Row) -> str:
        self._rewards.update(row)
        alpha, entropy = row["alpha"], row["entropy"]
        if math.isnan(alpha):
            return ""
        far = abs(entropy - self._target) > max(1.0, abs(self._target) / 2)
        self._tiny.append(alpha < ALPHA_FLOOR and far)
        self._huge.append(alpha > ALPHA_GROWTH * max(self._initial, self._rewards.per_step))
        numbers = (
            f"alpha is {alpha:.3g} and the entropy {entropy:.3g}, with a target of {self._target:.3g}, at "
            f"{row['env_steps']:,.0f} env steps"
        )
        if self.state.begins(_always(self._tiny), not any(self._tiny)):
            return f"the temperature vanishes: {numbers}. A lower --alpha-lr or another --target-entropy often helps"
        if self._exploding.begins(_always(self._huge), not any(self._huge)):
            return f"the temperature explodes: {numbers}. A lower --alpha-lr or --target-entropy often helps"
        return ""


def _always(flags: deque[bool]) -> bool:
    return len(flags) == ALPHA_ROWS and all(flags)
