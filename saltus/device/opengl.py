"""Which OpenGL library renders on a machine without a display."""

from __future__ import annotations

import ctypes.util
import os
import sys


def headless_opengl() -> str | None:
    """``"egl"`` or ``"osmesa"`` (software), values of MUJOCO_GL.

    None: a display, a value that is set already, neither library, or not Linux.
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display and not os.environ.get("MUJOCO_GL"):
        for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
            if ctypes.util.find_library(library):
                return name
    return None
