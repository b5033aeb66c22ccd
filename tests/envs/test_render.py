"""Frames show the models of their worlds."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import WARP_MEMORY, CartBall, same_bits
from mujoco.rendering.classic import gl_context
from torch import Tensor

from envs import BatchEnv, Simulation, draw_fields, render, scale
from envs.render import Renderer, RenderError, _brighten


@pytest.mark.parametrize("physics", ["cpu", "warp"])
def test_frames_show_the_model_of_their_world(physics: str, monkeypatch: pytest.MonkeyPatch):
    class Sized(CartBall):
        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            return draw_fields(self.model, num_envs, generator, scale("geom_size", 0.1, 0.9))

    class Pen:
        """Draws the sizes of geoms."""

        def __init__(self, model: mujoco.MjModel, *_: int):
            self.model = model

        def update_scene(self, *_: Any) -> None:
            pass

        def render(self) -> np.ndarray:
            return self.model.geom_size.copy()

    monkeypatch.setattr(mujoco, "Renderer", Pen)
    memory = WARP_MEMORY[CartBall] if physics == "warp" else {}
    env = BatchEnv(Sized(), 2, simulation=Simulation(physics=physics, **memory))
    renderer = Renderer(env)
    frames = [renderer.frame(world) for world in (0, 1, 0)]
    for world, frame in zip((0, 1, 0), frames, strict=True):
        assert same_bits(frame, env.physics.world_model(world).geom_size)
    assert not same_bits(frames[0], frames[1])


def test_planes_are_coloured_unless_they_have_a_colour_of_the_model_or_of_a_draw(monkeypatch: pytest.MonkeyPatch):
    class Coloured(CartBall):
        def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
            colours = torch.as_tensor(self.model.geom_rgba).repeat(num_envs, 1, 1)
            colours[1, 0] = torch.tensor([1.0, 0, 0, 1])
            return {"geom_rgba": colours}

    shown: list[list[float]] = []

    class Pen:
        def __init__(self, model: mujoco.MjModel, *_: int):
            self.model = model

        def update_scene(self, *_: Any) -> None:
            shown.append(self.model.geom_rgba[0].tolist())

        def render(self) -> None:
            pass

    monkeypatch.setattr(mujoco, "Renderer", Pen)
    renderer = Renderer(BatchEnv(Coloured(), 2))
    for world in (0, 1, 0):
        renderer.frame(world)
    assert shown[1] == [1, 0, 0, 1]
    assert shown[0] == shown[2] == pytest.approx([0.8, 0.85, 0.9, 1])


def headlight(model: mujoco.MjModel) -> list[float]:
    return [float(light) for light in (model.vis.headlight.ambient[0], model.vis.headlight.diffuse[0])]


@pytest.mark.parametrize(
    ("xml", "brightens"),
    [
        ("<worldbody>{geoms}</worldbody>", True),
        ("<worldbody>{geoms}<light pos='0 0 3'/></worldbody>", False),
        ("<visual><headlight ambient='.5 .5 .5'/></visual><worldbody>{geoms}</worldbody>", False),
        ("<visual><headlight diffuse='.1 .1 .1'/></visual><worldbody>{geoms}</worldbody>", False),
        ("<visual><headlight ambient='0 0 0'/></visual><worldbody>{geoms}</worldbody>", False),
    ],
)
def test_models_without_lights_are_lit_and_their_planes_found(xml: str, brightens: bool):
    geoms = "<geom type='plane' size='1 1 1'/><geom type='plane' size='1 1 1' rgba='1 0 0 1'/><geom size='1'/>"
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{xml.format(geoms=geoms)}</mujoco>")
    before = headlight(model)
    assert _brighten(model).tolist() == [brightens, brightens, False]
    assert (headlight(model) != before) == brightens


@pytest.mark.parametrize("named", ["", "osmesa"])
def test_error_without_opengl_says_how_to_render_without_a_display(named: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no context")

    monkeypatch.setenv("MUJOCO_GL", named)
    monkeypatch.setattr(render, "headless_opengl", lambda: None)
    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(RenderError, match=r"no context.*MUJOCO_GL=egl needs EGL \(Debian") as caught:
        Renderer(BatchEnv(CartBall(), 1))
    advice = "To render without a display, MuJoCo needs one of these libraries."
    assert (advice in str(caught.value)) == (not named)


@pytest.mark.parametrize(("display", "named"), [("", ""), (":0", ""), ("", "glfw")])
def test_worlds_are_rendered_without_a_display(display: str, named: str, monkeypatch: pytest.MonkeyPatch):
    """Also where MuJoCo chose a library for displays when it was imported."""
    chosen: list[Any] = []
    given = gl_context.GLContext
    monkeypatch.setattr(gl_context, "GLContext", given)
    monkeypatch.setattr(mujoco, "Renderer", lambda *_: chosen.append(gl_context.GLContext))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: name if name == "OSMesa" else None)
    monkeypatch.setitem(sys.modules, "mujoco.osmesa", SimpleNamespace(GLContext="software"))
    for name, value in (("DISPLAY", display), ("WAYLAND_DISPLAY", ""), ("MUJOCO_GL", named)):
        monkeypatch.setenv(name, value)
    Renderer(BatchEnv(CartBall(), 1))
    assert chosen == [given if display or named else "software"]
