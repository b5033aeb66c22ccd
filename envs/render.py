"""RGB frames of one world."""

from __future__ import annotations

import copy
import importlib
import os
from types import TracebackType

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS
from mujoco.rendering.classic import gl_context

from envs.batch_env import BatchEnv
from saltus.device.opengl import headless_opengl
from saltus.errors import SaltusError

FOLLOW = "follow"
_TRACK = "track"  # the camera of Gymnasium's models
_DISTANCE = 3.0  # of the camera, in radii of what it shows: most of the picture's height, with room to move
_AMBIENT, _DIFFUSE = 0.1, 0.4  # MuJoCo's headlight
_GREY = np.array([0.5, 0.5, 0.5, 1], dtype=np.float32)  # MuJoCo's colour of geoms
_FLOOR = np.array([0.8, 0.85, 0.9, 1], dtype=np.float32)
_SHOWN = sorted(name for name in MODEL_FIELDS if not name.startswith("opt."))  # fields that may differ between worlds


class RenderError(SaltusError):
    """No OpenGL implementation is available; the message names packages to install."""


class Renderer:
    """Renders worlds of a BatchEnv.

    Args:
        env: the environment.
        height, width: of the frames, in pixels.
        camera: a result of `choose_camera`; None: its default.

    Raises:
        RenderError: no OpenGL.
    """

    def __init__(
        self, env: BatchEnv, height: int = 480, width: int = 640, camera: str | mujoco.MjvCamera | None = None
    ):
        self._physics = env.physics
        self._model = model = copy.copy(env.physics.model)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._floors = _brighten(model)
        self._camera = choose_camera(model) if camera is None else camera
        try:
            if (name := headless_opengl()) is not None:  # MuJoCo chose a library for displays when it was imported
                gl_context.GLContext = importlib.import_module(f"mujoco.{name}").GLContext
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # OpenGL backends raise different types
            named = os.environ.get("MUJOCO_GL") or headless_opengl() or ""
            start = "" if named else "To render without a display, MuJoCo needs one of these libraries. "
            raise RenderError(
                f"no OpenGL to render with (MUJOCO_GL={named!r}): {error}. {start}MUJOCO_GL=egl needs EGL (Debian, "
                "Ubuntu: apt install libegl1); MUJOCO_GL=osmesa, for software rendering, needs OSMesa (apt install "
                "libosmesa6)"
            ) from error

    def frame(self, world: int) -> np.ndarray:
        """Render one world's current state, (height, width, 3) uint8."""
        self._show_model(self._physics.world_model(world))
        colours = self._model.geom_rgba
        colours[self._floors & (colours == _GREY).all(axis=1)] = _FLOOR
        self._renderer.update_scene(self._physics.mj_data(world), self._camera)
        return self._renderer.render()

    def _show_model(self, model: mujoco.MjModel) -> None:
        """Let the scene have the sizes, colours and other numbers of a world's model."""
        if model is not self._physics.model:
            for name in _SHOWN:
                getattr(self._model, name)[...] = getattr(model, name)

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._renderer.close()


def _brighten(model: mujoco.MjModel) -> np.ndarray:
    """Light a model that has no lights of its own, in which MuJoCo's headlight leaves all geoms dark.

    Returns:
        A mask of its planes without a material, (ngeom,): geoms of the default grey would hardly be seen on planes of
        the same grey.
    """
    headlight = model.vis.headlight
    default = np.allclose(headlight.ambient, _AMBIENT) and np.allclose(headlight.diffuse, _DIFFUSE)
    if model.nlight or not default:
        return np.zeros(model.ngeom, dtype=bool)
    headlight.ambient[:], headlight.diffuse[:] = 0.5, 0.5
    return (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (model.geom_matid < 0)


def choose_camera(model: mujoco.MjModel, name: str | None = None) -> str | mujoco.MjvCamera:
    """The camera to render a model from.

    Args:
        model: the model.
        name: a camera of the model, or ``"follow"``: `following_camera`. None: the model's camera ``track`` if it
            exists, else `following_camera`.

    Raises:
        SaltusError: the model has no such camera; the message names those that exist.
    """
    names = [found for index in range(model.ncam) if (found := model.camera(index).name)]
    if name is None:
        name = _TRACK if _TRACK in names else FOLLOW
    if name in names:
        return name
    if name == FOLLOW:
        return following_camera(model)
    known = f"its cameras are {', '.join(names)}" if names else "it has no camera with a name"
    raise SaltusError(
        f"the model has no camera {name!r}: {known}; {FOLLOW!r} is a camera that follows the first body that moves"
    )


def following_camera(model: mujoco.MjModel) -> mujoco.MjvCamera:
    """A camera that follows the first body with a joint, at a distance that shows all bodies that move."""
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    if not model.nv:
        return camera
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, int(model.dof_bodyid[0])
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    moving = np.flatnonzero(model.body_weldid[model.geom_bodyid])  # 0: fixed to the world
    if len(moving):
        offsets = data.geom_xpos[moving] - data.xpos[camera.trackbodyid]
        camera.distance = _DISTANCE * float((np.linalg.norm(offsets, axis=1) + model.geom_rbound[moving]).max())
    return camera
