"""Ranks compared at each row of metrics: equal networks, and how fast each rank is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.agent import Agent
from pipeline.ranks import Ranks
from saltus.errors import SaltusError

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@dataclass(frozen=True)
class RankReport:
    """A rank's report to the others at a row of metrics.

    Attributes:
        checksums: a number for the bits of each part of the agent, by name; empty for the only rank of a run.
        statistics: the totals of its worlds.
        seconds: wall-clock time since the last row.
        waited: seconds of it in exchanges with other ranks.
    """

    checksums: dict[str, int]
    statistics: dict[str, float]
    seconds: float
    waited: float


def mean_metrics(metrics: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The means over ranks of metrics, scalars by name."""
    return dict(zip(metrics, ranks.mean([*metrics.values()]), strict=True))


def compare_ranks(agent: Agent, statistics: dict[str, float], seconds: float) -> list[RankReport]:
    """The reports of all ranks since the last call, in the order of ranks.

    Args:
        agent: this rank's agent.
        statistics: the totals of this rank's worlds.
        seconds: wall-clock time since the last row of metrics.

    Raises:
        SaltusError: the agents differ.
    """
    ranks = agent.ranks
    waited, ranks.waited = ranks.waited, 0.0
    sums = checksums(agent) if ranks.size > 1 else {}
    reports = ranks.gather(RankReport(sums, statistics, seconds, waited))
    require_equal_agents(reports)
    return reports


def checksums(agent: Agent) -> dict[str, int]:
    """A number for the bits of each part of an agent's state, by name. Synchronises once; waits for all ranks."""
    parts: dict[str, Tensor] = {}
    for name, tensor in _tensors(agent.state_dict()):
        part, value = ".".join(name.split(".")[:2]), _sum_bits(tensor)
        parts[part] = parts[part] * 31 + value if part in parts else value  # int64 wraps around
    return dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))


def _tensors(state: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield f"{name}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{name}{key}.")


def _sum_bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor as integers, each times an odd number of its place, summed modulo 2**64."""
    bits = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()]).long()
    return (bits * torch.arange(1, 2 * len(bits), 2, device=tensor.device)).sum()


def add_statistics(reports: list[RankReport]) -> dict[str, float]:
    """The totals of all ranks' worlds. Other libraries' environments may have reward terms on some ranks alone."""
    names = dict.fromkeys(name for report in reports for name in report.statistics)
    return {name: sum(report.statistics.get(name, 0.0) for report in reports) for name in names}


def describe_rates(reports: list[RankReport], env_steps: float) -> dict[str, float]:
    """Columns of metrics.csv on the speed of ranks; none for a single rank.

    ``rank_rates/<rank>``: env steps/s of a rank while it does not wait for others. ``rank_waiting``: the largest share
    of its time that a rank waits.

    Args:
        reports: those of all ranks.
        env_steps: env steps of all worlds since the last row.
    """
    if len(reports) == 1:
        return {}
    busy = [max(report.seconds - report.waited, 1e-9) for report in reports]
    rates = {f"rank_rates/{rank}": env_steps / len(reports) / seconds for rank, seconds in enumerate(busy)}
    return {**rates, "rank_waiting": max(report.waited / max(report.seconds, 1e-9) for report in reports)}


def require_equal_agents(reports: list[RankReport]) -> None:
    """Raise SaltusError if an agent differs from rank 0's."""
    expected = reports[0].checksums
    for rank, report in enumerate(reports):
        different = [name for name, value in report.checksums.items() if value != expected[name]]
        if different:
            raise SaltusError(
                f"rank {rank} no longer has the same {', '.join(different)} as rank 0, and would train another policy: "
                "resume the run from its last checkpoint. If it happens again, a machine computes differently from the "
                "others: leave it out"
            )
