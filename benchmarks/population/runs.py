"""Members of a population as finished runs, which the commands on a run's directory read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.population.evaluation import EvaluationPool
from benchmarks.population.members import Member
from benchmarks.population.trainer import Trainer
from pipeline import checkpoint
from pipeline.config import Config
from pipeline.file_names import CHECKPOINTS
from pipeline.run import Run
from pipeline.run_dir import create, require_unused


def folders(parent: Path, members: Sequence[Member]) -> list[Path]:
    """The directory of each member's run in `parent`, such as ``gamma=0.99-s3``.

    Those of members that `save_runs` has saved before may exist.

    Raises:
        SaltusError: one of them holds another run.
    """
    paths = [parent / f"{member.variant.replace(' ', '-') or 'recipe'}-s{member.config.seed}" for member in members]
    for path, member in zip(paths, members, strict=True):
        if not _is_saved(path, on_cpu(member.config)):
            require_unused(path)
    return paths


def _is_saved(path: Path, config: Config) -> bool:
    """Whether a directory holds the ended run of a configuration."""
    if not checkpoint.find(path / CHECKPOINTS):
        return False
    try:
        return checkpoint.load_last(path / CHECKPOINTS, config.to_dict())["state"]["ended"]
    except checkpoint.CheckpointError:
        return False


def save_runs(paths: Sequence[Path], members: Sequence[Member], trainer: Trainer, pool: EvaluationPool) -> None:
    """Write the last agent and the best policy of each member as a finished run on the CPU, unless it is saved.

    A member that diverged has no last policy: a line of text says that it is not saved. The run's replay buffer is
    empty, and its worlds are new.

    Args:
        paths: from `folders`.
        members: the members.
        trainer: which trained them to the end.
        pool: which has evaluated all policies.
    """
    for number, (path, member) in enumerate(zip(paths, members, strict=True)):
        config = on_cpu(member.config)
        if _is_saved(path, config):
            continue
        if (steps := pool.diverged[number]) is not None:
            print(f"{path} is not written: the member diverged before {steps:,} env steps", flush=True)
            continue
        run = Run(config, path)
        run.agent.load_state_dict(trainer.agents.member_state(number))
        run.env_steps, run.ended, run.best = trainer.env_steps, True, pool.best[number]
        run.learner.gradient_steps = trainer.gradient_steps
        create(config, path, run.env.model)
        checkpoint.save(path / CHECKPOINTS, run.env_steps, config.to_dict(), run.state_dict())


def on_cpu(config: Config) -> Config:
    """The same configuration for the CPU and its engine."""
    precision = "float32" if config.matmul_dtype == "tf32" else config.matmul_dtype
    return replace(config, device="cpu", physics="cpu", max_contacts=0, max_constraints=0, matmul_dtype=precision)
