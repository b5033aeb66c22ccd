"""A damaged checkpoint is refused, or the one before is used with a warning; never in silence."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_harness import NUMBER, Runs, checkpoints, computed

pytestmark = pytest.mark.slow


def flip(path: Path, bit: int) -> bytes:
    """Flip one bit of a file; return the new content."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return bytes(content)


def middle(content: bytes) -> int:
    """The place of the middle byte of the largest record. Bytes between records are not read."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        record = max(file.infolist(), key=lambda one: one.file_size)
    name, extra = struct.unpack_from("<HH", content, record.header_offset + 26)
    return record.header_offset + 30 + name + extra + record.file_size // 2


def test_flipped_bit_is_never_silent(runs: Runs) -> None:
    generator = random.Random(0)
    for _ in range(NUMBER):
        run_dir = runs.copy(runs.reference)
        last = checkpoints(run_dir)[-1]
        bit = generator.randrange(8 * last.stat().st_size)
        damaged = flip(last, bit)
        outcome = runs.resume(run_dir)
        harmless = outcome.status == 0 and last.read_bytes() == damaged  # a bit that is not read
        assert harmless or str(last) in outcome.text, (bit, outcome.output)
        assert outcome.status == 1 or computed(run_dir) == runs.expected, bit


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: (
            content[: middle(content)] + bytes([content[middle(content)] ^ 1]) + content[middle(content) + 1 :]
        ),
    ],
    ids=["truncated", "empty", "one byte"],
)
def test_damaged_last_checkpoint_falls_back_to_the_one_before_with_a_warning(
    runs: Runs, damage: Callable[[bytes], bytes]
) -> None:
    run_dir = runs.copy(runs.reference)
    before, last = checkpoints(run_dir)
    last.write_bytes(damage(last.read_bytes()))
    outcome = runs.resume(run_dir)
    assert outcome.status == 0, outcome.output
    assert "warning" in outcome.text
    assert last.name in outcome.text
    assert before.name in outcome.text
    assert runs.differences(run_dir) == []


def test_run_without_an_undamaged_checkpoint_is_refused(runs: Runs) -> None:
    run_dir = runs.copy(runs.reference)
    for path in checkpoints(run_dir):
        flip(path, 8 * middle(path.read_bytes()))
    outcome = runs.resume(run_dir)
    assert outcome.status == 1
    assert "corrupted" in outcome.text
    assert "Traceback" not in outcome.output
