"""StackedAgents: the agents of all members as one, mapped over the members by torch.vmap."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from envs import transition as transitions
from pipeline.agent import Agent, Metrics
from pipeline.config import Config
from pipeline.dimensions import Dimensions
from pipeline.seeding import derive_seed
from saltus.device.compiled_update import Update, flatten, trace
from saltus.errors import SaltusError

MEMBER_SETTINGS = (
    "actor_lr", "critic_lr", "alpha_lr", "alpha_init", "gamma", "target_entropy_scale", "noise_repeat"
)  # fmt: skip
"""Settings that may differ between members, as `seed` may: they change no operation of an update."""

_aten = torch.ops.aten


class StackedAgents(Agent):
    """The agents of S members, which act and learn at once, each on its own.

    Tensors of all members are stacked: here the methods of `Agent` take and return tensors with a leading dimension of
    members. Each method is traced once, for one member, and the trace is mapped over the members. Methods that this
    class does not override concern the traced member, which never learns. `progress` is the same for all.

    Args:
        configs: the members' configurations, each with `n_step` as a number. They may differ in `MEMBER_SETTINGS` and
            `seed`, which decides the initial networks.
        dimensions: widths of observations and actions.
        device: where networks, optimisers and statistics live.
    """

    def __init__(self, configs: Sequence[Config], dimensions: Dimensions, device: torch.device | str = "cpu"):
        super().__init__(configs[0], dimensions, device)
        _use_tensors(self)
        stacked: dict[Hashable, Tensor] = {}
        members = [_make(config, dimensions, device) for config in configs]
        for own, *others in zip(_state(self), *map(_state, members), strict=True):
            stacked.setdefault(_identity(own), torch.stack([tensor.detach() for tensor in others]))
        self._stacked = stacked

        self._configs, self._discounts = configs, [config.initial_discount for config in configs]

        config = self.config
        widths = dimensions.widths[:2]
        batch = transitions.zeros(config.batch_size, *widths, self.device)
        if config.n_step != 1:
            batch["steps_to_next_obs"] = torch.ones(config.batch_size, 1, device=self.device)
        worlds = transitions.zeros(config.num_envs, *widths, self.device)
        self._mapped_critic = self._map(super().update_critic, batch)
        self._mapped_actor = self._map(super().update_actor, batch)
        self._mapped_observe = self._map(self._observe_one, worlds)
        inputs = {"observation": worlds["observation"], "noise": worlds["action"]}
        self._mapped_act = self._map(self._act_one, TensorDict(inputs, batch_size=[config.num_envs]))

    @property
    def gammas(self) -> Tensor:
        """The members' discount factors, (S,)."""
        return self._stacked[_identity(self.gamma)]

    def apply_schedules(self, progress: float, env_steps: float, control_step: float) -> None:
        """Set learning rates for a share of the run, in [0, 1], and discount factors for a member's env steps."""
        self.progress.fill_(progress)
        for member, config in enumerate(self._configs):
            discount = config.discount(env_steps, control_step)
            if discount != self._discounts[member]:
                self._discounts[member] = discount
                self.gammas[member].fill_(discount)

    def _map(self, function: Update, batch: TensorDict) -> Update:
        """A function of one member's batch, mapped over the members and their batches."""
        traced = trace(function, batch, _state(self))
        graph, keys = _make_mappable(traced.graph), flatten(batch)[0]
        found = [self._stacked.get(_identity(tensor)) for tensor in traced.inputs]
        inputs = [own if stacked is None else stacked for own, stacked in zip(traced.inputs, found, strict=True)]
        dimensions = [None if stacked is None else 0 for stacked in found] + [0] * len(keys)
        mapped = torch.vmap(graph, in_dims=tuple(dimensions), randomness="different")

        def call(batches: TensorDictBase) -> Metrics:
            with torch.no_grad():
                return dict(zip(traced.names, mapped(*inputs, *(batches[key] for key in keys)), strict=True))

        return call

    def _observe_one(self, transition: TensorDict) -> Metrics:
        super().observe(transition)
        return {"observed": transition["next", "done"]}  # vmap needs a result

    def _act_one(self, batch: TensorDict) -> Metrics:
        return {"action": super().act(batch["observation"], batch["noise"])}

    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions of the members' stochastic policies, (S, N, action_dim) in [-1, 1].

        Args:
            observation: (S, num_envs, obs_dim).
            noise: (S, num_envs, action_dim), standard normal.
        """
        batch = TensorDict({"observation": observation, "noise": noise}, batch_size=observation.shape[:2])
        return self._mapped_act(batch)["action"]

    def observe(self, transition: TensorDictBase) -> None:
        """Update the running statistics with a transition of batch size [S, num_envs]."""
        self._mapped_observe(transition)

    def update_critic(self, batch: TensorDict) -> Metrics:
        """One step of the members' critics, each on its part of a batch of size [S, batch_size]; metrics are (S,)."""
        return self._mapped_critic(batch)

    def update_actor(self, batch: TensorDict) -> Metrics:
        """One step of the members' actors and temperatures, like `update_critic`."""
        return self._mapped_actor(batch)

    def tensors(self) -> Iterator[Tensor]:
        """Every stacked tensor."""
        yield from self._stacked.values()

    def state_dict(self) -> dict[str, Any]:
        """The stacked tensors, in the order of `tensors`; not copies."""
        return {"stacked": [*self.tensors()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            SaltusError: the state is of agents with other tensors.
        """
        if [one.shape for one in state["stacked"]] != [one.shape for one in self.tensors()]:
            raise SaltusError("the state is of agents with other tensors")
        for tensor, saved in zip(self.tensors(), state["stacked"], strict=True):
            tensor.copy_(saved)
        self._discounts = self.gammas.tolist()

    def member_state(self, member: int) -> dict[str, Any]:
        """A copy, on the CPU, of the `Agent.state_dict` of one member alone."""

        def own(tensor: Tensor) -> Tensor:
            stacked = self._stacked.get(_identity(tensor))
            return (tensor if stacked is None else stacked[member]).to("cpu", copy=True)

        return tree_map_only(Tensor, own, super().state_dict())

    def policy_state(self) -> dict[str, dict[str, Tensor]]:
        """A copy, on the CPU, of everything that the members' policies depend on, (S, ...) each."""
        observations = self.normalizers.state_dict().get("observations", {})
        parts = {"network": self.eval_actor.state_dict(), "observations": observations}
        return {
            part: {name: self._stacked[_identity(one)].to("cpu", copy=True) for name, one in tensors.items()}
            for part, tensors in parts.items()
        }


def _make(config: Config, dimensions: Dimensions, device: torch.device | str) -> Agent:
    torch.manual_seed(derive_seed(config.seed, "learner"))
    agent = Agent(config, dimensions, device)
    _use_tensors(agent)
    return agent


def _use_tensors(agent: Agent) -> None:
    """Replace the learning rates, which differ between members, by tensors, which one graph reads for all."""
    for optimizer in agent.optimizers.values():
        optimizer.lr = torch.as_tensor(optimizer.lr, dtype=torch.float64, device=agent.device)


def _state(agent: Agent) -> Iterator[Tensor]:
    """Every tensor of one agent that it changes, or that differs between members; always in the same order."""
    yield from Agent.tensors(agent)
    for optimizer in agent.optimizers.values():
        assert isinstance(optimizer.lr, Tensor)
        yield optimizer.lr
    for statistics in agent.normalizers.state_dict().values():
        yield from statistics.values()


def _identity(tensor: Tensor) -> Hashable:
    """The same for tensors that are views of the same elements."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _make_mappable(graph: fx.GraphModule) -> fx.GraphModule:
    """Replace the operations of a traced function that torch.vmap cannot map."""
    nodes = graph.graph
    for node in list(nodes.nodes):
        new = None
        with nodes.inserting_before(node):
            if node.target is _aten.normal_.default and node.args[0].target is _aten.empty.memory_format:
                # New memory is not mapped, so filling it would draw the same numbers for all members.
                empty = node.args[0]
                options = {name: empty.kwargs.get(name) for name in ("dtype", "device")}
                new = nodes.call_function(_aten.randn.default, (empty.args[0],), options)
            elif node.target in (_aten.lerp_.Scalar, _aten.lerp_.Tensor):
                start, end, weight = node.args
                difference = nodes.call_function(_aten.sub.Tensor, (end, start))
                step = nodes.call_function(_aten.mul.Tensor, (difference, weight))
                new = nodes.call_function(_aten.add_.Tensor, (start, step))
        if new is not None:
            node.replace_all_uses_with(new)
            nodes.erase_node(node)
    nodes.eliminate_dead_code()
    graph.recompile()
    return graph
