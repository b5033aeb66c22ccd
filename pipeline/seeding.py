"""Independent random streams: one seed for each use, derived from the run's seed."""

from __future__ import annotations

import zlib

import numpy as np

from envs.whole_numbers import require_whole


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
    require_whole("seed", seed, at_least=0)
    low, high = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index]).generate_state(2, np.uint32)
    return (int(high) << 32 | int(low)) >> 1
