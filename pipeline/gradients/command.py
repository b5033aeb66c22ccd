"""``saltus gradients RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor

from pipeline import files
from pipeline.config_checks import MAXIMA
from pipeline.console import print_line
from pipeline.display import show_progress
from pipeline.file_names import GRADIENTS
from pipeline.gradients.compare import ESTIMATORS, compare
from pipeline.gradients.report import conclusion, draw, table
from pipeline.policy import load_agent
from pipeline.run_dir import refuse_links
from pipeline.run_options import Gradients, parse, require_within
from saltus.errors import SaltusError


def gradients(arguments: list[str], console: Console) -> None:
    """Compare the estimators on a run's last checkpoint, print the table and write the picture.

    Raises:
        SaltusError: options that do not work, not a run's directory, an empty replay buffer; see `load_agent`.
        CheckpointError: no checkpoint, or one that cannot be used.
    """
    options = parse(Gradients, arguments)
    _check(options)
    agent, content = load_agent(options.run, options.task, options.trust, "compared, but not as it was trained")
    if agent.config.policy != "gaussian":
        raise SaltusError(
            f"{options.run} has a discrete policy (--policy {agent.config.policy}), and the estimators are those of a "
            "Gaussian one: name a run of another preset"
        )
    if options.output is None:
        refuse_links(options.run)
    state = content["state"]
    states = _draw_states(content, options.states, options.seed).to(agent.device)
    total = options.reference + len(ESTIMATORS) * options.estimates
    with show_progress(console, "estimating", total, "estimates") as report:
        found = compare(agent, states, options.estimates, options.reference, options.seed, report)
    title = f"{agent.config.task_name} after {state['env_steps']:,} env steps, {state['gradient_steps']:,} updates"
    print_line(console, f"{title}; alpha {float(agent.loss.log_alpha.detach().exp()):.3g}")
    console.print(table(found, options.states))
    for line in conclusion(found):
        print_line(console, line)
    path = options.output.expanduser() if options.output else options.run / GRADIENTS
    try:
        files.write(path, draw(found, title))
    except OSError as error:
        raise SaltusError(f"could not write {path}: {error.strerror}. The result is printed above") from error
    print_line(console, str(path))


def _check(options: Gradients) -> None:
    require_within("states", options.states, 2, 65_536)
    require_within("estimates", options.estimates, 2, 1_000)
    require_within("reference", options.reference, 1, 1_000_000)
    require_within("seed", options.seed, 0, MAXIMA["seed"])
    if options.output is not None and options.output.suffix != ".png":
        raise SaltusError(f"--output {options.output}: the name must end in .png")


def _draw_states(content: dict[str, Any], count: int, seed: int) -> TensorDict:
    """Observations of a checkpoint's replay buffer, drawn uniformly with replacement, privileged ones included."""
    stored: dict[str, Tensor] = content["state"]["buffer"]["stored"]
    size = len(stored["observation"])
    if not size:
        raise SaltusError(
            f"the replay buffer of {content['file']} is empty, and the estimators are compared on its states: "
            f"`saltus resume {Path(content['file']).parents[1]}` fills it"
        )
    rows = torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))
    seen = {name: stored[name][rows] for name in ("observation", "privileged") if name in stored}
    return TensorDict(seen, batch_size=[count])
