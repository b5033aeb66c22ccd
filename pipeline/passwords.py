"""Passwords in the URLs of databases, which no message or file shows."""

from __future__ import annotations

import re


def without_password(text: str, url: str | None = None) -> str:
    """A text with the password of a database's URL replaced by ``***``.

    Args:
        text: a URL, or a message.
        url: the URL whose password a message may contain; None: `text` itself.
    """
    hidden = re.sub(r"(?<=[?&]password=)[^&\s]+", "***", re.sub(r"(?<=://)([^:/@\s]*):[^\s]*@", r"\1:***@", text))
    found = re.search(r"://[^:/@\s]*:(\S*)@", url or "")
    return hidden.replace(found[1], "***") if found and found[1] else hidden
