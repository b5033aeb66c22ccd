"""An arm reaches a goal that each episode draws: ``saltus train examples/reach.py:Reach``."""

from dataclasses import dataclass

import torch

from saltus import Task


@dataclass
class Reach(Task):
    """The mocap body `goal` marks the goal; it moves nothing and shows in videos."""

    mjcf = """<mujoco>
      <option timestep="0.005" gravity="0 0 0"/>
      <worldbody>
        <body name="goal" mocap="true"><geom size="0.03" rgba="1 0 0 1" contype="0" conaffinity="0"/></body>
        <body><joint name="shoulder" axis="0 0 1" damping="0.5"/>
          <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.03" contype="0" conaffinity="0"/>
          <body pos="0.4 0 0"><joint name="elbow" axis="0 0 1" damping="0.5" range="-150 150"/>
            <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.03" contype="0" conaffinity="0"/>
            <site name="tip" pos="0.4 0 0"/>
          </body>
        </body>
      </worldbody>
      <actuator><motor joint="shoulder" ctrlrange="-3 3"/><motor joint="elbow" ctrlrange="-3 3"/></actuator>
    </mujoco>"""
    fields = ("qpos", "qvel", "site_xpos")
    frame_skip: int = 4
    max_episode_steps: int = 100

    def reset(self, num_envs, generator):
        """Draw joint angles and a goal within reach."""
        qpos, qvel = super().reset(num_envs, generator)
        angle = torch.empty_like(qpos[:, 0]).uniform_(-3.1, 3.1, generator=generator)
        radius = torch.empty_like(angle).uniform_(0.2, 0.75, generator=generator)
        goal = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros_like(angle)], dim=-1)
        qpos = qpos + torch.empty_like(qpos).uniform_(-1, 1, generator=generator)
        return {"qpos": qpos, "qvel": qvel, "mocap_pos": goal[:, None], "goal": goal}

    def observation(self, state):
        """Angles, velocities, the goal and its offset from the tip."""
        offset = state.goal - state.site("tip").xpos
        return torch.cat([state.qpos.cos(), state.qpos.sin(), 0.1 * state.qvel, state.goal[:, :2], offset[:, :2]], -1)

    def reward(self, state, action, next_state):
        """Minus the distance of the tip from the goal."""
        distance = (next_state.site("tip").xpos - state.goal).norm(dim=-1)
        return -distance - 0.001 * action.square().sum(dim=-1), {"distance": distance}
