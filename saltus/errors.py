"""The error that saltus raises when it refuses something on purpose."""

from __future__ import annotations


class SaltusError(ValueError):
    """A deliberate refusal. The message says what was wrong, what was expected and what to do.

    The command line prints the message alone; any other exception keeps its traceback.
    """
