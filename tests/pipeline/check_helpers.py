"""A model and fixtures for the tests of `saltus check`."""

from __future__ import annotations

from functools import partial

import pytest

from envs.physics import warp_memory

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


@pytest.fixture
def short_capacity_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimate Warp's contacts in short rollouts: those of `saltus check` take longer than the rest of it."""
    short = partial(warp_memory.estimate_capacity, num_worlds=2, num_steps=20)
    monkeypatch.setattr(warp_memory, "estimate_capacity", short)
