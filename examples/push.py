"""A mocap body pushes a box to a place: ``saltus train examples/push.py:Push``. The model has no actuators."""

from dataclasses import dataclass

import torch

from saltus import Task


@dataclass
class Push(Task):
    """A weld pulls the pusher, which collides with the box, to the mocap body, which the action moves."""

    mjcf = """<mujoco>
      <option timestep="0.005"/>
      <worldbody>
        <geom type="plane" size="1 1 0.1" friction="0.5"/>
        <site name="place" type="cylinder" pos="0.3 0 0" size="0.06 0.001" rgba="1 0 0 1"/>
        <body name="hand" mocap="true" pos="-0.2 0 0.05"/>
        <body name="pusher" pos="-0.2 0 0.05" gravcomp="1"><freejoint/><geom size="0.04" mass="0.5"/></body>
        <body name="box" pos="0 0 0.05">
          <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
          <geom type="cylinder" size="0.06 0.045" mass="0.3"/>
        </body>
      </worldbody>
      <default><joint damping="3"/></default>
      <equality><weld body1="hand" body2="pusher" solref="0.02 1"/></equality>
    </mujoco>"""
    fields = ("qpos", "qvel", "mocap_pos")
    action_low = (-0.02, -0.02)
    action_high = (0.02, 0.02)
    frame_skip: int = 8
    max_episode_steps: int = 80

    def reset(self, num_envs, generator):
        """Draw the place of the box; its joints are the last two."""
        qpos, qvel = super().reset(num_envs, generator)
        place = torch.empty_like(qpos[:, -2:]).uniform_(-0.1, 0.1, generator=generator)
        return {"qpos": torch.cat([qpos[:, :-2], place], dim=-1), "qvel": qvel}

    def control(self, state, action):
        """Move the hand in the plane, within a square."""
        place = (state.mocap_pos[:, 0, :2] + action).clamp(-0.5, 0.5)
        return {"mocap_pos": torch.cat([place, state.mocap_pos[:, 0, 2:]], dim=-1)[:, None]}

    def observation(self, state):
        """Places of the pusher, the hand and the box, and velocities."""
        hand = state.mocap_pos[:, 0, :2]
        return torch.cat([state.qpos[:, :2], hand, state.qpos[:, -2:], state.qvel[:, :2], state.qvel[:, -2:]], dim=-1)

    def reward(self, state, action, next_state):
        """Minus the distances of the box from (0.3, 0) and of the pusher from the box."""
        box, pusher = next_state.qpos[:, -2:], next_state.qpos[:, :2]
        distance = torch.stack([box[:, 0] - 0.3, box[:, 1]], dim=-1).norm(dim=-1)
        return -distance - 0.2 * (box - pusher).norm(dim=-1), {"distance": distance}
