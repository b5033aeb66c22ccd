"""Task: the one class that a user writes to bring a MuJoCo model of their own."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
import torch
from mujoco.batch import DATA_FIELDS
from torch import Tensor

from saltus.errors import SaltusError


class Task:
    """A model, and what to observe, what to reward and when an episode ends.

    A subclass sets `mjcf` and defines `observation` and `reward`; everything else has a default. The functions handle N
    worlds at once, in torch, in the dtype and on the device of the tensors they get. On a GPU they are captured as a
    CUDA graph: their results may depend on their arguments only, not on tensors kept on `self` between steps. The
    fields of a subclass that is a dataclass are options: ``envs.make(..., name=value)``, ``--task.name value``.

    Attributes:
        mjcf: the model: the path of an XML file, an XML string, or a ``mujoco.MjSpec``. Relative paths, also those of
            meshes, start at the folder of the file that defines the task.
        frame_skip: physics steps per control step.
        max_episode_steps: control steps after which an episode is truncated.
        fields: names of the MjData fields that the functions read, e.g. ``("qpos", "qvel", "xpos")``.
        recompute_derived: True: fields that MuJoCo derives from positions and velocities (``xpos``, ``cvel``, ...) are
            recomputed from the state after the step. False: they lag one physics step, as ``mj_step`` leaves them and
            as Gymnasium's tasks read them. Fields and sensors that depend on accelerations or forces always describe
            the last physics step.
        model: the compiled mujoco.MjModel. It and the attributes below are set by `bind`, before any function runs.
        qpos0, qvel0: (nq,) and (nv,), the model's default state.
        dt: seconds per control step.
    """

    mjcf: Any = None
    frame_skip = 1
    max_episode_steps = 1000
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    recompute_derived: ClassVar[bool] = True

    model: mujoco.MjModel
    qpos0: Tensor
    qvel0: Tensor
    dt: float

    def reset(self, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw initial states: qpos (num_envs, nq) and qvel (num_envs, nv).

        By default the model's default state. All randomness must come from `generator`.
        """
        return self.qpos0.repeat(num_envs, 1), self.qvel0.repeat(num_envs, 1)

    def observation(self, state: State) -> Tensor:
        """The policy's observation of a state, (N, obs_dim)."""
        raise NotImplementedError(f"{type(self).__name__} has no observation(state)")

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The reward of a step, (N,), or a pair of the reward and a dict of its terms, (N,) each, to be logged.

        Args:
            state: before the step.
            action: (N, nu) float32 controls that were applied, in the actuators' units.
            next_state: after the step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reward(state, action, next_state)")

    def terminated(self, state: State) -> Tensor:
        """Whether the task itself ends the episode, (N,) bool. By default never."""
        return torch.zeros(len(state), dtype=torch.bool, device=self.qpos0.device)

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Per-world values of MjModel fields, (num_envs, ...) by name, e.g. ``"geom_friction"``, ``"opt.gravity"``.

        Called when an environment is made; by default none. It works on the CPU, whatever the device: `generator` is a
        CPU generator, `model` is NumPy, and results are CPU tensors, which are copied to the physics' device.

        The constants of ``mj_setConst`` (subtree masses, inverse weights, ...) are recomputed. Other fields keep the
        values of `model`: a new ``body_mass`` does not change ``body_inertia``. `envs.scale_masses` scales both.
        """
        return {}

    def bind(self, model: mujoco.MjModel, dtype: torch.dtype, device: torch.device) -> None:
        """Set `model` and the attributes derived from it. BatchEnv calls this before any other function."""
        set_attribute = object.__setattr__  # a task may be a frozen dataclass
        set_attribute(self, "model", model)
        set_attribute(self, "qpos0", torch.as_tensor(model.qpos0, dtype=dtype, device=device).clone())
        set_attribute(self, "qvel0", torch.zeros(model.nv, dtype=dtype, device=device))
        set_attribute(self, "dt", model.opt.timestep * self.frame_skip)


class NameIndex:
    """Locations of named objects' values within MjData fields, cached by name."""

    def __init__(self, model: mujoco.MjModel, fields: tuple[str, ...]):
        self.fields = fields
        self._model = model
        self._data = mujoco.MjData(model)
        self._slices: dict[tuple[str, str, str], tuple[str, int, tuple[int, ...]]] = {}

    def locate(self, kind: str, name: str, attribute: str) -> tuple[str, int, tuple[int, ...]]:
        """Field, offset in the field's flattened row, and shape of ``data.<kind>(<name>).<attribute>``.

        Raises:
            AttributeError: no such object or attribute; the message lists those that exist.
        """
        key = (kind, name, attribute)
        if key not in self._slices:
            self._slices[key] = self._find(kind, name, attribute)
        return self._slices[key]

    def _find(self, kind: str, name: str, attribute: str) -> tuple[str, int, tuple[int, ...]]:
        try:
            view = getattr(self._data, kind)(name)
        except KeyError as error:
            raise AttributeError(f"the model has no {kind} {name!r}. MuJoCo: {error.args[0]}") from None
        part = getattr(view, attribute, None)
        if not isinstance(part, np.ndarray):
            names = [item for item in dir(view) if isinstance(getattr(view, item, None), np.ndarray)]
            of_model = getattr(self._model, kind)(name)
            hint = f". self.model.{kind}({name!r}) has it" if hasattr(of_model, attribute) else ""
            raise AttributeError(f"a {kind} has no {attribute!r}; it has {', '.join(names)}{hint}")
        # A named view is a slice of one MjData array: find the array that contains its memory.
        for field in sorted(name for name in dir(self._data) if not name.startswith("_")):
            whole = getattr(self._data, field, None)
            if not isinstance(whole, np.ndarray) or whole.dtype != part.dtype:
                continue
            offset = part.ctypes.data - whole.ctypes.data
            if part.size and offset >= 0 and offset + part.nbytes <= whole.nbytes:
                return field, offset // whole.itemsize, part.shape
        raise AttributeError(f"{attribute!r} of {kind} {name!r} is not stored in a field of MjData")


class State:
    """MjData fields of N worlds as batched tensors, by MuJoCo's names.

    ``state.qpos`` is (N, nq), ``state.body("torso").xpos`` (N, 3), ``state.sensor("imu")`` (N, sensor's dim).
    A state has the fields that the task declares in `Task.fields`.
    """

    def __init__(self, values: Mapping[str, Tensor], names: NameIndex):
        self._values = values
        self._names = names

    def __len__(self) -> int:
        return next(iter(self._values.values())).shape[0]

    def __getattr__(self, field: str) -> Tensor:
        if field.startswith("_"):
            raise AttributeError(field)
        try:
            return self._values[field]
        except KeyError:
            raise AttributeError(_missing_field(field, self._names.fields)) from None

    def values(self) -> Mapping[str, Tensor]:
        """The tensors by field name."""
        return self._values

    def body(self, name: str) -> NamedView:
        """A body's ``xpos``, ``xquat``, ``xipos``, ``cvel``, ..."""
        return NamedView(self, "body", name)

    def joint(self, name: str) -> NamedView:
        """A joint's ``qpos`` and ``qvel``, ..."""
        return NamedView(self, "joint", name)

    def geom(self, name: str) -> NamedView:
        """A geom's ``xpos``, ``xmat``."""
        return NamedView(self, "geom", name)

    def site(self, name: str) -> NamedView:
        """A site's ``xpos``, ``xmat``."""
        return NamedView(self, "site", name)

    def camera(self, name: str) -> NamedView:
        """A camera's ``xpos``, ``xmat``."""
        return NamedView(self, "camera", name)

    def actuator(self, name: str) -> NamedView:
        """An actuator's ``ctrl``, ``force``, ``length``, ``velocity``."""
        return NamedView(self, "actuator", name)

    def tendon(self, name: str) -> NamedView:
        """A tendon's ``length``, ``velocity``."""
        return NamedView(self, "tendon", name)

    def sensor(self, name: str) -> Tensor:
        """A sensor's values, (N, dim)."""
        return NamedView(self, "sensor", name).data

    def slice(self, kind: str, name: str, attribute: str) -> Tensor:
        """``data.<kind>(<name>).<attribute>`` of every world."""
        field, offset, shape = self._names.locate(kind, name, attribute)
        rows = getattr(self, field).flatten(1)
        return rows[:, offset : offset + math.prod(shape)].reshape(len(self), *shape)


_NAMED = ("body", "joint", "geom", "site", "camera", "actuator", "tendon", "sensor")


def _missing_field(field: str, fields: tuple[str, ...]) -> str:
    """The message for ``state.<field>`` that is not among the task's fields."""
    problem = f"the task reads state.{field}, which is not among its fields {fields}"
    if field in DATA_FIELDS:
        return f"{problem}: add {field!r} to `fields`"
    similar = difflib.get_close_matches(field, {*DATA_FIELDS, *_NAMED}, n=3)
    hint = f" Did you mean {', '.join(similar)}?" if similar else ""
    return (
        f"{problem}, nor a field of MjData that can be read in a batch.{hint} Named objects are read by "
        f"{', '.join(f'state.{kind}(name)' for kind in _NAMED)}; constants of the model by self.model"
    )


class NamedView:
    """A named object in every world. Its attributes are batched tensors."""

    def __init__(self, state: State, kind: str, name: str):
        self._state, self._kind, self._name = state, kind, name

    def __getattr__(self, attribute: str) -> Tensor:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return self._state.slice(self._kind, self._name, attribute)


def load_model(task: Task) -> mujoco.MjModel:
    """Compile a task's `mjcf`.

    Relative paths in it start at the folder of the file whose class sets it.

    Raises:
        SaltusError: no `mjcf`, a missing file, or a model that MuJoCo does not compile (with MuJoCo's message).
    """
    mjcf, name, folder = task.mjcf, type(task).__name__, _folder_of(task)
    try:
        if isinstance(mjcf, mujoco.MjSpec):
            return _compile_spec(mjcf, folder)
        if isinstance(mjcf, str) and mjcf.lstrip("\ufeff \t\r\n").startswith("<"):
            return _compile_text(mjcf, folder)
    except ValueError as error:
        raise _not_compiled(name, error, f". Relative paths start at {folder}") from error
    if not isinstance(mjcf, str | Path):
        found = "has a model that is compiled already" if isinstance(mjcf, mujoco.MjModel) else "has no model"
        raise SaltusError(
            f"task {name} {found}: set `mjcf` to the path of an XML file, an XML string or a mujoco.MjSpec "
            f"(got {type(mjcf).__name__})"
        )
    path = _find_file(mjcf, name, folder)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise _not_compiled(name, error) from error


def _not_compiled(name: str, error: ValueError, hint: str = "") -> SaltusError:
    hint = hint if "opening file" in str(error) else ""
    return SaltusError(f"MuJoCo does not compile the model of task {name}: {str(error).strip()}{hint}")


def _folder_of(task: Task) -> Path:
    """The folder of the file whose class sets `mjcf`, or the current one for a class of an interactive session."""
    cls = next((cls for cls in type(task).__mro__ if vars(cls).get("mjcf") is task.mjcf), type(task))
    try:
        return Path(inspect.getfile(cls)).resolve().parent
    except (TypeError, OSError):
        return Path.cwd()


def _compile_text(text: str, folder: Path) -> mujoco.MjModel:
    """Compile an XML string as if it were a file in `folder`."""
    file = str(folder / "model of a task.xml")
    return mujoco.MjModel.from_xml_path(file, {file: text.lstrip("\ufeff").encode()})


def _compile_spec(spec: mujoco.MjSpec, folder: Path) -> mujoco.MjModel:
    """Compile a spec whose relative paths start at `folder`, or as it is if that fails."""
    given = spec.modelfiledir
    if folder == Path.cwd() or Path(given).is_absolute():
        return spec.compile()
    try:
        spec.modelfiledir = f"{folder / given}/"
        return spec.compile()
    except ValueError:
        spec.modelfiledir = given
        return spec.compile()
    finally:
        spec.modelfiledir = given


def _find_file(mjcf: str | Path, name: str, folder: Path) -> Path:
    path = folder / Path(mjcf).expanduser()
    if not path.is_file():
        raise SaltusError(
            f"the model of task {name} is missing: there is no file {path} (a relative `mjcf` starts at the folder of "
            f"the task's file, {folder})"
        )
    return path
