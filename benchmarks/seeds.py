"""Lists of seeds on the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec


def parse_seeds(words: Sequence[str]) -> tuple[int, ...]:
    """Parse seeds and ranges of seeds, such as 0 and 100-109.

    Raises:
        ValueError: a word that is neither, or a seed that is named twice.
    """
    seeds: list[int] = []
    for word in words:
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{word!r} is no seed: give numbers and ranges, like 0 1 2 or 100-109")
        if dash and int(last) < int(first):
            raise ValueError(f"{word} is an empty range of seeds: did you mean {last}-{first}?")
        seeds += range(int(first), int(last if dash else first) + 1)
    twice = sorted(seed for seed, count in Counter(seeds).items() if count > 1)
    if twice:
        raise ValueError(f"seeds that are named twice: {', '.join(map(str, twice))}")
    return tuple(seeds)


Seeds = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="SEED|FIRST-LAST ...",
        instance_from_str=parse_seeds,
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(seed, int) for seed in value),
        str_from_instance=lambda seeds: [str(seed) for seed in seeds],
    ),
]
