"""Walker2d-v5: a planar two-legged robot walks forward (Gymnasium's task and model)."""

from __future__ import annotations

from dataclasses import dataclass

from envs.tasks.planar_walker import PlanarWalker


@dataclass
class Walker2d(PlanarWalker):
    """Observation: positions without x, and velocities clipped to 10. Options and defaults are Gymnasium's."""

    xml_file: str = "walker2d_v5.xml"
    healthy_z_range: tuple[float, float] = (0.8, 2.0)
    healthy_angle_range: tuple[float, float] = (-1.0, 1.0)
