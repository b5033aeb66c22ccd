"""The verdict of a profile in plain words: the bound, the option to turn, the cost of more."""

from __future__ import annotations

from typing import Any

from pipeline.profile.phases import ROUND, WAITING

_UPDATES = ("critic update", "actor and temperature update", "critic, actor and temperature update")
_GROUPS = {
    "simulation": ("physics", "task functions", "reset"),
    "updates": (*_UPDATES, ROUND),
    "memory": ("buffer write", "sample"),
    "host": ("act", "transition", "logging", "rest"),
    "waiting": (WAITING,),
}
_PER_WORLD = ("physics", "task functions", "reset", "buffer write")
_PER_UPDATE = (*_UPDATES, "sample")
_NEAR_ROOF = 0.6  # a phase is bound by a roof of at least this share


def verdict(result: dict[str, Any]) -> list[str]:
    """Sentences on a result of `summarize`."""
    phases = result["phases"]
    shares = {group: _sum(phases, names, "share") for group, names in _GROUPS.items()}
    bound = max(shares, key=lambda group: shares[group])
    launches = result["launches"]
    lines = [_bound(bound, shares[bound], result), *_costs(result), _failures(result)]
    lines += [f"The {name}s took {seconds:.1f} s more." for name, seconds in result["outside"].items() if seconds]
    if launches["nodes"]:
        share = launches["seconds"] / result["vector_step"]["mean"]
        lines.append(
            f"A vector step launches {launches['nodes']:,.0f} nodes on average; empty ones would take {share:.0%} of it"
            + (": launches bound the run. Raise --num-envs and --batch-size." if share > _NEAR_ROOF else ".")
        )
    moments = {"each vector step": result["waits"], "each row of metrics": result["waits_of_metrics"]}
    for moment, places in moments.items():
        if places:
            lines.append(f"The host waits for the GPU at {moment}: in {', '.join(places)}.")
    if result["machine"]["device"] == "cpu":
        lines.append("The host never waits for a GPU: this run has none.")
    return lines


def _sum(phases: dict[str, Any], names: tuple[str, ...], key: str) -> float:
    return sum(phases[name][key] for name in names if name in phases)


def _bound(group: str, share: float, result: dict[str, Any]) -> str:
    phases = result["phases"]
    if group == "updates":
        roof = sum(phases[name]["roof"] or 0.0 for name in _UPDATES if name in phases)
        fraction = min(1.0, roof / _sum(phases, _GROUPS["updates"], "mean"))
        if roof and fraction > _NEAR_ROOF:
            return (
                f"Matrix products bound the run: updates take {share:.0%} of a vector step, and their products alone "
                f"{fraction:.0%} of that. Lower --utd-ratio, --batch-size, --critic-hidden or --num-critics, or raise "
                "--policy-delay."
            )
        on_gpu = result["machine"]["device"] != "cpu"
        known = f"; their matrix products need {fraction:.0%} of that" if roof else ""
        rest = "launches" if on_gpu else "memory-bound operations between the products"
        turn = "--batch-size gains samples at little cost" if on_gpu else "lower --utd-ratio or --batch-size"
        if not result["config"]["compile"]:
            rest, turn = f"Python, dispatch and {rest}", "drop --no-compile"
        return f"Updates bound the run: {share:.0%} of a vector step{known}. The rest is {rest}: {turn}."
    worlds = "Raise --num-envs: a step of Warp takes little longer for more worlds"
    if result["machine"]["physics"] == "cpu":
        worlds = "Raise --num-threads if cores are idle, try --solver newton"
    advice = {
        "simulation": f"{worlds}, or raise --utd-ratio: updates cost little here. A larger timestep or a simpler model "
        "helps most",
        "memory": "Lower --batch-size or --utd-ratio, or the observation's width",
        "host": "Raise --num-envs: the host's work per vector step hardly grows with it",
        "waiting": "Raise --num-envs or lower --utd-ratio, so that the GPU is done when the host needs its actions",
    }
    name = {"host": "The host", "memory": "Memory"}.get(group, group.capitalize())
    return f"{name} bounds the run: {share:.0%} of a vector step. {advice[group]}."


def _costs(result: dict[str, Any]) -> list[str]:
    """Rates with twice the worlds and with twice the UTD ratio, if each phase grows in proportion or not at all."""
    phases, config = result["phases"], result["config"]
    step, num_envs = result["vector_step"]["mean"], config["num_envs"]
    updates = result["updates"] / result["vector_steps"]
    of_worlds = _sum(phases, _PER_WORLD, "mean")
    if ROUND not in phases:
        worlds, learning = step + of_worlds, step + _sum(phases, _PER_UPDATE, "mean")
    elif result["round_seconds"]:
        host, gpu = step - _sum(phases, (WAITING,), "mean"), result["round_seconds"]
        rounds = 1 / config["steps_per_round"]
        in_turn = max(0.0, step - _at_once(host, gpu, rounds))  # part of the wait, as that for actions
        worlds = in_turn + _at_once(host + of_worlds, gpu, rounds)
        learning = in_turn + _at_once(host, 2 * gpu, rounds)
    else:
        return []
    return [
        f"Twice the worlds with the same updates per vector step (--num-envs {2 * num_envs} --utd-ratio "
        f"{config['utd_ratio'] / 2:.12g}): about {2 * num_envs / worlds:,.0f} env steps/s, {updates / worlds:,.0f} "
        "updates/s.",
        f"Twice the updates (--utd-ratio {2 * config['utd_ratio']:.12g}): about {num_envs / learning:,.0f} env "
        f"steps/s, {2 * updates / learning:,.0f} updates/s.",
    ]


def _at_once(host: float, gpu: float, rounds: float) -> float:
    """Mean seconds of vector steps of `host` seconds, a share `rounds` of which also waits for `gpu` seconds' work."""
    return rounds * max(host, gpu) + (1 - rounds) * host


def _failures(result: dict[str, Any]) -> str:
    total = result["vector_steps"] * result["config"]["num_envs"]
    counts = ", ".join(f"{value:,.0f} {name}" for name, value in result["failures"].items())
    return f"Of {total:,} world-steps: {counts or 'failures were not counted, because the run ended early'}."
