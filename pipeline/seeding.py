"""Independent random streams: one seed for each use, derived from the run's seed."""

from __future__ import annotations

import zlib

import numpy as np

from saltus.errors import SaltusError


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """Seed of a named random stream, in [0, 2**63).

    NumPy's SeedSequence hashes its entropy, so that neighbouring seeds, streams and indices are unrelated.

    Args:
        seed: the run's seed, 0 or more.
        stream: name of the stream.
        index: number of the part, if a stream has several.

    Raises:
        SaltusError: a seed that is not a whole number, 0 or more.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise SaltusError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    low, high = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index]).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) >> 1
