"""Runs on two ranks, for `test_ranks.py`: python rank_scenarios.py FOLDER [NAMES].

This process imports saltus once and forks two ranks for each scenario, with the environment that torchrun gives them.
A rank's result is `FOLDER/<scenario>-<rank>.pt`, its output `FOLDER/<scenario>-<rank>.txt`. A scenario of `AGENTS` is
one process, which starts the ranks as torchrun does.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import tensorboard.compat.proto.summary_pb2  # noqa: F401 - imported before the forks
import torch
import torch.distributed as distributed
from blank_pictures import draw_blank
from pipeline_helpers import (
    ACTION_DIM,
    DIMENSIONS,
    clone_state,
    filled_buffer,
    random_transition,
    small_config,
)
from rank_runs import AGENTS, COMMANDS, WAITING
from tensordict import TensorDict
from torch import Tensor

import pipeline.train_options  # noqa: F401
from pipeline import agent as agents
from pipeline import checkpoint, launch, losses, plot, rank_report, rank_state
from pipeline.agent import Agent
from pipeline.config import Config
from pipeline.learner import Learner
from pipeline.normalize import Normalizers
from pipeline.ranks import ALONE, Ranks, TorchRanks
from saltus.device.compiled_update import CompiledUpdate, trace

GRADIENTS = {
    "fast": {}, "sac": {}, "sac-v1": {}, "redq": {}, "droq": {"dropout": 0.0}, "crossq": {}, "xqc": {}, "flashsac": {},
    "sac-discrete": {"action_levels": 3}, "fast batched": {}, "flashsac-parallel": {},
    "sac-discrete factored": {"action_levels": 3, "policy": "factored"},
    "sac-discrete soft-q": {"action_levels": 3, "discrete_update": "soft-q"},
}  # fmt: skip
DIVIDED_EXAMPLES = {
    "num_envs": (100, "96 or 104"),
    "batch_size": (4, "8"),
    "buffer_size": (10_001, "10,000 or 10,008"),
}


def gradients(folder: Path) -> Any:
    """Largest differences between two ranks with half a batch each and one with the whole batch, by preset."""
    torch.set_default_dtype(torch.float64)
    return {name: _compare_gradients(name) for name in GRADIENTS}


def _compare_gradients(name: str) -> dict[str, float]:
    preset = name.split()[0]
    config = small_config(preset=preset, batch_size=16, policy_delay=2, **GRADIENTS[name])
    whole = random_transition(16).apply(lambda value: value.double() if value.is_floating_point() else value)
    ranks = TorchRanks()
    alone = _one_update(config, whole, ALONE, batched="batched" in name)
    shared = _one_update(config, whole.split(8)[ranks.rank], ranks, batched="batched" in name)
    return {part: float((shared[part] - value).abs().max()) for part, value in alone.items()}


def _one_update(config: Config, batch: TensorDict, ranks: Ranks, batched: bool) -> dict[str, Tensor]:
    """Gradients of critics, actor and temperature, and statistics of batch norms, of one update."""
    torch.manual_seed(0)
    make = losses.make_loss
    agents.make_loss = partial(make, batched_critics=batched)
    agent = Agent(config, DIMENSIONS, ranks=ranks)
    agents.make_loss = make
    found: dict[str, Tensor] = {}
    for name, optimizer in agent.optimizers.items():
        optimizer.step = lambda gradients, name=name: found.update(  # type: ignore[method-assign]
            {f"{name} {number}": gradient.clone() for number, gradient in enumerate(gradients)}
        )
    with _noise_of_whole_batch(ranks):
        agent.update_critic(batch)
        agent.update_actor(batch)
    state = {name: value for name, value in agent.loss.state_dict().items() if "running" in name}
    return found | state


@contextmanager
def _noise_of_whole_batch(ranks: Ranks) -> Any:
    """Let the policy's noise be that of this rank's rows of the whole batch."""
    generator, draw = torch.Generator().manual_seed(1), torch.distributions.normal._standard_normal

    def own_rows(shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        rows = torch.randn(shape[0] * ranks.size, *shape[1:], dtype=dtype, generator=generator)
        return rows[ranks.rank * shape[0] :][: shape[0]]

    torch.distributions.normal._standard_normal = own_rows
    yield
    torch.distributions.normal._standard_normal = draw


def statistics(folder: Path) -> Any:
    """States of the normalisers of two ranks with two worlds each, and of one with four."""
    config, ranks = small_config(normalize_observations=True, reward_scaling="bounded"), TorchRanks()
    shared = Normalizers(config, DIMENSIONS, 0.99, ranks=ranks)
    alone = Normalizers(config, DIMENSIONS, 0.99)
    for step in range(5):
        transition = random_transition(4, seed=step)
        transition["observation"] += 1000
        alone.update(transition)
        shared.update(transition.split(2)[ranks.rank])
    restored = Normalizers(config, DIMENSIONS, 0.99, ranks=ranks)
    restored.load_state_dict(shared.state_dict())
    assert shared.rewards is not None
    assert restored.rewards is not None
    assert torch.equal(restored.rewards.returns, shared.rewards.returns)
    return {"shared": shared.state_dict(), "alone": alone.state_dict()}


def updates(folder: Path) -> Any:
    """Agents after updates on different batches; what is said when one differs."""
    ranks, states = TorchRanks(), {}
    for preset in ("fast", "flashsac", "redq"):
        torch.manual_seed(0)
        config = small_config(preset=preset, actor_hidden=(16,), critic_hidden=(16,))
        agent = Agent(config, DIMENSIONS, ranks=ranks)
        torch.manual_seed(ranks.rank)
        n_step = config.rewards_per_target(ACTION_DIM)
        Learner(agent).round(filled_buffer(seed=ranks.rank, n_step=n_step), 6)
        states[preset] = clone_state(agent.state_dict())
        rank_report.compare_ranks(agent, {}, 1.0)
    if ranks.rank == 1:
        next(iter(agent.optimizers["critic"].mean)).view(-1)[0] += 1e-7
    return {"states": states, "refusal": _refusal(lambda: rank_report.compare_ranks(agent, {}, 1.0))}


def traced(folder: Path) -> Any:
    """The update of `fast`, recorded as `CompiledUpdate` does: its operations, and whether it computes the same."""
    ranks, config = TorchRanks(), small_config(preset="fast", policy_delay=1)
    batch, results = random_transition(16, seed=ranks.rank), []
    for record in (False, True):
        torch.manual_seed(0)
        agent = Agent(config, DIMENSIONS, ranks=ranks)
        torch.manual_seed(ranks.rank)
        if record:
            update = trace(agent.update, batch, agent.tensors())
            torch.manual_seed(ranks.rank)
            values = [value for _, value in batch.items(include_nested=True, leaves_only=True)]
            with torch.no_grad():
                update.graph(*update.inputs, *values)
        else:
            agent.update(batch)
        results.append(dict(agent.loss.state_dict()))
    names = [str(node.target) for node in update.graph.graph.nodes]
    return {"results": results, "sums": names.count("_c10d_functional.all_reduce.default")}


def messages(folder: Path) -> Any:
    """What ranks tell each other."""
    ranks = TorchRanks()
    rows = torch.arange(4.0).view(2, 2) + 10 * ranks.rank
    return {
        "any": [ranks.any_rank(ranks.rank == 1), ranks.any_rank(False)],
        "from_rank_0": ranks.from_rank_0(0.1 + ranks.rank),
        "gather": ranks.gather(str(ranks.rank)),
        "rows": ranks.concatenate(rows),
        "own": torch.equal(ranks.own_rows(ranks.concatenate(rows)), rows),
        "maximum": ranks.maximum(torch.tensor(float(ranks.rank))),
        "share": ranks.share(6),
    }


def uncompiled(folder: Path) -> Any:
    """An update that rank 1 cannot compile."""
    ranks = TorchRanks()
    update = CompiledUpdate(lambda batch: {"which": "plain"}, list, ranks.any_rank)  # type: ignore[dict-item]

    def compile_or_fail(batch: TensorDict) -> None:
        if ranks.rank == 1:
            raise RuntimeError("no compiler")
        update._run = lambda *_: ["compiled"]

    update._compile = compile_or_fail  # type: ignore[method-assign]
    called = [update(random_transition(2))["which"] for _ in range(2)]
    return {"results": called, "compiled": update.compiled}


def fallback(folder: Path) -> Any:
    """The checkpoint from which ranks resume if rank 1's part of the last one is damaged, and what is said."""
    ranks, config, checkpoints = TorchRanks(), small_config(), folder / "fallback"
    for env_steps in (10, 20):
        state = dict.fromkeys(rank_state.OWN, torch.zeros(4)) | {"env_steps": env_steps, "ranks": ranks.size}
        rank_state.save(checkpoints, config, state, ranks)
    content = checkpoint.load_last(checkpoints)
    chosen, warned = [], []
    for env_steps in (20, 10):
        if ranks.rank == 1:
            os.truncate(*checkpoints.glob(f"{env_steps:012d}.rank1.*"), 100)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chosen.append(_refusal(lambda: rank_state.agree(content, config, ranks)) or content["file"].name)
        warned += [str(one.message) for one in caught]
    return {"chosen": chosen, "warned": warned}


def refused(folder: Path) -> Any:
    """Rank 0 refuses, for all ranks."""
    return _refusal(lambda: launch.on_rank_0(TorchRanks(), lambda: launch.require_divisible(small_config(), 3)))


def _refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


IN_A_GROUP = (gradients, statistics, updates, traced, messages, uncompiled, fallback, refused)


def run_rank(scenario: Callable[[Path], Any], folder: Path, rank: int, port: int) -> int:
    """Run a scenario as a rank, in a process of its own; return its exit code."""
    if scenario not in AGENTS:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in variables.items()})
    stem = folder / f"{scenario.__name__}-{rank}"
    output = os.open(stem.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        if scenario in IN_A_GROUP:
            distributed.init_process_group("gloo")
        torch.save(scenario(folder), stem.with_suffix(".pt"))
    except SystemExit as exit_:
        print(exit_, flush=True)
        return 1
    except BaseException:
        traceback.print_exc()
        return 2
    return 0


def start(scenario: Callable[[Path], Any], folder: Path) -> list[int]:
    """Fork the processes of a scenario; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(1 if scenario in AGENTS else 2):
        child = os.fork()
        if child == 0:
            code = run_rank(scenario, folder, rank, port)
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    return children


def exit_codes(children: list[int]) -> list[int]:
    """The exit codes of processes, or minus the signals that killed them, after their ends."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(folder: Path, names: list[str]) -> None:
    """Run scenarios, by default all, and write their exit codes to `FOLDER/codes.pt`."""
    torch.set_num_threads(1)
    plot._draw = draw_blank
    launch._REPORT_SECONDS = 1.0  # ranks of one machine notice a failure sooner
    gc.collect()
    gc.freeze()  # else the first collection in each fork copies the memory
    chosen = [one for one in WAITING + IN_A_GROUP + COMMANDS + AGENTS if not names or one.__name__ in names]
    waiting = {one.__name__: start(one, folder) for one in chosen if one in WAITING}
    codes = {one.__name__: exit_codes(start(one, folder)) for one in chosen if one not in WAITING}
    for name, (first, second) in waiting.items():
        codes[name] = exit_codes([first])
        os.kill(second, signal.SIGKILL)  # it sleeps on, if it has not ended
        codes[name] += exit_codes([second])
    torch.save(codes, folder / "codes.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
