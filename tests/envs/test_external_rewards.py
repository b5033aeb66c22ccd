"""Terms of the reward of environments of other libraries: the infos of their steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from external_helpers import Paid, TensorWalks, actions, external, sync
from gymnasium.vector import AutoresetMode

from envs.statistics import EpisodeStatistics

SAME, NEXT, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED


@pytest.mark.parametrize("mode", [SAME, NEXT, DISABLED])
def test_reward_terms_are_the_numbers_of_the_infos(mode: AutoresetMode) -> None:
    """A world without one of the first step's terms adds nothing to its total."""
    env = external(sync(mode, cls=Paid))
    env.reset()
    total, rare = 0.0, 0
    for action in actions(40):
        transition, _ = env.step(action)
        assert env.reward_terms.keys() == {"reward_x", "reward_rare"}
        torch.testing.assert_close(env.reward_terms["reward_x"], transition["next", "observation"][:, 0])
        first = transition["next", "observation"][:, 1] == 1
        assert torch.equal(env.reward_terms["reward_rare"].isfinite(), first)
        total, rare = total + float(env.reward_terms["reward_x"].sum()), rare + int(first.sum())
    totals = env.statistics()
    assert totals["reward_terms/reward_x"] == pytest.approx(total)
    assert totals["reward_terms/reward_rare"] == rare


def test_a_reward_term_of_a_later_step_is_named_once(recwarn: pytest.WarningsRecorder) -> None:
    class Late(TensorWalks):
        def step(self, actions: Any) -> Any:
            *stepped, infos = super().step(actions)
            late = {"reward_late": self.obs[:, 0].clone()} if (self.obs[:, 1] > 1).any() else {}
            return *stepped, {**infos, **late, "reward_x": self.obs[:, 0].clone()}

    env = external(Late())
    env.reset()
    for action in actions(5):
        env.step(action)
    (warning,) = recwarn
    assert "mine gives the reward terms reward_late in a later step than the first" in str(warning.message)
    assert env.reward_terms.keys() == {"reward_x"}


def test_statistics_of_other_terms_repeat_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    statistics = EpisodeStatistics("mine", torch.device("cpu"), ())
    one, zero = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    statistics.add_failures(zero, one, zero)
    first = statistics.read()
    other = statistics.with_terms(["reward_x"])
    assert other.read() == {**first, "reward_terms/reward_x": 0.0}
    assert len(recwarn) == 1


def test_reward_terms_of_tensors_need_no_masks() -> None:
    class Whole(TensorWalks):
        """The infos of all worlds, and those of their last steps beside them, as ManiSkill gives them."""

        def step(self, actions: Any) -> Any:
            *stepped, infos = super().step(actions)
            ended = infos["_final_obs"]
            final = {"final_info": {"reward_x": self.final[:, 0].clone()}, "_final_info": ended}
            return *stepped, {**infos, **final, "reward_x": self.obs[:, 0].clone()}

    env = external(Whole())
    env.reset()
    for action in actions(20):
        transition, _ = env.step(action)
        torch.testing.assert_close(env.reward_terms["reward_x"], transition["next", "observation"][:, 0])
