"""The error class of saltus, near names for its messages, and warnings that are given once."""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Collection


class SaltusError(ValueError):
    """A deliberate refusal. The message says what was wrong, what was expected and what to do.

    The command line prints the message alone; any other exception keeps its traceback.
    """


def did_you_mean(name: str, names: Collection[str]) -> str:
    """``"; did you mean a or b?"`` with up to three of `names` that are near `name` or contain it; empty if none is."""
    near = difflib.get_close_matches(name, names, n=3)
    near = near or [one for one in names if name and name.casefold() in one.casefold()][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


@functools.cache
def warn_once(message: str) -> None:
    """Warn, once per message and process."""
    warnings.warn(message, stacklevel=2)
