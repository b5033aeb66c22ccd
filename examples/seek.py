"""A puck seeks a goal that it measures with noise: ``saltus train examples/seek.py:Seek``."""

from dataclasses import dataclass

import torch

from saltus import Task


@dataclass
class Seek(Task):
    """The policy sees a new measurement of the goal at each step, the critics the goal itself.

    A measurement says little about the next one. The goal tells the critics how actions pay off later.
    """

    mjcf = """<mujoco>
      <option timestep="0.01" gravity="0 0 0"/>
      <worldbody>
        <light pos="0 0 3" diffuse="0.3 0.3 0.3" specular="0 0 0"/><camera name="track" pos="0 0 3.5"/>
        <geom type="plane" size="2 2 0.1" pos="0 0 -0.1" rgba="0.4 0.5 0.6 1"/>
        <body name="goal" mocap="true"><geom size="0.06" rgba="1 0 0 1" contype="0" conaffinity="0"/></body>
        <body name="puck">
          <joint name="x" type="slide" axis="1 0 0" damping="2"/><joint name="y" type="slide" axis="0 1 0" damping="2"/>
          <geom type="cylinder" size="0.1 0.02" mass="1" rgba="0 0.4 1 1" contype="0" conaffinity="0"/>
        </body>
      </worldbody>
      <actuator><motor joint="x" ctrlrange="-4 4"/><motor joint="y" ctrlrange="-4 4"/></actuator>
    </mujoco>"""
    frame_skip: int = 5
    max_episode_steps: int = 100
    noise_std: float = 1.0  # standard deviation of a measurement; the goal is within -1 and 1
    privileged: bool = True  # False: the critics see what the policy sees

    def reset(self, num_envs, generator):
        """Draw a goal, and the noise of the first measurement."""
        goal = torch.empty_like(self.qpos0.repeat(num_envs, 1)).uniform_(-1, 1, generator=generator)
        noise = torch.empty_like(goal).normal_(generator=generator)
        return {"mocap_pos": torch.nn.functional.pad(goal, (0, 1))[:, None], "goal": goal, "noise": noise}

    def advance(self, state, action, generator):
        """Draw the noise of the next measurement."""
        return {"noise": torch.empty_like(state.noise).normal_(generator=generator)}

    def observation(self, state):
        """Position, velocity and measurement; for the critics also the goal."""
        measured = state.goal + self.noise_std * state.noise
        groups = {"policy": torch.cat([state.qpos, state.qvel, measured], dim=-1), "critic": state.goal}
        return groups if self.privileged else groups["policy"]

    def reward(self, state, action, next_state):
        """Minus the distance from the goal."""
        return -(next_state.qpos - state.goal).norm(dim=-1)
