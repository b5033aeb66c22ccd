"""The error class of saltus, and warnings that are given once."""

from __future__ import annotations

import functools
import warnings


class SaltusError(ValueError):
    """A deliberate refusal. The message says what was wrong, what was expected and what to do.

    The command line prints the message alone; any other exception keeps its traceback.
    """


@functools.cache
def warn_once(message: str) -> None:
    """Warn, once per message and process."""
    warnings.warn(message, stacklevel=2)
