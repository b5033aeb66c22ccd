"""Hashes of code, by which a result file is continued with the same code only."""

from __future__ import annotations

import hashlib
import json

from benchmarks import checkout
from benchmarks.result import PEERS
from saltus.versions import versions


def code_hash(*names: str, text: str = "") -> str:
    """Hash of sources of this checkout, of the packages' versions, and of another text.

    Args:
        names: packages and files, relative to the checkout.
        text: more to hash, such as the file of a task.
    """
    digest = hashlib.sha256(json.dumps([versions(*PEERS), text]).encode())
    for name in names:
        path = checkout.ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
