"""States of random numbers, which show what a task's functions depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.batch_env import BatchEnv
from envs.state import NameIndex, State


@torch.no_grad()
def random_states(env: BatchEnv, count: int, *, whole_numbers: bool) -> State:
    """States whose numbers, from 0.1 to 100, all differ. The environment is reset.

    Args:
        env: the environment. The states are of the models of its worlds, in turn.
        count: number of states.
        whole_numbers: whether to draw the task's own tensors of whole numbers, from 0 to 7, and bools as well.
    """
    env.reset()
    generator = torch.Generator().manual_seed(0)
    scales = 10.0 ** (torch.arange(count) % 4 - 1)  # small and large numbers: a result may depend on some only
    values = dict[str, Tensor]()
    for name, value in env.state.values().items():
        ones = [1] * (value.dim() - 1)
        repeated = value[:1].repeat(count, *ones)
        if value.is_floating_point():
            noise = torch.randn(repeated.shape, generator=generator, dtype=torch.float64)
            repeated = repeated + (scales.reshape(-1, *ones) * noise).to(value)
        elif whole_numbers:
            limit = 2 if value.dtype == torch.bool else 8
            repeated = torch.randint(limit, repeated.shape, generator=generator).to(value)
        values[name] = repeated
    models = env.physics.models[torch.arange(count, device=env.simulation_device) % env.num_envs]
    return State(values, NameIndex(env.task.model, env.task.fields), env.state.drawn.of(models))
