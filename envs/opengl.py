"""Import MuJoCo, which loads the OpenGL library that MUJOCO_GL names."""

from __future__ import annotations

import os

from saltus.errors import SaltusError

try:
    import mujoco  # noqa: F401
except Exception as error:  # OpenGL backends raise different types
    if not os.environ.get("MUJOCO_GL"):
        raise
    raise SaltusError(
        f"MuJoCo cannot load the OpenGL library that MUJOCO_GL={os.environ['MUJOCO_GL']} names "
        f"({type(error).__name__}: {error}). Unset MUJOCO_GL: only rendering needs OpenGL. To render without a "
        "display, set MUJOCO_GL=egl (Debian, Ubuntu: apt install libegl1) or MUJOCO_GL=osmesa (apt install libosmesa6)"
    ) from error
