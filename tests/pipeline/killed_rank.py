"""`saltus`, whose rank 1 is killed after 192 env steps of its first start: torchrun killed_rank.py ARGUMENTS."""

from __future__ import annotations

import os
import signal

from tensordict import TensorDict
from torch import Tensor

from pipeline import cli, torchrun
from pipeline.run import Run

_step = Run.step


def _step_or_end(run: Run, action: Tensor) -> TensorDict:
    if run.env_steps == 192 and torchrun.rank() == 1 and torchrun.restarts() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return _step(run, action)


if __name__ == "__main__":
    Run.step = _step_or_end  # type: ignore[method-assign]
    cli.main()
