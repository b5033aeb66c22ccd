"""An arm lifts a weight with muscles, from a keyframe at rest: ``saltus train examples/lift.py:Lift``."""

from dataclasses import dataclass

import torch

from saltus import Task


@dataclass
class Lift(Task):
    """Each joint has two muscles that pull against each other. `act` is how far each of them is activated."""

    mjcf = """<mujoco>
      <compiler><lengthrange uselimit="true"/></compiler>
      <option timestep="0.005" integrator="implicitfast"/>
      <default><geom type="capsule" size="0.03" contype="0" conaffinity="0"/><joint axis="0 -1 0" damping="2"/>
        <general ctrllimited="true" ctrlrange="0 1"/></default>
      <worldbody>
        <site name="target" pos="0.35 0 1.15" size="0.03" rgba="1 0 0 1"/>
        <body name="arm" pos="0 0 1"><joint name="shoulder" range="-60 120"/>
          <geom fromto="0 0 0 0 0 -0.3" mass="1.5"/>
          <body name="forearm" pos="0 0 -0.3"><joint name="elbow" range="0 140"/>
            <geom fromto="0 0 0 0 0 -0.25" mass="1"/>
            <geom type="sphere" pos="0 0 -0.3" size="0.05" mass="1"/><site name="hand" pos="0 0 -0.3"/>
          </body>
        </body>
      </worldbody>
      <actuator>
        <muscle name="shoulder_flexor" joint="shoulder" gear="-0.06" force="500"/>
        <muscle name="shoulder_extensor" joint="shoulder" gear="0.06" force="300"/>
        <muscle name="elbow_flexor" joint="elbow" gear="-0.04" force="500"/>
        <muscle name="elbow_extensor" joint="elbow" gear="0.04" force="300"/>
      </actuator>
      <keyframe><key name="rest" qpos="0 0.2" act="0.05 0.05 0.05 0.05"/></keyframe>
    </mujoco>"""
    fields = ("qpos", "qvel", "act", "site_xpos")
    home = "rest"
    frame_skip: int = 4
    max_episode_steps: int = 100

    def reset(self, num_envs, generator):
        """Begin near the keyframe's pose, with its activations."""
        qpos = self.qpos0.repeat(num_envs, 1)
        return {"qpos": qpos + torch.empty_like(qpos).uniform_(0, 0.3, generator=generator)}

    def observation(self, state):
        """Angles, velocities, activations, and the offset of the hand from the target."""
        offset = state.site("hand").xpos - state.site("target").xpos
        return torch.cat([state.qpos, 0.2 * state.qvel, state.act, offset[:, ::2]], dim=-1)

    def reward(self, state, action, next_state):
        """Minus the distance of the hand from the target, and the muscles' effort."""
        distance = (next_state.site("hand").xpos - next_state.site("target").xpos).norm(dim=-1)
        effort = next_state.act.square().mean(dim=-1)
        return -distance - 0.1 * effort, {"distance": distance, "effort": effort}
