"""The training loop."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.logger import Logger
from pipeline.run import Run


def train(run: Run, logger: Logger, stopping: Callable[[], bool] = lambda: False) -> None:
    """Continue a run to its end, or until `stopping()` is true; save it in either case.

    Of several ranks each runs this loop. They stop at the same step: that of the first rank where `stopping()` is true.

    Raises:
        DivergenceError: a loss, parameter or action became infinite or NaN; the last checkpoint precedes it.
        CheckpointError: the first or the last checkpoint could not be written.
    """
    config = run.config
    if run.env_steps == 0:
        run.save(logger)
    else:
        run.recall(logger)
    if run.evaluation_pending:
        run.evaluate(logger, stopping)
        run.save(logger, optional=not run.ended)
    logger.set_progress(run.progress)
    while not (run.ended or run.ranks.any_rank(stopping())):
        due = run.learning and run.vector_steps % config.steps_per_round == 0
        if due and run.compile(logger, stopping):
            continue  # a run that was stopped meanwhile is saved as it was
        action = run.act()
        # Updates precede the step, so that a GPU learns while the CPU simulates.
        if not run.learning:
            logger.phase("random actions")
        elif due:
            run.learn(logger)
        run.buffer.extend(run.step(action))
        progress = run.progress  # read once: it may depend on the clock
        run.ended = progress == 1
        logger.set_progress(progress)
        if run.ended or run.due(config.log_every):
            run.log(logger)
        if run.ended or run.due(config.eval_every):
            run.evaluate(logger, stopping)
        if run.ended or run.due(config.checkpoint_every):
            run.save(logger, optional=not run.ended)
    if not run.ended:
        run.save(logger)
