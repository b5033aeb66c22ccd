"""Environments of a configuration's task."""

from __future__ import annotations

from functools import partial

from envs.environment import Environment
from envs.environment_ref import make_environment, options_class, resolve_environment
from envs.task_options import decode_options
from pipeline.config import Config


def environment_maker(config: Config) -> partial[Environment]:
    """Find a configuration's task once; return `make_environment` of that task with the configuration's task options.

    The result takes `num_envs` and the keyword arguments of `make_environment`.

    Raises:
        SaltusError: an unknown task, or task options that do not fit it.
    """
    reference = resolve_environment(config.task)
    options = decode_options(options_class(reference), config.task_options)
    return partial(make_environment, reference, options=options)
