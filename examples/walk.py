"""A quadruped follows velocity commands, by servos around a keyframe's pose: ``saltus train examples/walk.py:Walk``."""

from dataclasses import dataclass

import torch

from saltus import Task

LEG = """<body pos="{x} {y} 0">
  <joint name="hip{i}" axis="0 1 0" damping="0.5" range="-60 60"/>
  <geom type="capsule" fromto="0 0 0 0 0 -0.2" size="0.03" mass="0.3"/>
  <body pos="0 0 -0.2"><joint name="knee{i}" axis="0 1 0" damping="0.5" range="-120 0"/>
    <geom type="capsule" fromto="0 0 0 0 0 -0.2" size="0.025" mass="0.2" friction="1.2"/></body></body>"""
LEGS = "".join(LEG.format(x=0.2 - 0.4 * (i // 2), y=0.12 - 0.24 * (i % 2), i=i) for i in range(4))
SERVOS = "".join(f'<position joint="{joint}{i}" kp="40"/>' for i in range(4) for joint in ("hip", "knee"))


@dataclass
class Walk(Task):
    """Commands are forward velocities in m/s. The servos' targets are the pose of the keyframe, plus the action."""

    mjcf = f"""<mujoco><option timestep="0.005"/>
      <worldbody><geom type="plane" size="50 50 0.1"/>
        <body name="trunk" pos="0 0 0.36"><freejoint/><geom type="box" size="0.25 0.1 0.05" mass="4"/>{LEGS}</body>
      </worldbody>
      <keyframe><key name="stand" qpos="0 0 0.36 1 0 0 0 {"0.5 -1 " * 4}" ctrl="{"0.5 -1 " * 4}"/></keyframe>
      <actuator>{SERVOS}</actuator></mujoco>"""
    home, settle_steps, action_low, action_high = "stand", 200, -0.5, 0.5
    frame_skip: int = 4
    max_episode_steps: int = 250

    def reset(self, num_envs, generator):
        qpos, _ = super().reset(num_envs, generator)
        qpos[:, 7:] += torch.empty_like(qpos[:, 7:]).uniform_(-0.05, 0.05, generator=generator)
        command = torch.empty(num_envs, 1, device=qpos.device).uniform_(0, 0.8, generator=generator)
        return {"qpos": qpos, "command": command, "previous": torch.zeros(num_envs, 8, device=qpos.device)}

    def advance(self, state, action, generator):
        """Draw new commands, every two seconds on average, and keep the action."""
        new = torch.empty_like(state.command).uniform_(0, 0.8, generator=generator)
        changes = torch.rand(len(state), 1, generator=generator, device=new.device) < self.dt / 2.0
        return {"command": torch.where(changes, new, state.command), "previous": action}

    def control(self, state, action):
        return self.ctrl0 + action

    def observation(self, state):
        return torch.cat([state.qpos[:, 2:], 0.2 * state.qvel, state.command, state.previous], dim=-1)

    def reward(self, state, action, next_state):
        """How well the velocity follows the command that the action was chosen on, and the trunk points forward."""
        speed = (next_state.qpos[:, 0] - state.qpos[:, 0]) / self.dt
        tracking = torch.exp(-((speed - state.command[:, 0]) ** 2) / 0.05)
        straight = -2 * next_state.qpos[:, 5:7].square().sum(dim=-1)  # cosine of the trunk's turn, minus 1
        effort = 0.02 * (action - state.previous).square().sum(dim=-1)
        return tracking + straight - effort, {"tracking": tracking, "straight": straight}

    def terminated(self, state):
        return (state.qpos[:, 2] < 0.18) | (state.qpos[:, 5:7].square().sum(dim=-1) > 0.25)  # low, or turned by 60 deg
