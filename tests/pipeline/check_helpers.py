"""The model of the tasks that the tests of `saltus check` give it."""

from __future__ import annotations

CART = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="cart" pos="0 0 0.2">
      <joint name="slide" type="slide" axis="1 0 0" damping="1"/>
      <geom name="box" type="box" size="0.1 0.1 0.1" rgba="1 0 0 1"/>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="slide" gear="100" ctrlrange="-1 1"/>{actuators}</actuator>
</mujoco>
"""
