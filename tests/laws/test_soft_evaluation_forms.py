"""Both forms of SAC reach the exact soft Q of a finite MDP: by critics alone, and through a state-value network.

Observations are one-hot states. The policy is a tanh-Gaussian with a location and a scale for each state, whose noise
takes a few equally likely values, so that every expectation over its actions is a finite sum. Critics are tables over
the states and a few intervals of the action, so that rewards and successors depend on finitely many pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor, nn

from envs import transition as transitions
from pipeline import losses
from pipeline.agent import Agent
from pipeline.networks import Actor, Critic
from pipeline.presets import preset as preset_config
from pipeline.torchrl_adapter import critic_parameters, target_parameters, value_parameters

STATES, INTERVALS, SUCCESSORS, NOISES = 4, 3, 2, 6
PAIRS, ROWS = STATES * INTERVALS, STATES * INTERVALS * SUCCESSORS * NOISES
GAMMA, ALPHA = 0.5, 0.3
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@dataclass
class FiniteMDP:
    """A random MDP and a policy. Every pair has `SUCCESSORS` equally likely transitions.

    Attributes:
        reward: of each pair, (STATES, INTERVALS).
        successor: state after each transition, (STATES, INTERVALS, SUCCESSORS).
        terminated: whether a transition ends the episode, (STATES, INTERVALS, SUCCESSORS).
        loc: of the policy before the tanh, (STATES,).
        scale: of the policy before the tanh, (STATES,).
        noise: equally likely values, (NOISES,).
    """

    reward: NDArray[np.float64]
    successor: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    loc: NDArray[np.float64]
    scale: NDArray[np.float64]
    noise: NDArray[np.float64]

    @classmethod
    def random(cls, seed: int) -> FiniteMDP:
        rng = np.random.default_rng(seed)
        shape = STATES, INTERVALS, SUCCESSORS
        return cls(
            rng.normal(size=shape[:2]),
            rng.integers(STATES, size=shape),
            rng.random(shape) < 0.2,
            rng.normal(size=STATES),
            rng.uniform(0.3, 1.2, size=STATES),
            rng.normal(size=NOISES),
        )

    def soft_values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The policy's soft Q (STATES, INTERVALS) and V (STATES,): the solution of the linear Bellman equation."""
        u = self.loc[:, None] + self.scale[:, None] * self.noise
        action = np.tanh(u)
        log_prob = -0.5 * self.noise**2 - np.log(self.scale[:, None] * np.sqrt(2 * np.pi)) - np.log(1 - action**2)
        policy = np.zeros((STATES, STATES, INTERVALS))
        for state in range(STATES):
            for interval in interval_of(action[state]):
                policy[state, state, interval] += 1 / NOISES
        entropy = -ALPHA * log_prob.mean(1)
        move = np.zeros((PAIRS, STATES))
        for pair, (states, ends) in enumerate(
            zip(self.successor.reshape(PAIRS, -1), self.terminated.reshape(PAIRS, -1), strict=True)
        ):
            np.add.at(move[pair], states[~ends], GAMMA / SUCCESSORS)
        flat = policy.reshape(STATES, PAIRS)
        q = np.linalg.solve(np.eye(PAIRS) - move @ flat, self.reward.reshape(PAIRS) + move @ entropy)
        return q.reshape(STATES, INTERVALS), flat @ q + entropy

    def batch(self) -> TensorDict:
        """Every transition, once for each value of the noise, which varies fastest."""
        states, intervals, _ = np.indices((STATES, INTERVALS, SUCCESSORS))
        columns = (states, (2 * intervals + 1) / INTERVALS - 1, self.successor, self.terminated)
        state, action, successor, terminated = (
            torch.as_tensor(one).flatten().repeat_interleave(NOISES) for one in columns
        )
        reward = torch.as_tensor(self.reward).flatten().repeat_interleave(SUCCESSORS * NOISES).float()
        one_hot = torch.eye(STATES)
        truncated = torch.zeros_like(terminated)
        return transitions.make(
            one_hot[state], action.float().unsqueeze(-1), one_hot[successor], reward, terminated, truncated
        )


def interval_of(action: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor((action + 1) / 2 * INTERVALS).astype(np.int64)


class PairTable(nn.Module):
    """A value for each state and interval of the action: one-hot state and action (B, STATES + 1) -> (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(STATES, INTERVALS))

    def forward(self, x: Tensor) -> Tensor:
        interval = ((x[:, STATES:] + 1) / 2 * INTERVALS).floor()
        chosen = (interval == torch.arange(INTERVALS)).float()
        return ((x[:, :STATES] @ self.table) * chosen).sum(-1, keepdim=True)


class Descent:
    """Gradient descent whose rate makes a step on a squared error, averaged over equally frequent entries, exact."""

    def __init__(self, parameters: dict[str, Tensor], entries: int):
        self.parameters, self.rate = list(parameters.values()), entries / 2

    def minimize(self, loss: Tensor) -> None:
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            parameter.data -= self.rate * gradient


def tabular_agent(name: str, mdp: FiniteMDP, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """An agent of a preset with tables in place of networks, exact steps, and the MDP's policy and noise."""

    def actor(*_: object) -> Actor:
        body = nn.Linear(STATES, 2, bias=False)
        body.weight.data = torch.as_tensor(np.stack([mdp.loc, np.log(mdp.scale)])).float()
        return Actor(body)

    monkeypatch.setattr(losses, "_make_actor", actor)
    monkeypatch.setattr(losses, "_make_critic", lambda *_: Critic(PairTable()))
    monkeypatch.setattr(losses, "_make_value_network", lambda *_: nn.Linear(STATES, 1, bias=False))
    noise = torch.as_tensor(mdp.noise).float().repeat(ROWS // NOISES).unsqueeze(-1)
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: noise.expand(shape))
    settings = {"alpha_init": ALPHA, "alpha_lr": 0.0, "gamma": GAMMA, "tau": 1.0, "compile": False, "device": "cpu"}
    agent = Agent(preset_config(name, "Hopper-v5", **settings), STATES, 1)
    agent.optimizers["critic"] = Descent(critic_parameters(agent.loss), PAIRS)  # type: ignore[assignment]
    if values := value_parameters(agent.loss):
        agent.optimizers["value"] = Descent(values, STATES)  # type: ignore[assignment]
    return agent


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["sac", "sac-v1"])
def test_both_forms_reach_the_exact_soft_values(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(seed)
    mdp = FiniteMDP.random(seed)
    agent, batch = tabular_agent(name, mdp, monkeypatch), mdp.batch()
    for _ in range(45):
        agent.update_critic(batch)
    q, v = (torch.as_tensor(one).float() for one in mdp.soft_values())
    for found in critic_parameters(agent.loss)["module.body.table"]:
        torch.testing.assert_close(found, q, rtol=1e-5, atol=1e-5)
    if name == "sac-v1":
        for parameters in (value_parameters(agent.loss), target_parameters(agent.loss)):
            torch.testing.assert_close(parameters["module.weight"][0], v, rtol=1e-5, atol=1e-5)
