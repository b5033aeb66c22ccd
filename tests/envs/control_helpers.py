"""A model whose actuators have no control, several, or one."""

from __future__ import annotations

import torch

from envs import Task

ACTUATORS = """
    <dcmotor name="brake" joint="elbow" input="none" motorconst="0.1" resistance="1"/>
    <orientation name="servo" joint="shoulder" kp="10" {servo}/>
    <pid name="pid" joint="elbow" kp="10" kv="1" posrange="-0.5 1" {pid}/>
    <motor joint="wrist" gear="2" ctrlrange="-4 5"/>
"""

CONTROLS = f"""<mujoco>
  <worldbody>
    <body name="upper"><joint name="shoulder" type="ball" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/>
      <body name="lower" pos="0.3 0 0"><joint name="elbow" axis="0 1 0" range="-90 90" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/>
        <body name="hand" pos="0.3 0 0"><joint name="wrist" axis="0 1 0" damping="0.1"/><geom size="0.04"/></body>
      </body></body>
  </worldbody>
  <actuator>{ACTUATORS}</actuator>
</mujoco>"""

BOUNDED = CONTROLS.format(servo='ctrlrange="-3 3"', pid='velrange="-2 2"')
UNBOUNDED = CONTROLS.format(servo='input="quat"', pid="")
CONTROL_NAMES = ["servo rx", "servo ry", "servo rz", "pid pos", "pid vel", "wrist"]


class Controls(Task):
    """Observes its controls."""

    mjcf = BOUNDED
    fields = ("qpos", "qvel", "ctrl")

    def observation(self, state):
        return torch.cat([state.qvel, state.ctrl], dim=-1)

    def reward(self, state, action, next_state):
        return next_state.qvel[:, 0]
