"""Models for which `saltus new` writes tasks, and its refusals."""

from __future__ import annotations

import pytest
from control_helpers import UNBOUNDED as FREE_CONTROLS

from pipeline.new.command import new_task
from saltus.errors import SaltusError

FLOOR = '<geom name="floor" type="plane" size="5 5 1"/>'

# Servos on a trunk that floats 0.1 m above its standing height.
QUADRUPED = f"""<mujoco>
  <option timestep="0.004"/>
  <default><geom size="0.03"/><position kp="40" kv="1" ctrlrange="-1.5 1.5"/><joint damping="0.5"/></default>
  <worldbody>{FLOOR}
    <body name="trunk" pos="0 0 0.5"><freejoint name="root"/><geom type="box" size="0.2 0.1 0.05" mass="5"/>
      <camera name="track" mode="trackcom" pos="0 -2 0.5" xyaxes="1 0 0 0 0 1"/><site name="imu"/>
      {
    "".join(
        f'<body name="{name}" pos="{x} {y} 0"><joint name="{name}" axis="0 1 0" range="-60 60"/>'
        '<geom type="capsule" fromto="0 0 0 0 0 -0.27" mass="0.3"/></body>'
        for name, x, y in (("fl", 0.2, 0.1), ("fr", 0.2, -0.1), ("rl", -0.2, 0.1), ("rr", -0.2, -0.1))
    )
}
    </body></worldbody>
  <actuator>{"".join(f'<position name="{name}" joint="{name}"/>' for name in ("fl", "fr", "rl", "rr"))}</actuator>
  <sensor><gyro name="gyro" site="imu"/><accelerometer name="accelerometer" site="imu"/></sensor>
  <keyframe><key name="stand" qpos="0 0 0.4 1 0 0 0 0.1 0.1 0.1 0.1" ctrl="0.1 0.1 0.1 0.1"/></keyframe>
</mujoco>"""

ARM = """<mujoco>
  <worldbody><body name="upper"><joint name="shoulder" axis="0 1 0" range="-90 90" damping="1"/>
    <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/>
    <body name="lower" pos="0.3 0 0"><joint name="elbow" axis="0 1 0" range="-90 90" damping="1"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03"/><site name="tip" pos="0.3 0 0"/></body>
  </body></worldbody>
  <actuator><muscle name="flexor" joint="shoulder" force="50"/>
    <motor name="elbow" joint="elbow" gear="5" ctrlrange="-2 2"/></actuator>
  <sensor><framepos name="tip" objtype="site" objname="tip"/><jointvel joint="elbow"/></sensor>
</mujoco>"""

HAND = f"""<mujoco>
  <option timestep="0.005"/>
  <worldbody>{FLOOR}
    <body name="goal" mocap="true" pos="0.3 0 0.1"/>
    <body name="hand" mocap="true" pos="0 0 0.1"/>
    <body name="box" pos="0.3 0 0.05"><freejoint/><geom type="box" size="0.05 0.05 0.05"/></body>
    <body name="pusher" pos="0 0 0.1"><freejoint/><geom size="0.04"/>{{finger}}</body>
  </worldbody>
  <equality><weld body1="hand" body2="pusher"/></equality>
  {{actuator}}
</mujoco>"""
MOCAP = HAND.format(finger="", actuator="")
GRIPPER = HAND.format(
    finger='<body pos="0.05 0 0"><joint name="finger" damping="0.1"/><geom size="0.02"/></body>',
    actuator='<actuator><motor joint="finger" ctrlrange="-0.1 0.1"/></actuator>',
)

UNBOUNDED = f"""<mujoco>
  <worldbody>{FLOOR}<body pos="0 0 0.5"><joint name="a" axis="0 1 0" range="-30 90"/>
    <geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.03"/>
    <body pos="0.2 0 0"><joint name="b" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.03"/></body>
  </body></worldbody>
  <actuator><position name="servo" joint="a" kp="20"/><motor name="torque" joint="b"/>
    <motor name="bounded" joint="b" ctrlrange="-0.5 0.5"/></actuator>
</mujoco>"""

# A finger's servo on a hand that a mocap body pulls, in a file with a long name.
SERVO_HAND = HAND.format(
    finger='<body pos="0.05 0 0"><joint name="finger" damping="0.1"/><geom size="0.02"/></body>',
    actuator='<actuator><position joint="finger" kp="2"/></actuator><keyframe><key ctrl="0.1" '
    'mpos="0.3 0 0.1 0 0 0.1" qpos="0.3 0 0.05 1 0 0 0 0 0 0.1 1 0 0 0 0"/></keyframe>',
)
LONG_NAME = "a_model_whose_name_is_long_enough_for_two_lines"

MODELS = {
    LONG_NAME: SERVO_HAND,
    "quadruped": QUADRUPED,
    "arm": ARM,
    "mocap": MOCAP,
    "gripper": GRIPPER,
    "unbounded": UNBOUNDED,
    "controls": FREE_CONTROLS,
}


def assert_refused(message: str, *arguments: object) -> None:
    with pytest.raises(SaltusError) as caught:
        new_task([str(argument) for argument in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
