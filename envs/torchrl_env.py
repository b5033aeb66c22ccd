"""TorchRLEnv: a BatchEnv as an environment of TorchRL."""

from __future__ import annotations

import secrets
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from envs import as_batch_env
from envs.batch_env import BatchEnv
from envs.task import Task
from saltus.errors import SaltusError

_FLAGS = ("done", "terminated", "truncated")


class TorchRLEnv(EnvBase):
    """N worlds of one task with TorchRL's interface, of batch size [N].

    `step` returns the true successor, also where an episode ended. TorchRL then resets these worlds with a mask; they
    get the first observation of the episode that BatchEnv has begun within the step. A mask may also name worlds in the
    middle of an episode. Worlds step together: `step` skips only worlds whose episode has ended (``"_step"``, as
    ``rollout(break_when_all_done=True)`` does).

    A task with the observation group "critic" has the entry ``privileged`` next to ``observation``.

    Args:
        task: a task as for `saltus.make`, or a BatchEnv.
        num_envs: number of worlds; None with a BatchEnv.
        **options: as for `saltus.make`. By default actions are in the actuators' units (``normalized_actions=False``).

    Attributes:
        batch_env: the BatchEnv. Its failed worlds are truncated.

    Raises:
        SaltusError: options for a BatchEnv that exists, or an error of `saltus.make`.
    """

    def __init__(self, task: str | Task | type[Task] | BatchEnv, num_envs: int | None = None, **options: Any):
        env = as_batch_env(task, num_envs, options)
        worlds, device = env.num_envs, env.device
        super().__init__(device=device, batch_size=[worlds])
        self.batch_env = env
        widths = {"observation": env.observation_dim}
        if env.privileged_dim:
            widths["privileged"] = env.privileged_dim
        observations = {name: Unbounded((worlds, width), device=device) for name, width in widths.items()}
        self.observation_spec = Composite(observations, shape=[worlds], device=device)
        low, high = (bound.repeat(worlds, 1) for bound in (env.action_low, env.action_high))
        self.action_spec = Bounded(low, high, device=device)
        self.reward_spec = Unbounded((worlds, 1), device=device)
        flags = {name: Binary(1, (worlds, 1), device, torch.bool) for name in _FLAGS}
        self.done_spec = Composite(flags, shape=[worlds], device=device)
        self._observation = torch.zeros(worlds, env.observation_dim, device=device)
        self._ended = torch.zeros(worlds, dtype=torch.bool, device=device)  # and not reset since
        self._fresh = torch.zeros_like(self._ended)  # at the start of an episode that the last step began

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        stepped = self._stepped(tensordict)
        transition, self._observation = self.batch_env.step(tensordict["action"])
        successor = transition["next"]
        self._fresh = successor["done"].squeeze(-1).clone()
        if stepped is None:
            self._ended = self._fresh
            return successor
        self._ended = (self._ended & ~stepped) | self._fresh
        unchanged = tensordict.select(*self.observation_spec, *_FLAGS).set(
            "reward", torch.zeros_like(successor["reward"])
        )
        return successor.where(stepped, unchanged)

    def _stepped(self, tensordict: TensorDictBase) -> torch.Tensor | None:
        """The worlds to step, (N,) bool; None: all.

        Raises:
            SaltusError: a world to skip is in the middle of an episode.
        """
        stepped = tensordict.get("_step", None)
        if stepped is None:
            return None
        stepped = stepped.reshape(self.batch_env.num_envs)
        if not (stepped | self._ended).all():
            world = int((~(stepped | self._ended)).nonzero()[0])
            raise SaltusError(
                f"'_step' skips world {world} in the middle of its episode: worlds step together, and can be skipped "
                "only from the end of their episode until their reset"
            )
        return stepped

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            begin = mask = torch.ones_like(self._ended)
        else:
            mask = mask.reshape(self.batch_env.num_envs)
            begin = mask & ~self._fresh
        if begin.all():
            self._observation = self.batch_env.reset()
        elif begin.any():
            self._observation = self.batch_env.reset(begin)
        self._fresh, self._ended = self._fresh & ~mask, self._ended & ~mask
        flags = {name: torch.zeros_like(self._ended)[:, None] for name in _FLAGS}
        groups = {"observation": self._observation.clone()}  # TorchRL may write into what it gets
        if self.batch_env.privileged_dim:
            groups["privileged"] = self.batch_env.privileged
        return TensorDict({**groups, **flags}, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self.batch_env.seed(secrets.randbits(32) if seed is None else seed)
