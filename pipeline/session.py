"""A session of a run: from its start or its last checkpoint to its end or a signal, on one rank or several."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipeline import torchrun
from pipeline.console import log_to, print_line

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.run import Run

NOT_EXACT = (
    "another library simulates {name}: a resumed run continues learner, replay buffer and counters, and begins new "
    "episodes"
)

DEALT = (
    "the run had {saved} ranks and continues on {size}: worlds and replay are dealt anew, new episodes begin, and it "
    "does not continue bit for bit"
)


def start_run(config: Config, run_dir: Path | str | None, console: Console) -> tuple[Path, str | None]:
    """Train a new run, in a directory without one; None: `run_dir.default_path`. Returns as `train_run`."""
    from pipeline.logger import require_packages
    from pipeline.run_dir import require_unused
    from pipeline.run_paths import to_path

    path = None if run_dir is None else to_path(run_dir)
    if path is not None:
        require_unused(path)
    require_packages(config)
    return train_run(config, path, console)


def resume_run(
    run_dir: Path, task: str | None, trust: bool, console: Console, restarted: bool
) -> tuple[Path, str | None]:
    """Continue a run from its last checkpoint. Returns as `train_run`."""
    from pipeline.run_dir import locked
    from pipeline.stored_run import compare_versions, describe_checkpoint, open_run

    with locked(run_dir) if torchrun.rank() == 0 else nullcontext():
        with log_to(console):
            config, content = open_run(run_dir, task, trust)
        print_line(console, "restarted by torchrun; " * restarted + describe_checkpoint(content, config))
        compare_versions(content["versions"])
        return train_run(config, run_dir, console, content)


def train_run(
    config: Config, run_dir: Path | None, console: Console, content: dict[str, Any] | None = None
) -> tuple[Path, str | None]:
    """Train from the start, or from a checkpoint's `content`; the state is removed from it to free its memory.

    A new run makes its directory and locks it; the directory of a run that resumes is locked by the caller. Of several
    ranks only rank 0 writes to it, except for the others' parts of checkpoints.

    Returns:
        The run's directory, and the name of the signal that stopped the session, if one did.
    """
    from saltus.device import cuda_available
    from saltus.device.warm_start import warm_start

    on_cpu = config.device == "cpu" or (config.device == "auto" and not cuda_available())
    if config.compile and on_cpu:
        warm_start()  # in the background of the imports below, which take seconds

    from pipeline.checkpoint import CheckpointError
    from pipeline.divergence import DIVERGED, DivergenceError
    from pipeline.launch import join, on_rank_0, require_shared
    from pipeline.logger import Logger, SilentLogger
    from pipeline.rank_state import agree, load_state
    from pipeline.restarts import remember_run
    from pipeline.run import Run
    from pipeline.run_dir import default_path, new_run
    from pipeline.stop_signal import StopSignal
    from pipeline.stored_run import compare_task, require_same_dimensions, require_same_state, update_config
    from pipeline.train import train as train_loop

    with (
        StopSignal(partial(print_line, console)) as stop,
        log_to(console),
        join(config, on_failure=stop.silence) as ranks,
        ExitStack() as stack,
    ):
        if content is not None:
            agree(content, config, ranks)
        run = Run(config, run_dir or default_path(config), ranks)
        stack.callback(run.learner.release)  # NCCL waits for the graphs that contain its operations
        model = run.env.model
        if content is None:
            run.run_dir = on_rank_0(ranks, lambda: stack.enter_context(new_run(config, run_dir, model)))
            if ranks.rank == 0:
                remember_run(run.run_dir)
        else:
            require_same_dimensions(content, run.env)
            require_same_state(run.run_dir, model)
            compare_task(config, run.run_dir, model, "resumed, but not bit for bit")
            on_rank_0(ranks, lambda: update_config(config, run.run_dir, content))
            saved = content["state"].get("ranks", 1)
            run.load_state_dict(load_state(content, ranks))
            if saved != ranks.size:
                print_line(console, DEALT.format(saved=saved, size=ranks.size))
        run_dir = run.run_dir
        require_shared(ranks, run_dir)
        if not run.env.resumes_exactly:
            print_line(console, NOT_EXACT.format(name=run.env.name))
        entropy, precision = float(run.agent.loss.target_entropy), config.for_device(run.device).matmul_dtype
        try:
            with (
                SilentLogger(run_dir)
                if ranks.rank
                else Logger(run_dir, config, run.env_steps, console, run.evaluation_pending)
            ) as logger:
                logger.say(
                    f"{config.task}, seed {config.seed}, on {run.device}, {precision} products, "
                    f"target entropy {entropy:g}; files: {run_dir}"
                )
                train_loop(run, logger, stop)
        except (DivergenceError, CheckpointError) as error:
            if ranks.rank == 0:
                diverged = isinstance(error, DivergenceError)
                _conclude(run, None, console, DIVERGED if diverged else "a checkpoint could not be written")
            raise
    if ranks.rank == 0:
        _conclude(run, stop.received, console)
    return run.run_dir, stop.received


def _conclude(run: Run, signal: str | None, console: Console, failure: str = "") -> None:
    """Draw the learning curve of a run that has ended, failed or was stopped, and say how it went."""
    from pipeline.plot import learning_curve

    config, run_dir = run.config, run.run_dir  # which may have been renamed
    picture = learning_curve(run_dir, f"{config.task_name}, seed {config.seed}")
    curve = "" if picture is None else f"; learning curve: {picture}"
    if failure:
        print_line(console, f"ended after {run.seconds:.0f} s, because {failure}{curve}")
    elif not run.finished and (signal is not None or run.ranks.size > 1):
        start = "" if run.ranks.size == 1 else f", started by torchrun on {run.ranks.size} ranks,"
        print_line(
            console, f"stopped by {signal or 'another rank'} and saved; `saltus resume {run_dir}`{start} continues"
        )
    else:
        print_line(console, f"finished after {run.seconds:.0f} s{curve}")
    if run.failed_saves and not failure:
        count = f"{run.failed_saves} checkpoint{'s' * (run.failed_saves > 1)}"
        print_line(console, f"{count} of this session could not be written; the last checkpoint was")
    if outcome := _describe_outcome(run, last_is_saved=not failure):
        print_line(console, outcome)


def _describe_outcome(run: Run, last_is_saved: bool) -> str:
    """The best and the last policy, or the reason that there is none; empty before the first evaluation."""
    from pipeline.health.health import describe_policies

    config, updates = run.config, run.learner.gradient_steps
    if run.health.nothing_learned:
        return "nothing could be learned: every world-step failed"
    if run.finished and updates == 0:
        return (
            f"the run ended before its first update, after {run.env_steps:,} env steps: give it more --minutes or "
            f"fewer --learning-starts ({config.learning_starts:,})"
        )
    if run.finished and updates < config.policy_delay:
        return (
            f"the run ended before the first update of its actor, after {updates:,} updates of its critics: give it "
            f"more --minutes or a lower --policy-delay ({config.policy_delay:,})"
        )
    if run.best:
        return describe_policies(run.best, run.health.last or run.best, run.run_dir, last_is_saved)
    if run.health.last:
        return (
            "there is no best policy, because every evaluation had failures; `saltus evaluate "
            f"{run.run_dir} --policy last` plays the policy of the last checkpoint"
        )
    return ""
