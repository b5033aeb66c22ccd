"""The transition: the result of one control step of N worlds.

A transition is a TensorDict of batch size ``[N]``:

==========================  ===============  =======  ==================================================
key                         shape            dtype    meaning
==========================  ===============  =======  ==================================================
``observation``             (N, obs_dim)     float32  the observation on which the action was chosen
``action``                  (N, act_dim)     float32  the action that `BatchEnv.step` received: in [-1, 1], or in the
                                                      actuators' units without `normalized_actions`
``("next", "observation")`` (N, obs_dim)     float32  the true successor, also at the end of an episode
``("next", "reward")``      (N, 1)           float32  reward of the step
``("next", "terminated")``  (N, 1)           bool     the task ended the episode: do not bootstrap
``("next", "truncated")``   (N, 1)           bool     a time limit or failure ended it: bootstrap
``("next", "done")``        (N, 1)           bool     ``terminated | truncated``
==========================  ===============  =======  ==================================================

If the task's `observation` returns the group "critic", a transition also has ``privileged`` and
``("next", "privileged")``, (N, privileged_dim) float32: what the critics see in addition to the observation.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from saltus.errors import SaltusError

Key = str | tuple[str, str]


def layout(observation_dim: int, action_dim: int, privileged_dim: int = 0) -> dict[Key, tuple[int, torch.dtype]]:
    """Width and dtype of every entry of a transition, by key."""
    privileged: dict[Key, tuple[int, torch.dtype]] = {
        "privileged": (privileged_dim, torch.float32),
        ("next", "privileged"): (privileged_dim, torch.float32),
    }
    return {
        "observation": (observation_dim, torch.float32),
        "action": (action_dim, torch.float32),
        ("next", "observation"): (observation_dim, torch.float32),
        ("next", "reward"): (1, torch.float32),
        ("next", "terminated"): (1, torch.bool),
        ("next", "truncated"): (1, torch.bool),
        ("next", "done"): (1, torch.bool),
        **(privileged if privileged_dim else {}),
    }


def num_bytes(observation_dim: int, action_dim: int, privileged_dim: int = 0) -> int:
    """Bytes that one world's transition takes."""
    entries = layout(observation_dim, action_dim, privileged_dim).values()
    return sum(width * dtype.itemsize for width, dtype in entries)


def zeros(
    size: int, observation_dim: int, action_dim: int, device: torch.device | str = "cpu", privileged_dim: int = 0
) -> TensorDict:
    """A transition of zeros, of batch size ``[size]``."""
    transition = TensorDict({}, batch_size=[size], device=device)
    for key, (width, dtype) in layout(observation_dim, action_dim, privileged_dim).items():
        transition[key] = torch.zeros(size, width, dtype=dtype, device=device)
    return transition


def make(
    observation: Tensor, action: Tensor, next_observation: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor
) -> TensorDict:
    """Make a transition from its parts, without copying; (N,) tensors become columns (N, 1)."""
    successor = TensorDict(
        {
            "observation": next_observation,
            "reward": reward.unsqueeze(-1),
            "terminated": terminated.unsqueeze(-1),
            "truncated": truncated.unsqueeze(-1),
            "done": (terminated | truncated).unsqueeze(-1),
        },
        batch_size=observation.shape[:1],
    )
    return TensorDict(
        {"observation": observation, "action": action, "next": successor}, batch_size=observation.shape[:1]
    )


def split_privileged(transition: TensorDict, observation_dim: int) -> None:
    """Move the columns of the observations beyond `observation_dim` to the entries ``privileged``."""
    for part in (transition, transition["next"]):
        whole = part["observation"]
        part.set("observation", whole[:, :observation_dim].contiguous())
        part.set("privileged", whole[:, observation_dim:].contiguous())


def check(transition: TensorDictBase, observation_dim: int, action_dim: int, privileged_dim: int = 0) -> None:
    """Raise SaltusError, naming the entry, unless `transition` matches this module's table."""
    if transition.batch_dims != 1:
        raise SaltusError(f"a transition has batch size [num_envs], got {list(transition.batch_size)}")
    size = transition.batch_size[0]
    for key, (width, dtype) in layout(observation_dim, action_dim, privileged_dim).items():
        entry = transition.get(key, None)
        if entry is None:
            raise SaltusError(f"the transition has no entry {key!r}; it has {sorted(map(str, transition.keys(True)))}")
        if entry.shape != (size, width) or entry.dtype != dtype:
            raise SaltusError(
                f"transition entry {key!r} is {entry.dtype} of shape {tuple(entry.shape)}; "
                f"expected {dtype} of shape {(size, width)}"
            )
