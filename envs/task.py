"""Task: the one class that a user writes to bring a MuJoCo model of their own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import torch
from torch import Tensor

from envs.home import default_data
from envs.package_files import find_in_package, is_in_package
from envs.state import State
from saltus.errors import SaltusError


class Task:
    """A model, and what to observe, what to reward and when an episode ends.

    A subclass sets `mjcf` and defines `observation` and `reward`; everything else has a default. The functions handle N
    worlds at once, in torch, in the dtype and on the device of the tensors they get. On a GPU they are captured as a
    CUDA graph: their results may depend on their arguments only, not on tensors kept on `self` between steps. The
    fields of a subclass that is a dataclass are options: ``envs.make(..., name=value)``, ``--task.name value``.

    Attributes:
        mjcf: the model: the path of an XML file, an XML string, or a ``mujoco.MjSpec``. Relative paths, also those of
            meshes, start at the folder of the file that defines the task. ``"package:dm_control/suite/quadruped.xml"``
            is a file inside an installed Python package.
        frame_skip: physics steps per control step.
        max_episode_steps: control steps after which an episode is truncated.
        fields: names of the MjData fields that the functions read, e.g. ``("qpos", "qvel", "xpos")``.
        home: the keyframe that episodes start from, by name or index: its qpos, qvel, act, ctrl, mocap and time. None:
            the model's defaults.
        settle_steps: physics steps, under the ctrl of `home`, in which the start of episodes comes to rest. They run
            once, when an environment is made.
        action_low, action_high: bounds of actions: sequences of action_dim numbers, or numbers for all actuators. None:
            the actuators' control ranges.
        model_variants: models that `randomize` draws, of which each episode draws one; 0: one for each world, for good.
        recompute_derived: True: fields that MuJoCo derives from positions and velocities (``xpos``, ``cvel``, ...) are
            recomputed from the state after the step. False: they lag one physics step, as ``mj_step`` leaves them and
            as Gymnasium's tasks read them. Fields and sensors that depend on accelerations or forces always describe
            the last physics step.
        model: the compiled mujoco.MjModel. It and the attributes below are set by `bind`, before any function runs.
        data0: the mujoco.MjData that episodes start from by default: the model's defaults, or `home`, settled. Its
            derived fields are not computed.
        qpos0, qvel0, ctrl0: (nq,), (nv,) and (nu,), those of `data0`.
        dt: seconds per control step.
    """

    mjcf: Any = None
    frame_skip = 1
    max_episode_steps = 1000
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    recompute_derived: ClassVar[bool] = True
    home: Any = None
    settle_steps = 0
    model_variants = 0
    action_low: Any = None
    action_high: Any = None

    model: mujoco.MjModel
    data0: mujoco.MjData
    qpos0: Tensor
    qvel0: Tensor
    ctrl0: Tensor
    dt: float

    def reset(self, num_envs: int, generator: torch.Generator) -> Any:
        """Draw initial states: qpos (num_envs, nq) and qvel (num_envs, nv), or a dict.

        By default those of `data0`. All randomness must come from `generator`.

        A dict may hold ``qpos``, ``qvel``, ``act``, ``ctrl``, ``mocap_pos``, ``mocap_quat``, ``userdata`` and ``time``,
        (num_envs, ...) each in the shapes of MjData; those that it omits start as in `data0`. Every other entry is a
        tensor of the task's own, (num_envs, ...) of any dtype, such as a goal. The functions read it as ``state.goal``.
        It stays the same until the episode ends or `advance` renews it. Every call must return the same names.
        """
        return self.qpos0.repeat(num_envs, 1), self.qvel0.repeat(num_envs, 1)

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Renew own tensors after a step, by name; those that are not returned keep their values. By default none.

        `observation`, `terminated` and the `next_state` of `reward` see the renewed values, and so does the next step.
        All randomness must come from `generator`. Draw it in every call, not on a condition: select by ``torch.where``.

        Args:
            state: the fields after the step; the own tensors before it.
            action: as in `reward`.
        """
        return {}

    def control(self, state: State, action: Tensor) -> Tensor | dict[str, Tensor]:
        """The ctrl (N, nu) that an action sets for the next step, or a dict of MjData's inputs. By default the action.

        A dict may hold ``ctrl``, ``mocap_pos``, ``mocap_quat``, ``xfrc_applied`` and ``qfrc_applied``, (N, ...) each in
        the shapes of MjData; inputs that are not returned keep their values since the start of the episode. Called once
        per control step. Every call must return the same names.

        Args:
            state: before the step.
            action: (N, action_dim) float32, between `action_low` and `action_high`.
        """
        return action

    def observation(self, state: State) -> Tensor | dict[str, Tensor]:
        """The observation of a state, (N, obs_dim), or a dict of two groups.

        The group ``"policy"``, (N, obs_dim), is what the actor sees. The optional group ``"critic"``,
        (N, privileged_dim), is what the critics see in addition (Pinto et al. 2017, arXiv 1710.06542). Every call must
        return the same groups.
        """
        raise NotImplementedError(f"{type(self).__name__} has no observation(state)")

    def reward(self, state: State, action: Tensor, next_state: State) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The reward of a step, (N,), or a pair of the reward and a dict of its terms, (N,) each, to be logged.

        Args:
            state: before the step.
            action: (N, action_dim) float32, in the units of `action_low` and `action_high`, which are the actuators' by
                default.
            next_state: after the step, with the own tensors that `advance` renewed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reward(state, action, next_state)")

    def terminated(self, state: State) -> Tensor:
        """Whether the task itself ends the episode, (N,) bool. By default never."""
        return torch.zeros(len(state), dtype=torch.bool, device=self.qpos0.device)

    def randomize(self, num_envs: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw MjModel fields of `num_envs` models, (num_envs, ...) by name, e.g. ``"body_mass"``, ``"opt.gravity"``.

        Called when an environment is made; by default none. With `model_variants` 0 each world has a model of its own.
        Otherwise `num_envs` is `model_variants`, and each episode draws one of these models. `envs.draw_fields` draws
        common fields.

        It works on the CPU, whatever the device: `generator` is a CPU generator, `model` is NumPy, and results are CPU
        tensors, which are copied to the physics' device.

        The constants of ``mj_setConst`` (subtree masses, inverse weights, ...) are recomputed, in float64. Other fields
        keep the values of `model`: a new ``body_mass`` does not change ``body_inertia``. The other functions read what
        was drawn as ``state.drawn["body_mass"]``, (N, nbody).
        """
        return {}

    def bind(self, model: mujoco.MjModel, dtype: torch.dtype, device: torch.device) -> None:
        """Set `model` and the attributes derived from it. BatchEnv calls this before any other function."""
        set_attribute = object.__setattr__  # a task may be a frozen dataclass
        set_attribute(self, "model", model)
        set_attribute(self, "data0", default_data(model, type(self).__name__, self.home, self.settle_steps))
        for name in ("qpos", "qvel", "ctrl"):
            value = torch.as_tensor(getattr(self.data0, name), dtype=dtype, device=device).clone()
            set_attribute(self, f"{name}0", value)
        set_attribute(self, "dt", model.opt.timestep * self.frame_skip)


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
    if not _is_utf8(path):
        raise SaltusError(f"the path of task {name}'s model, {str(path)!r}, is not UTF-8, as MuJoCo needs: rename it")
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise _not_compiled(name, error) from error


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


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
    if is_in_package(mjcf):
        try:
            return find_in_package(str(mjcf))
        except SaltusError as error:
            raise SaltusError(f"the model of task {name} is missing: {error}") from None
    path = folder / Path(mjcf).expanduser()
    if not path.is_file():
        raise SaltusError(
            f"the model of task {name} is missing: there is no file {path} (a relative `mjcf` starts at the folder of "
            f"the task's file, {folder})"
        )
    return path
