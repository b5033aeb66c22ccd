"""Dimensions: the widths of observations and actions that networks and replay buffers are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envs.environment import Environment


@dataclass(frozen=True)
class Dimensions:
    """Widths of observations and actions, and the choices of discrete actions.

    Attributes:
        observation_dim: width of observations.
        action_dim: width of actions.
        privileged_dim: width of what the critics see in addition to observations, and the actor does not; 0: nothing.
        action_choices: number of choices of each discrete action of the environment; empty: actions are continuous.
    """

    observation_dim: int
    action_dim: int
    privileged_dim: int = 0
    action_choices: tuple[int, ...] = ()

    @classmethod
    def of(cls, env: Environment) -> Dimensions:
        """The dimensions of an environment."""
        return cls(env.observation_dim, env.action_dim, env.privileged_dim, env.action_choices)

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of a transition's observation, action and privileged observation (see `envs.transition`)."""
        return self.observation_dim, self.action_dim, self.privileged_dim

    def __str__(self) -> str:
        privileged = f", {self.privileged_dim} privileged observations" if self.privileged_dim else ""
        discrete = f" of {', '.join(map(str, self.action_choices))} choices" if self.action_choices else ""
        return f"{self.observation_dim} observations{privileged} and {self.action_dim} actions{discrete}"
