"""TorchRLWorlds: a batched environment of TorchRL."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torchrl.data import Bounded
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import step_mdp

from envs.external.spaces import Actions, Part, actions, column, flatten, refuse_actions, refuse_image
from envs.external.worlds import FALLBACK_DT, FALLBACK_STEPS, Outcome, first_number
from saltus.errors import SaltusError


class TorchRLWorlds:
    """The worlds of an `EnvBase` of batch size [N]; see `envs.external.worlds.Worlds`.

    Observed are all entries of `observation_spec`, in alphabetical order. `step` returns the true successors; a partial
    reset (``"_reset"``) begins episodes where they ended. Attributes `dt` and `max_episode_steps` of the environment
    are read, if it has them.

    Raises:
        SaltusError: another batch size, several agents, or specs that cannot be trained on.
    """

    missing_advice = ""  # none is missing

    def __init__(self, env: EnvBase, num_envs: int):
        if tuple(env.batch_size) != (num_envs,):
            raise SaltusError(
                f"{type(env).__name__} has batch size {list(env.batch_size)}; expected [{num_envs}], the number of "
                "worlds: make a batched environment, such as SerialEnv(num_envs, ...) or ParallelEnv(num_envs, ...)"
            )
        if env.action_key != "action" or env.reward_key != "reward":
            raise SaltusError(
                f"{type(env).__name__} has the action {env.action_key!r} and the reward {env.reward_key!r}; expected "
                "one agent, with 'action' and 'reward': rename them by RenameTransform"
            )
        self._env, self.num_envs, self.device = env, num_envs, env.device or torch.device("cpu")
        self._parts = _observation_parts(env)
        self.observation_names = [name for part in self._parts for name in part.names]
        self.actions = _actions(env)
        self._action_spec = env.action_spec
        holders = [_known(one) for one in _chain(env)]
        self.dt = first_number(holders, ("dt",), FALLBACK_DT)
        self.max_episode_steps = int(first_number(holders, ("max_episode_steps",), FALLBACK_STEPS))

    def reset(self, seed: int | None) -> Tensor:
        if seed is not None:
            self._env.set_seed(seed)
        self._data = self._env.reset()
        return self._flat(self._data)

    def step(self, control: Tensor) -> Outcome:
        self._data["action"] = control.reshape(self._action_spec.shape).to(self._action_spec.dtype)
        stepped = self._env.step(self._data)
        after = stepped["next"]
        done = self._column("done", after["done"], torch.bool)
        terminated = self._column("terminated", after.get("terminated", after["done"]), torch.bool)
        self._next, self._data = self._flat(after), step_mdp(stepped)
        reward = self._column("reward", after["reward"], torch.float32)
        return Outcome(self._next, reward, terminated, self._truncated(after, done, terminated), torch.zeros_like(done))

    def _truncated(self, after: Any, done: Tensor, terminated: Tensor) -> Tensor:
        given = after.get("truncated", None)
        ended = done & ~terminated
        return ended if given is None else ended | self._column("truncated", given, torch.bool)

    def begin(self, ended: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
        mask = ended | failed
        if not mask.any():
            return self._next, torch.zeros_like(mask)
        self._data["_reset"] = mask[:, None].clone()
        self._data = self._env.reset(self._data)
        return torch.where(mask[:, None], self._flat(self._data), self._next), torch.zeros_like(mask)

    def render(self) -> np.ndarray:
        raise SaltusError("environments of TorchRL have no frames for a video: give one of Gymnasium, with render_mode")

    def close(self) -> None:
        if not self._env.is_closed:
            self._env.close()

    def _flat(self, data: Any) -> Tensor:
        return flatten(data, self._parts, self.num_envs, self.device)

    def _column(self, name: str, value: Any, dtype: torch.dtype) -> Tensor:
        return column(name, value, self.num_envs, dtype, self.device)


def is_torchrl(env: object) -> bool:
    """Whether an object is an environment of TorchRL."""
    return isinstance(env, EnvBase)


def _chain(env: EnvBase) -> list[EnvBase]:
    """An environment, and those within its transforms."""
    chain = [env]
    while isinstance(chain[-1], TransformedEnv):
        chain.append(chain[-1].base_env)
    return chain


def _known(env: EnvBase) -> SimpleNamespace:
    """The environment's own `dt` and `max_episode_steps`; getattr alone would ask those within, some without end."""
    names = [name for name in ("dt", "max_episode_steps") if inspect.getattr_static(env, name, None) is not None]
    return SimpleNamespace(**{name: getattr(env, name) for name in names})


def _observation_parts(env: EnvBase) -> list[Part]:
    parts = []
    for key in env.observation_spec.keys(True, True):
        spec = env.observation_spec[key]
        keys = (key,) if isinstance(key, str) else tuple(key)
        where, shape = f"observation {'.'.join(keys)!r}", tuple(spec.shape[1:])
        if spec.dtype == torch.uint8 or len(shape) > 2:
            refuse_image(where, shape)
        if not spec.dtype.is_floating_point:
            raise SaltusError(
                f"{where} is of type {spec.dtype}, and saltus observes numbers of floating point: convert it by "
                f"DTypeCastTransform({spec.dtype}, torch.float32, in_keys=[{'.'.join(keys)!r}])"
            )
        parts.append(Part(keys, shape))
    return sorted(parts, key=lambda part: part.keys)


def _actions(env: EnvBase) -> Actions:
    spec = env.action_spec
    if not isinstance(spec, Bounded):
        _refuse(spec)
    low, high = spec.space.low, spec.space.high
    if not (torch.equal(low, low[:1].expand_as(low)) and torch.equal(high, high[:1].expand_as(high))):
        raise SaltusError(f"the worlds of {type(env).__name__} have different bounds of actions; expected equal ones")
    box = SimpleNamespace(low=low[0].cpu().numpy(), high=high[0].cpu().numpy(), shape=tuple(spec.shape[1:]))
    return actions(box)


def _refuse(spec: Any) -> NoReturn:
    refuse_actions(f"{type(spec).__name__} of shape {tuple(spec.shape)}")
