"""Random streams that share nothing: one seed for each use, derived from the run's."""

from __future__ import annotations

import zlib

import numpy as np


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """The seed of a named stream (and its index-th part), in [0, 2**63).

    NumPy's SeedSequence hashes its entropy so that neighbouring seeds, streams and indices are unrelated.
    """
    low, high = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index]).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) >> 1
