"""The file of published values: complete, and refused with a reason where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.published import COLUMNS, Published, read, short
from saltus.errors import SaltusError

HEAD = ",".join(COLUMNS)
WHOLE = "PPO,Hopper-v5,return,3100,,148000000,462,RTX,1,a page"


def test_every_committed_value_is_complete_and_stands_once() -> None:
    values = read()
    assert len(values) > 100
    for one in values:
        assert all((one.system, one.task, one.metric, one.hardware, one.source)), one
        assert one.metric != "return" or "-v" in one.task, one
        assert (one.deviation is None) or one.seeds is not None, f"a deviation over no seeds: {one}"
    keys = [(one.system, one.task, one.metric, one.env_steps) for one in values]
    assert len(keys) == len({*keys})


@pytest.mark.parametrize(
    ("system", "task", "value", "env_steps", "seconds", "seeds"),
    [
        ("mjlab PPO", "Hopper-v5", 3100, 148e6, 7.7 * 60, 1),
        ("mjlab PPO", "Humanoid-v5", 12049, 628e6, 82 * 60, 1),
        ("mjlab PPO", "HalfCheetah-v5", 6490, None, 6.2 * 60, 1),
        ("Minari expert", "Humanoid-v5", 8127, None, None, 1),
        ("WarpSAC, one world", "Humanoid-v4", 13273, 1e6, None, 5),
        ("FlashSAC, UTD 1", "Humanoid-v4", 12606, 1e6, None, 5),
        ("SimbaV2, UTD 8", "Hopper-v4", 4151, 1e6, None, 5),
    ],
)
def test_values_to_beat_are_in_it(
    system: str, task: str, value: float, env_steps: float | None, seconds: float | None, seeds: int
) -> None:
    found = [one for one in read() if (one.system, one.task, one.value) == (system, task, value)]
    assert [(one.env_steps, one.seconds, one.seeds) for one in found] == [(env_steps, seconds, seeds)]


def test_values_are_read(tmp_path: Path) -> None:
    file = tmp_path / "published.csv"
    file.write_text(f"{HEAD}\n{WHOLE}\n")
    (one,) = read(file)
    assert one == Published("PPO", "Hopper-v5", "return", 3100.0, None, 148e6, 462.0, "RTX", 1, "a page")
    assert str(one) == "published: PPO, Hopper-v5: 3,100 in 7.7 min after 148M env steps; 1 seed, hardware RTX"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the first line must be system,task,"),
        ("system,task\nPPO,Hopper-v5\n", "the first line must be system,task,.* and is system, task"),
        (f"{HEAD}\n{WHOLE.replace('RTX', '')}\n", "line 2: hardware is empty; write 'not stated' for unknown hardware"),
        (f"{HEAD}\n{WHOLE}\nPPO,Hopper-v5\n", "line 3: metric, value, hardware, source is empty"),
        (f"{HEAD}\n{WHOLE},more\n", "line 2: more than 10 entries; quote an entry that holds a comma"),
        (f"{HEAD}\n{WHOLE.replace('return', 'score')}\n", "line 2: the metric is 'score', and must be one of return"),
        (f"{HEAD}\n{WHOLE.replace('Hopper-v5', 'Hopper')}\n", "line 2: the task 'Hopper' has no version"),
        (f"{HEAD}\n{WHOLE.replace('3100', '3k')}\n", "line 2: value is '3k', and must be a positive number"),
        (f"{HEAD}\n{WHOLE.replace('462', '-1')}\n", "line 2: seconds is '-1', and must be a positive number"),
    ],
)
def test_damaged_files_are_refused_with_the_line_and_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "published.csv"
    file.write_text(text)
    with pytest.raises(SaltusError, match=reason):
        read(file)


def test_short_numbers() -> None:
    assert [*map(short, (0, 950, 1000, 300_000, 1e6, 148e6))] == ["0", "950", "1k", "300k", "1M", "148M"]
