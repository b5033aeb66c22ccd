from __future__ import annotations

import io
import random
import re

import pytest
import torch
from pipeline_helpers import DIMENSIONS, differing, random_transition
from tensordict import TensorDict

from envs import transition as transitions
from pipeline.buffer import ReplayBuffer
from pipeline.dimensions import Dimensions
from saltus.device import memory

KEYS = list(transitions.layout(1, 1))


def numbered(first: int, count: int) -> TensorDict:
    """Transitions number first, first + 1, ...: every entry depends on the number, which is never 0."""
    number = torch.arange(first, first + count, dtype=torch.float32)
    observation = torch.stack([number, -number], dim=-1)
    terminated, truncated = number % 2 == 1, number % 3 == 0
    return transitions.make(observation, number[:, None] / 7, observation + 0.5, number * 10, terminated, truncated)


def small_buffer(capacity: int, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(capacity, Dimensions(2, 1), seed=seed)


def numbers(batch: TensorDict) -> list[int]:
    """The numbers of a batch's transitions; checks that no row mixes two of them."""
    found = [int(number) for number in batch["observation"][:, 0]]
    for row, number in enumerate(found):
        expected = numbered(number, 1)[0]
        assert all(torch.equal(batch[row][key], expected[key]) for key in KEYS), f"row {row} mixes transitions"
    return found


def stored(buffer: ReplayBuffer) -> list[int]:
    """The numbers of the stored transitions, the oldest first."""
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
def test_the_ring_holds_the_last_transitions_in_order(capacity: int, seed: int) -> None:
    generator = random.Random(seed)
    buffer, model, first = small_buffer(capacity), [], 1
    for _ in range(25):
        count = generator.randint(1, capacity)
        buffer.extend(numbered(first, count))
        model = (model + list(range(first, first + count)))[-capacity:]
        first += count
        assert stored(buffer) == model
        assert len(buffer) == len(model)


@pytest.mark.parametrize(("extends", "held"), [([3, 4], range(1, 8)), ([4, 4, 4, 4], range(7, 17))])
def test_samples_are_uniform_over_the_stored_transitions(extends: list[int], held: range) -> None:
    buffer, first = small_buffer(10), 1
    for count in extends:
        buffer.extend(numbered(first, count))
        first += count
    draws = 20_000
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
        for parts in zip(*(buffer.sample(4, 2) for _ in range(1000)), strict=True)
    )
    pairs = (first * 4 + second).bincount(minlength=16)
    assert (pairs - 250).abs().max() < 5 * 250**0.5


def test_sampling_depends_only_on_the_seed() -> None:
    draws = []
    for seed in (0, 0, 1):
        buffer = small_buffer(64, seed)
        buffer.extend(numbered(1, 50))
        torch.rand(seed + 3)  # has no effect: the buffer has its own generator
        draws.append([numbers(batch) for batch in buffer.sample(32, 3)])
    assert draws[0] == draws[1] != draws[2]


def test_several_batches_are_the_rows_of_one_large_batch() -> None:
    one, many = small_buffer(64), small_buffer(64)
    for buffer in (one, many):
        buffer.extend(numbered(1, 50))
    (whole,) = one.sample(48)
    assert numbers(whole) == [number for batch in many.sample(16, 3) for number in numbers(batch)]


@pytest.mark.parametrize("extends", [[3], [7, 7], [10, 10, 3]])
def test_loaded_buffer_continues_bit_for_bit(extends: list[int]) -> None:
    original, first = small_buffer(10), 1
    for count in extends:
        original.extend(numbered(first, count))
        first += count
    original.sample(2)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    loaded = small_buffer(10, seed=99)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for count in (4, 1, 9):
        assert [numbers(batch) for batch in loaded.sample(3, 2)] == [numbers(batch) for batch in original.sample(3, 2)]
        for buffer in (original, loaded):
            buffer.extend(numbered(first, count))
        first += count
        assert stored(loaded) == stored(original)
        assert differing(loaded.state_dict(), original.state_dict()) == []


def test_the_saved_state_grows_with_the_stored_transitions_not_the_capacity() -> None:
    buffer = small_buffer(100_000)
    buffer.extend(numbered(1, 100))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    assert file.tell() < 100 * transitions.num_bytes(2, 1) + 50_000


def test_more_transitions_than_the_capacity_are_refused() -> None:
    buffer = small_buffer(10)
    buffer.extend(numbered(1, 4))
    with pytest.raises(ValueError, match=r"11 transitions do not fit into a buffer of 10: raise buffer_size"):
        buffer.extend(numbered(5, 11))
    assert stored(buffer) == [1, 2, 3, 4]


def test_a_batch_larger_than_the_stored_transitions_is_refused() -> None:
    buffer = small_buffer(10)
    with pytest.raises(ValueError, match=r"batch of 1 .* 0 transitions are stored: extend the buffer first"):
        buffer.sample(1)
    buffer.extend(numbered(1, 4))
    with pytest.raises(ValueError, match=r"batch of 5 .* 4 transitions are stored: extend the buffer first"):
        buffer.sample(5)
    assert len(buffer.sample(4)[0]) == 4


def test_a_buffer_beyond_the_free_memory_is_refused_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 1000 * transitions.num_bytes(2, 1)
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    allocated = []
    zeros = transitions.zeros
    monkeypatch.setattr(transitions, "zeros", lambda *args: allocated.append(args) or zeros(*args))
    with pytest.raises(MemoryError, match=r"this machine's 2 ranks take .* set buffer_size below 50% of its value"):
        ReplayBuffer(1000, Dimensions(2, 1), per_host=2)
    with pytest.raises(MemoryError, match=r"1,001 transitions takes .* GB .* are free on cpu") as refusal:
        small_buffer(1001)
    assert not allocated
    limit = re.search(r"set buffer_size below ([\d,]+)", str(refusal.value))
    assert limit is not None
    small_buffer(int(limit[1].replace(",", "")) - 1)
    assert len(allocated) == 1


def test_num_bytes_is_the_size_of_the_stored_transitions() -> None:
    buffer = small_buffer(1000)
    buffer.extend(numbered(1, 1000))
    assert buffer.num_bytes == sum(entry.nbytes for entry in buffer.state_dict()["stored"].values())


def test_extend_and_sample_copy() -> None:
    buffer = small_buffer(10)
    transition = numbered(1, 10)
    buffer.extend(transition)
    transition.apply_(lambda entry: entry.zero_())
    assert stored(buffer) == list(range(1, 11))
    buffer.sample(10)[0].apply_(lambda entry: entry.zero_())
    assert stored(buffer) == list(range(1, 11))


def test_a_batch_has_the_shapes_and_dtypes_of_a_transition() -> None:
    buffer = small_buffer(10)
    buffer.extend(numbered(1, 5))
    for batch in buffer.sample(3, 4):
        transitions.check(batch, 2, 1)
        assert len(batch) == 3


STARTS = [0, 1, 5, 7]  # earlier vector steps, which move the end of the ring


class Worlds:
    """A buffer filled by vector steps, and a list of everything that was added."""

    def __init__(self, capacity: int, num_envs: int, n_step: int, gamma: float = 0.5):
        self.buffer = ReplayBuffer(capacity, Dimensions(2, 1), n_step=n_step, gamma=gamma)
        self.num_envs, self.n_step, self.gamma = num_envs, n_step, gamma
        self.rows: list[tuple[float, str]] = []

    def step(self, *worlds: tuple[float, str]) -> None:
        """A vector step: the reward of each world, and how its episode ended: "", "terminated" or "truncated"."""
        assert len(worlds) == self.num_envs
        first = len(self.rows)
        self.rows += worlds
        number = torch.arange(first, len(self.rows), dtype=torch.float32)
        observation = torch.stack([number, -number], dim=-1)
        rewards = torch.tensor([reward for reward, _ in worlds])
        terminated, truncated = (
            torch.tensor([end == name for _, end in worlds]) for name in ("terminated", "truncated")
        )
        action = number[:, None] / 7
        self.buffer.extend(transitions.make(observation, action, observation + 0.5, rewards, terminated, truncated))

    def expected(self) -> dict[int, tuple[float, int, int, str]]:
        """The n-step transitions by number: reward, steps, number of the last transition, how it ended."""
        found = {}
        for number in range(max(0, len(self.rows) - self.buffer.capacity), len(self.rows)):
            total, steps, last = 0.0, 0, number
            for last in range(number, len(self.rows), self.num_envs)[: self.n_step]:
                total += self.gamma**steps * self.rows[last][0]
                steps += 1
                if self.rows[last][1]:
                    break
            found[number] = total, steps, last, self.rows[last][1]
        return found

    def sampled(self) -> dict[int, tuple[float, int, int, str]]:
        """Sampled n-step transitions, like `expected`; checks that equal numbers give equal transitions."""
        found: dict[int, tuple[float, int, int, str]] = {}
        batch = TensorDict.cat(self.buffer.sample(len(self.buffer), 40))
        next_entries, number = batch["next"], batch["observation"][:, :1]
        assert torch.equal(batch["action"], number / 7)
        assert torch.equal(next_entries["done"], next_entries["terminated"] | next_entries["truncated"])
        steps = batch.get("steps_to_next_obs", torch.ones_like(next_entries["reward"]))
        end = next_entries["terminated"] + 2 * next_entries["truncated"]
        columns = (number, next_entries["reward"], steps, next_entries["observation"][:, :1] - 0.5, end)
        for start, reward, count, last, ended in torch.cat([column.double() for column in columns], dim=1).tolist():
            one = reward, int(count), int(last), ("", "terminated", "truncated")[int(ended)]
            assert found.setdefault(int(start), one) == one
        return found

    def check(self) -> None:
        sampled, expected = self.sampled(), self.expected()
        assert sampled.keys() == expected.keys()
        for number, (total, *rest) in expected.items():
            assert sampled[number][0] == pytest.approx(total, abs=1e-6)
            assert list(sampled[number][1:]) == rest


def one_world(*ends: str, before: int = 0, capacity: int = 100) -> dict[int, tuple[float, int, int, str]]:
    """Three-step transitions of one world with rewards 1, 10, 100, ... and gamma = 1/2."""
    world = Worlds(capacity, 1, 3)
    for _ in range(before):
        world.step((7.0, ""))
    for power, end in enumerate(ends):
        world.step((10.0**power, end))
    return {number - before: (*one[:2], one[2] - before, one[3]) for number, one in world.sampled().items()}


@pytest.mark.parametrize("before", STARTS)
@pytest.mark.parametrize("capacity", [8, 100])
def test_n_rewards_are_summed_within_an_episode_and_fewer_at_the_newest_transition(before: int, capacity: int) -> None:
    found = one_world("", "", "", "", "", before=before, capacity=capacity)
    assert found[0] == (1 + 5 + 25, 3, 2, "")
    assert found[1] == (10 + 50 + 250, 3, 3, "")
    assert found[2] == (100 + 500 + 2500, 3, 4, "")
    assert found[3] == (1000 + 5000, 2, 4, "")
    assert found[4] == (10_000, 1, 4, "")


@pytest.mark.parametrize("before", STARTS)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_no_reward_of_the_next_episode_is_summed(before: int, end: str) -> None:
    found = one_world("", "", end, "", "", before=before, capacity=8)
    assert found[0] == (1 + 5 + 25, 3, 2, end)
    assert found[1] == (10 + 50, 2, 2, end)
    assert found[2] == (100, 1, 2, end)
    assert found[3] == (1000 + 5000, 2, 4, "")
    found = one_world("", end, end, "terminated", before=before, capacity=8)
    assert found[0] == (1 + 5, 2, 1, end)
    assert found[1] == (10, 1, 1, end)
    assert found[2] == (100, 1, 2, end)
    assert found[3] == (1000, 1, 3, "terminated")


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_the_newest_transition_is_not_joined_with_the_oldest(count: int) -> None:
    """In a ring of 4 that is partly filled, just full, and overwritten."""
    found = one_world(*[""] * count, capacity=4)
    assert set(found) == set(range(max(0, count - 4), count))
    assert found[count - 1] == (10.0 ** (count - 1), 1, count - 1, "")
    assert found[count - 2] == (10.0 ** (count - 2) * 6, 2, count - 1, "")
    assert found[count - 3] == (10.0 ** (count - 3) * 31, 3, count - 1, "")


def test_worlds_do_not_mix() -> None:
    worlds = Worlds(capacity=100, num_envs=2, n_step=2)
    for rewards in ((1.0, 100.0), (2.0, 200.0), (4.0, 400.0)):
        worlds.step((rewards[0], ""), (rewards[1], "terminated" if rewards[1] == 200 else ""))
    assert worlds.sampled() == {
        0: (1 + 1, 2, 2, ""), 1: (100 + 100, 2, 3, "terminated"),
        2: (2 + 2, 2, 4, ""), 3: (200, 1, 3, "terminated"),
        4: (4, 1, 4, ""), 5: (400, 1, 5, ""),
    }  # fmt: skip


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.999])
def test_the_kth_reward_is_discounted_by_gamma_to_the_k(gamma: float) -> None:
    world = Worlds(10, 1, 6, gamma)
    for _ in range(6):
        world.step((1.0, ""))
    assert world.sampled()[0][0] == pytest.approx(sum(gamma**k for k in range(6)), rel=1e-6)


def test_one_step_transitions_are_not_joined() -> None:
    world = Worlds(10, 2, 1)
    for _ in range(7):
        world.step((1.0, ""), (2.0, "truncated"))
    (batch,) = world.buffer.sample(10)
    assert "steps_to_next_obs" not in batch.keys()  # noqa: SIM118
    world.check()


@pytest.mark.parametrize(("capacity", "num_envs"), [(12, 3), (10, 3), (11, 4), (7, 7), (13, 1), (8, 5)])
@pytest.mark.parametrize("n_step", [2, 3, 8])
def test_n_step_transitions_equal_those_of_a_plain_list(capacity: int, num_envs: int, n_step: int) -> None:
    """After every step of a ring that fills and wraps, also if its capacity is no multiple of the worlds."""
    generator, worlds = random.Random(0), Worlds(capacity, num_envs, n_step, gamma=0.9)
    for _ in range(2 * capacity // num_envs + 4):
        ends = generator.choices(["", "terminated", "truncated"], [6, 1, 1], k=num_envs)
        worlds.step(*((generator.uniform(-1, 1), end) for end in ends))
        worlds.check()


def test_an_n_step_batch_has_shapes_and_dtypes_of_a_transition_and_the_steps() -> None:
    world = Worlds(10, 2, 3)
    for _ in range(4):
        world.step((1.0, ""), (2.0, ""))
    for batch in world.buffer.sample(5, 3):
        transitions.check(batch, 2, 1)
        assert batch["steps_to_next_obs"].shape == (5, 1)
        assert batch["steps_to_next_obs"].dtype == torch.float32


def test_n_step_transitions_have_the_privileged_observations_of_their_ends() -> None:
    """Those of both ends belong to the same vector steps as the observations."""
    buffer = ReplayBuffer(40, Dimensions(2, 1, 2), n_step=3)
    for first in range(1, 61, 3):
        transition = numbered(first, 3)
        for part in (transition, transition["next"]):
            part["privileged"] = 100 * part["observation"]
        buffer.extend(transition)
    assert buffer.num_bytes == 40 * transitions.num_bytes(2, 1, 2)
    (batch,) = buffer.sample(40)
    transitions.check(batch.exclude("steps_to_next_obs"), 2, 1, 2)
    assert (batch["steps_to_next_obs"] > 1).any()
    for part in (batch, batch["next"]):
        assert torch.equal(part["privileged"], 100 * part["observation"])
    other = ReplayBuffer(40, Dimensions(2, 1, 2), n_step=3)
    other.load_state_dict(buffer.state_dict())
    assert differing(other.sample(40)[0].to_dict(), buffer.sample(40)[0].to_dict()) == []


@pytest.mark.parametrize("steps", [2, 6])
def test_loaded_buffer_joins_the_same_transitions(steps: int) -> None:
    original, loaded = (Worlds(10, 3, 3) for _ in range(2))
    for step in range(steps):
        original.step(*((10.0 * step + world, "") for world in range(3)))
    loaded.buffer.load_state_dict(original.buffer.state_dict())
    loaded.rows = list(original.rows)
    for step in range(3):
        assert loaded.sampled() == original.sampled() == original.expected()
        for worlds in (original, loaded):
            worlds.step(*((step + world / 8, "truncated" if world == step else "") for world in range(3)))


def test_n_step_buffer_refuses_a_vector_step_of_another_size() -> None:
    buffer = ReplayBuffer(100, DIMENSIONS, n_step=3)
    buffer.extend(random_transition(4))
    with pytest.raises(ValueError, match=r"5 transitions after vector steps of 4.*set n_step to 1"):
        buffer.extend(random_transition(5))
    assert len(buffer) == 4
