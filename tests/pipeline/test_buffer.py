from __future__ import annotations

import io
import random
import re
from types import SimpleNamespace

import pytest
import torch
from pipeline_helpers import differing
from tensordict import TensorDict

from envs import transition as transitions
from pipeline import buffer as buffer_module
from pipeline.buffer import ReplayBuffer

KEYS = list(transitions.layout(1, 1))


def numbered(first: int, count: int) -> TensorDict:
    """Transitions first, first + 1, ...: every entry tells the number of its row, which is never 0."""
    number = torch.arange(first, first + count, dtype=torch.float32)
    observation = torch.stack([number, -number], dim=-1)
    terminated, truncated = number % 2 == 1, number % 3 == 0
    return transitions.make(observation, number[:, None] / 7, observation + 0.5, number * 10, terminated, truncated)


def small_buffer(capacity: int, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(capacity, 2, 1, seed=seed)


def numbers(batch: TensorDict) -> list[int]:
    """Which transitions a batch has, after a check that no row mixes two of them."""
    found = [int(number) for number in batch["observation"][:, 0]]
    for row, number in enumerate(found):
        expected = numbered(number, 1)[0]
        assert all(torch.equal(batch[row][key], expected[key]) for key in KEYS), f"row {row} mixes transitions"
    return found


def stored(buffer: ReplayBuffer) -> list[int]:
    """What a buffer holds, the oldest first, by what it would save."""
    state = buffer.state_dict()["stored"]
    rows = [int(number) for number in state["observation"][:, 0]]
    for name, column in (("action", 0), ("next.observation", 0), ("next.reward", 0)):
        key = tuple(name.split(".")) if "." in name else name
        expected = torch.stack([numbered(number, 1)[0][key][column] for number in rows])
        assert torch.equal(state[name][:, column], expected)
    cursor = int(buffer.state_dict()["cursor"])
    return rows[cursor:] + rows[:cursor] if len(buffer) == buffer.capacity else rows


@pytest.mark.parametrize("capacity", [1, 7, 10, 16])
@pytest.mark.parametrize("seed", range(3))
def test_the_ring_holds_exactly_the_last_transitions_in_their_order(capacity: int, seed: int) -> None:
    generator = random.Random(seed)
    buffer, model, following = small_buffer(capacity), [], 1
    for _ in range(25):
        count = generator.randint(1, capacity)
        buffer.extend(numbered(following, count))
        model = (model + list(range(following, following + count)))[-capacity:]
        following += count
        assert stored(buffer) == model
        assert len(buffer) == len(model)


@pytest.mark.parametrize(("extends", "held"), [([3, 4], range(1, 8)), ([4, 4, 4, 4], range(7, 17))])
def test_samples_are_uniform_over_what_is_stored_and_never_an_unwritten_row(extends: list[int], held: range) -> None:
    buffer, following = small_buffer(10), 1
    for count in extends:
        buffer.extend(numbered(following, count))
        following += count
    draws = 50_000
    batch = TensorDict.cat(buffer.sample(len(held), draws // len(held) + 1))
    observed = batch["observation"][:draws, 0].long().bincount(minlength=held.stop)
    numbers(batch[:200])
    assert observed[: held.start].sum() == 0
    expected = draws / len(held)
    assert (observed[held.start :] - expected).abs().max() < 5 * expected**0.5


def test_the_batches_of_one_call_are_independent() -> None:
    buffer = small_buffer(10)
    buffer.extend(numbered(1, 4))
    first, second = (
        torch.cat([batch["observation"][:, 0] for batch in parts]).long() - 1
        for parts in zip(*(buffer.sample(4, 2) for _ in range(4000)), strict=True)
    )
    pairs = (first * 4 + second).bincount(minlength=16)
    assert (pairs - 1000).abs().max() < 5 * 1000**0.5


def test_sampling_depends_on_the_seed_alone() -> None:
    draws = []
    for seed in (0, 0, 1):
        buffer = small_buffer(64, seed)
        buffer.extend(numbered(1, 50))
        torch.rand(seed + 3)  # the global generator plays no part
        draws.append([numbers(batch) for batch in buffer.sample(32, 3)])
    assert draws[0] == draws[1] != draws[2]


def test_many_batches_in_one_call_draw_what_the_same_rows_in_one_batch_draw() -> None:
    one, many = small_buffer(64), small_buffer(64)
    for buffer in (one, many):
        buffer.extend(numbered(1, 50))
    (whole,) = one.sample(48)
    assert numbers(whole) == [number for batch in many.sample(16, 3) for number in numbers(batch)]


@pytest.mark.parametrize("extends", [[3], [7, 7], [10, 10, 3]])
def test_a_loaded_buffer_continues_as_the_saved_one_would_have(extends: list[int]) -> None:
    original, following = small_buffer(10), 1
    for count in extends:
        original.extend(numbered(following, count))
        following += count
    original.sample(2)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    loaded = small_buffer(10, seed=99)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for count in (4, 1, 9):
        assert [numbers(batch) for batch in loaded.sample(3, 2)] == [numbers(batch) for batch in original.sample(3, 2)]
        for buffer in (original, loaded):
            buffer.extend(numbered(following, count))
        following += count
        assert stored(loaded) == stored(original)
        assert differing(loaded.state_dict(), original.state_dict()) == []


def test_what_is_saved_grows_with_what_is_stored_not_with_the_capacity() -> None:
    buffer = small_buffer(100_000)
    buffer.extend(numbered(1, 100))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    assert file.tell() < 100 * transitions.num_bytes(2, 1) + 50_000


def test_too_many_transitions_are_refused_and_change_nothing() -> None:
    buffer = small_buffer(10)
    buffer.extend(numbered(1, 4))
    with pytest.raises(ValueError, match=r"11 transitions do not fit into a buffer of 10: raise buffer_size"):
        buffer.extend(numbered(5, 11))
    assert stored(buffer) == [1, 2, 3, 4]


def test_a_batch_larger_than_what_is_stored_is_refused() -> None:
    buffer = small_buffer(10)
    with pytest.raises(ValueError, match=r"batch of 1 .* 0 transitions are stored"):
        buffer.sample(1)
    buffer.extend(numbered(1, 4))
    with pytest.raises(ValueError, match=r"batch of 5 .* 4 transitions are stored"):
        buffer.sample(5)
    assert len(buffer.sample(4)[0]) == 4


def test_a_buffer_beyond_the_free_memory_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 1000 * transitions.num_bytes(2, 1)
    monkeypatch.setattr(buffer_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    allocated = []
    zeros = transitions.zeros
    monkeypatch.setattr(transitions, "zeros", lambda *args: allocated.append(args) or zeros(*args))
    with pytest.raises(MemoryError, match=r"1,001 transitions takes .* GB .* are free on cpu") as refusal:
        small_buffer(1001)
    assert not allocated
    limit = re.search(r"set buffer_size below ([\d,]+)", str(refusal.value))
    assert limit is not None
    small_buffer(int(limit[1].replace(",", "")) - 1)
    assert len(allocated) == 1


def test_it_takes_the_bytes_that_it_says() -> None:
    buffer = small_buffer(1000)
    buffer.extend(numbered(1, 1000))
    assert buffer.num_bytes == sum(entry.nbytes for entry in buffer.state_dict()["stored"].values())


def test_it_keeps_copies_and_gives_copies() -> None:
    buffer = small_buffer(10)
    transition = numbered(1, 10)
    buffer.extend(transition)
    transition.apply_(lambda entry: entry.zero_())
    assert stored(buffer) == list(range(1, 11))
    buffer.sample(10)[0].apply_(lambda entry: entry.zero_())
    assert stored(buffer) == list(range(1, 11))


def test_a_batch_has_the_shapes_and_types_of_a_transition() -> None:
    buffer = small_buffer(10)
    buffer.extend(numbered(1, 5))
    for batch in buffer.sample(3, 4):
        transitions.check(batch, 2, 1)
        assert len(batch) == 3
