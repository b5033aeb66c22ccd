"""Models whose bookkeeping of sleep or IPC is not in the state: `check`, `profile` and `randomize` accept them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mujoco
import pytest
import torch
from check_helpers import CART

import envs
from envs import Task, draw_fields, scale
from envs.physics.computed_fields import require_computed
from pipeline.check.check import check
from pipeline.profile import roofs
from saltus import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:the model sets <flag")

FLAGS = {
    "sleep": '<option timestep="0.01"><flag sleep="enable"/></option>',
    "ipc": '<option timestep="0.01" integrator="discrete"><flag ipc="enable"/></option>',
}


def task_with(flag: str) -> type[Task]:
    class Flagged(Task):
        mjcf = CART.format(actuators="").replace('<option timestep="0.01"/>', FLAGS[flag])

        def observation(self, state: Any) -> torch.Tensor:
            return torch.cat([state.qpos, state.qvel], dim=-1)

        def reward(self, state: Any, action: torch.Tensor, next_state: Any) -> Any:
            return next_state.qpos[:, 0]

        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
            return draw_fields(self.model, num_envs, generator, scale("body_mass", 1, 2, "cart"))

    return Flagged


@pytest.mark.parametrize("flag", FLAGS)
def test_check_rolls_out_and_warns_of_the_flag_only(flag: str) -> None:
    result = check(task_with(flag), {}, num_envs=4, steps=5, seed=0)
    severe = [finding.text for finding in result.findings if finding.severity != "note"]
    assert [text.partition(":")[0] for text in severe] == [f'the model sets <flag {flag}="enable"/>']
    assert result.rollout is not None
    assert result.rollout.bare_steps_per_second > 0


@pytest.mark.parametrize("flag", FLAGS)
def test_constants_follow_the_fields_that_are_drawn(flag: str) -> None:
    env = envs.make(task_with(flag), 3)
    for world in range(3):
        model = env.physics.world_model(world)
        assert model.body_mass[1] > env.model.body_mass[1]
        assert model.body_subtreemass[1] == model.body_mass[1]
        assert model.dof_M0[0] == model.body_mass[1]


def test_profile_measures_the_bare_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "TURN", 0)
    env = envs.make(task_with("sleep"), 2)
    env.reset()
    run: Any = SimpleNamespace(env=env, config=SimpleNamespace(num_threads=1), device=torch.device("cpu"))
    assert roofs._bare_batch(run)() > 0


def test_fields_of_bodies_that_sleep_at_the_start_count_as_computed() -> None:
    model = mujoco.MjModel.from_xml_string("""<mujoco><option><flag sleep="enable"/></option>
      <worldbody><geom type="plane" size="9 9 1"/>
        <body pos="0 0 .1" sleep="init"><freejoint/><geom size=".1"/></body></worldbody></mujoco>""")
    require_computed(model, ("geom_xpos", "subtree_com", "qfrc_bias"))
    with pytest.raises(SaltusError, match="steps of this model do not compute subtree_linvel"):
        require_computed(model, ("subtree_linvel",))
