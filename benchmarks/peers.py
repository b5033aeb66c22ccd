"""SAC updates of other libraries from a filled replay buffer, as `runner.Work`.

All have two critics, and one actor and one temperature update per critic update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule, TensorDictModule
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import SACLoss, SoftUpdate

from benchmarks.runner import Work
from pipeline.networks import Actor, Critic, mlp

LEARNING_RATE, TAU, GAMMA = 3e-4, 0.005, 0.99


def stable_baselines(data: TensorDict, batch_size: int, hidden: tuple[int, ...], updates: int) -> Work:
    """Stable-Baselines3's SAC."""
    from stable_baselines3 import SAC

    return _baselines(SAC, data, batch_size, hidden, updates, device="cpu")


def sbx(data: TensorDict, batch_size: int, hidden: tuple[int, ...], updates: int) -> Work:
    """SBX's SAC: Stable-Baselines3 in JAX."""
    from sbx import SAC

    return _baselines(SAC, data, batch_size, hidden, updates)


def _baselines(
    kind: Any, data: TensorDict, batch_size: int, hidden: tuple[int, ...], updates: int, **options: Any
) -> Work:
    from stable_baselines3.common.logger import Logger

    env = _sizes_only(data["observation"].shape[1], data["action"].shape[1])
    model = kind("MlpPolicy", env, buffer_size=len(data), policy_kwargs={"net_arch": list(hidden)}, **options)
    model.set_logger(Logger(None, []))
    buffer, data = model.replay_buffer, data.cpu()
    buffer.observations[:, 0] = data["observation"]
    buffer.actions[:, 0] = data["action"]
    buffer.next_observations[:, 0] = data["next", "observation"]
    buffer.rewards[:] = data["next", "reward"]
    buffer.dones[:] = data["next", "terminated"]
    buffer.full = True

    def train() -> int:
        model.train(gradient_steps=updates, batch_size=batch_size)
        return updates

    return train


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sizes_only(observation_dim: int, action_dim: int) -> Any:
    """A Gymnasium environment with spaces of these sizes, which cannot be stepped."""
    import gymnasium

    env: Any = gymnasium.Env()
    env.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
    env.action_space = gymnasium.spaces.Box(-1, 1, (action_dim,), np.float32)
    return env


def torchrl(data: TensorDict, batch_size: int, hidden: tuple[int, ...], updates: int) -> Work:
    """TorchRL's SAC, as in its examples: SACLoss, torch.optim.Adam and SoftUpdate in one compiled function."""
    actor, critic = _networks(data, hidden)
    policy = ProbabilisticActor(
        TensorDictModule(actor, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False, "safe_tanh": False},
        return_log_prob=True,
    ).to(data.device)
    value = TensorDictModule(critic, ["observation", "action"], ["state_action_value"]).to(data.device)
    loss = SACLoss(policy, value, loss_function="l2", target_entropy=-float(data["action"].shape[1]))
    loss.make_value_estimator(gamma=GAMMA)
    loss.target_entropy  # noqa: B018 - its first access makes it a buffer
    optimizer = torch.optim.Adam(loss.parameters(), lr=LEARNING_RATE)
    targets = SoftUpdate(loss, tau=TAU)
    buffer = _torchrl_buffer(data, batch_size)

    def update(batch: TensorDict) -> None:
        losses = loss(batch)
        (losses["loss_qvalue"] + losses["loss_actor"] + losses["loss_alpha"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        targets.step()

    return _repeat(torch.compile(update), buffer, updates, data.device)


def leanrl(data: TensorDict, batch_size: int, hidden: tuple[int, ...], updates: int) -> Work:
    """LeanRL's way: critic and actor updates compiled separately, on CUDA in CudaGraphModule; sampling outside."""
    device, action_dim = torch.device(data.device), data["action"].shape[1]
    actor, critics = _networks(data, hidden)[0].to(device), [_networks(data, hidden)[1].to(device) for _ in range(2)]
    critic = critics[0]
    params, _ = stack_module_state(critics)
    live = {name: value.detach() for name, value in params.items()}
    targets = {name: value.clone() for name, value in live.items()}
    log_alpha = torch.zeros(1, requires_grad=True, device=device)
    on_cuda = device.type == "cuda"
    options: Any = {"lr": LEARNING_RATE, "capturable": on_cuda}
    critic_optimizer = torch.optim.Adam(params.values(), **options)
    actor_optimizer = torch.optim.Adam(actor.parameters(), **options)
    alpha_optimizer = torch.optim.Adam([log_alpha], **options)
    buffer = _torchrl_buffer(data, batch_size)

    def batched(weights: dict[str, Tensor], observation: Tensor, action: Tensor) -> Tensor:
        return torch.vmap(lambda one: functional_call(critic, one, (observation, action)))(weights)

    def sample_action(observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = actor(observation)
        normal = torch.distributions.Normal(loc, scale)
        raw = normal.rsample()
        action = raw.tanh()
        return action, (normal.log_prob(raw) - torch.log(1 - action.square() + 1e-6)).sum(1, keepdim=True)

    def update_critics(batch: TensorDict) -> None:
        critic_optimizer.zero_grad()
        successor = batch["next"]
        with torch.no_grad():
            action, log_prob = sample_action(successor["observation"])
            value = batched(targets, successor["observation"], action).amin(0) - log_alpha.exp() * log_prob
            target = successor["reward"] + GAMMA * ~successor["terminated"] * value
        found = batched(params, batch["observation"], batch["action"])
        loss = (found - target).square().mean((1, 2)).sum()
        loss.backward()
        critic_optimizer.step()

    def update_actor(batch: TensorDict) -> None:
        actor_optimizer.zero_grad()
        action, log_prob = sample_action(batch["observation"])
        loss = (log_alpha.exp().detach() * log_prob - batched(live, batch["observation"], action).amin(0)).mean()
        loss.backward()
        actor_optimizer.step()
        alpha_optimizer.zero_grad()
        (-log_alpha.exp() * (log_prob.detach() - action_dim)).mean().backward()
        alpha_optimizer.step()

    functions: list[Callable[[TensorDict], Any]] = [torch.compile(update_critics), torch.compile(update_actor)]
    if on_cuda:
        functions = [CudaGraphModule(function, in_keys=[], out_keys=[]) for function in functions]

    def update(batch: TensorDict) -> None:
        for function in functions:
            function(batch)
        torch._foreach_lerp_(list(targets.values()), list(live.values()), TAU)

    return _repeat(update, buffer, updates, device)


def _networks(data: TensorDict, hidden: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    observation_dim, action_dim = data["observation"].shape[1], data["action"].shape[1]
    return Actor(mlp([observation_dim, *hidden, 2 * action_dim])), Critic(
        mlp([observation_dim + action_dim, *hidden, 1])
    )


def _torchrl_buffer(data: TensorDict, batch_size: int) -> TensorDictReplayBuffer:
    storage = LazyTensorStorage(len(data), device=data.device)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=batch_size)
    buffer.extend(data)
    return buffer


def _repeat(
    update: Callable[[TensorDict], Any], buffer: TensorDictReplayBuffer, updates: int, device: torch.device
) -> Work:
    def work() -> int:
        for _ in range(updates):
            update(buffer.sample())
        synchronize(device)
        return updates

    return work
