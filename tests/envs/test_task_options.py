"""Options of a task: kept as JSON data and rebuilt by type hints, or refused."""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import mujoco
import numpy as np
import pytest
import torch
import tyro
from env_helpers import CartBall

import envs
from envs import Task
from envs.task_options import check_options, decode_options, encode_options, is_same, option_hints
from envs.task_ref import find_task
from saltus.errors import SaltusError


class Gait(enum.Enum):
    WALK = "w"
    RUN = 2


class Level(enum.IntEnum):
    LOW = 1


class Pair(NamedTuple):
    low: float
    high: float


class Sized(Protocol):
    size: int


@dataclass
class Range:
    low: float = 0.0
    high: float | None = None
    gait: Gait = Gait.WALK


@dataclass
class Degrees:
    """Changes its value when it is made."""

    angle: float = 90.0

    def __post_init__(self) -> None:
        self.angle = math.radians(self.angle)


NAN = float("nan")
KEPT = [
    (int, 3),
    (int, -(10**30)),
    (float, 0.1),
    (float, 3),
    (float, -math.inf),
    (float, NAN),
    (float, np.float32(0.1)),
    (bool, False),
    (str, "nan"),
    (str, "Käfer\n"),
    (bytes, b"\x00\xff"),
    (Path, Path("models/a.xml")),
    (PurePosixPath, PurePosixPath("/a")),
    (Gait, Gait.RUN),
    (Level, Level.LOW),
    (Literal["a", 2, None, Gait.RUN], 2),
    (Literal["a", 2, None, Gait.RUN], Gait.RUN),
    (float | None, None),
    (int | str, "3"),
    (float | Gait, Gait.WALK),
    (Annotated[float, "in metres"], 1.5),
    (list[int], [1, 2]),
    (list, [1, "a", None]),
    (tuple, (1, (2, 3))),
    (tuple[float, ...], (1.0, NAN)),
    (tuple[int, Path], (1, Path("a"))),
    (tuple[()], ()),
    (set[int], {3, 1}),
    (frozenset[Gait], frozenset({Gait.RUN})),
    (Sequence[float], [1.0]),
    (list[list[Path]], [[Path("a")], []]),
    (dict[str, float], {"a": 1.0}),
    (dict[int, float], {3: 1.0, 10: NAN}),
    (dict[Gait, tuple[int, int]], {Gait.RUN: (1, 2)}),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (Mapping[str, list[int]], {"a": [1]}),
    (dict, {"a": 1}),
    (dict, {1: 2}),
    (Any, {"a": [1, None]}),
    (Range, Range(1.0, 2.0, Gait.RUN)),
    (list[Range], [Range(), Range(high=NAN)]),
    (Any, 3),
    (Any, (1, "a")),
    (object, "a"),
]
NOT_KEPT = [
    (Any, [1], "come back as (1,)"),
    (Any, Path("a"), "come back as 'a'"),
    (Any, Gait.RUN, "come back as 'RUN'"),
    (Any, NAN, "come back as 'nan'"),
    (str, Path("a"), "come back as 'a'"),
    (Any, {1: 2}, "come back as ((1, 2),)"),
    (tuple[int, int], (1, 2, 3), "3 items in place of 2"),
    (int, 1.5, "1.5 is not of type int"),
    (int, True, "True is not of type int"),
    (float, "fast", "'fast' is not of type"),
    (Literal["a"], "b", "none of 'a'"),
    (Gait, "SWIM", "none of WALK, RUN"),
    (Degrees, Degrees(), "come back as Degrees"),
    (Pair, Pair(1.0, 2.0), "Pair cannot be rebuilt"),
    (mujoco.MjSpec, mujoco.MjSpec(), "MjSpec: no such value"),
    (np.ndarray, np.ones(2), "ndarray: no such value"),
    (torch.Tensor, torch.ones(2), "Tensor: no such value"),
    (complex, 1j, "complex: no such value"),
    (Any, Gait, "no such value"),
    (Any, print, "no such value"),
    (list[Any], [object()], "no such value"),
]


def with_option(hint: Any) -> type[Task]:
    namespace = {"__annotations__": {"value": hint}, "value": field(default_factory=lambda: None)}
    return dataclass(type("Mine", (CartBall,), namespace))


@pytest.mark.parametrize(("hint", "value"), KEPT, ids=lambda part: type(part).__name__)
def test_option_comes_back_equal_and_of_its_type(hint: Any, value: Any) -> None:
    task = with_option(hint)
    data = json.loads(json.dumps(encode_options(task, {"value": value})))
    back = decode_options(task, data)["value"]
    assert is_same(back, value)
    assert isinstance(value, int | np.floating) or type(back) is type(value)
    assert is_same(decode_options(task, {"value": as_tuples(data["value"])})["value"], back)
    assert envs.make(task, 1, value=back).task.value is back


def as_tuples(value: Any) -> Any:
    """Lists as tuples, as a run's configuration has them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize(("hint", "value", "reason"), NOT_KEPT, ids=lambda part: type(part).__name__)
def test_option_that_would_not_come_back_is_refused_by_name(hint: Any, value: Any, reason: str) -> None:
    with pytest.raises(SaltusError) as caught:
        encode_options(with_option(hint), {"value": value})
    for part in ("option 'value' of task Mine cannot be kept", reason, "numbers, strings, bytes, paths"):
        assert part in str(caught.value)


@pytest.mark.parametrize("function", [encode_options, decode_options])
def test_unknown_option_is_refused_by_name(function: Any) -> None:
    with pytest.raises(SaltusError, match="CartBall has no option 'nose'; its options are frame_skip, max_episode_"):
        function(CartBall, {"nose": 3})


@pytest.mark.parametrize(
    ("hint", "data", "reason"),
    [
        (Gait, "SWIM", "'SWIM' is none of WALK, RUN"),
        (int, "3", "'3' is not of type int"),
        (Range, {"width": 1}, "width"),
        (int | float, "a", "'a' is none of int | float"),
    ],
)
def test_data_that_a_changed_task_does_not_understand_are_refused(hint: Any, data: Any, reason: str) -> None:
    with pytest.raises(SaltusError) as caught:
        decode_options(with_option(hint), {"value": data})
    assert reason in str(caught.value)
    assert "option 'value' of task Mine" in str(caught.value)
    assert "changed since" in str(caught.value)


def test_options_of_a_class_with_unknown_hints_are_numbers_and_strings() -> None:
    """Names that exist for type checkers only."""
    task = with_option("NoSuchType")
    assert decode_options(task, encode_options(task, {"value": 3, "noise": 0.5})) == {"value": 3, "noise": 0.5}
    with pytest.raises(SaltusError, match="'value' of task Mine cannot be kept"):
        encode_options(task, {"value": Path("a")})


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (NAN, NAN, True),
        ([NAN], [float("nan")], True),
        (1, 1.0, True),
        (1, True, False),
        ("a", Path("a"), False),
        ((1,), [1], False),
        (np.ones(2), np.ones(2), True),
        (np.ones(2), np.zeros(2), False),
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.ones(3), False),
        ({"a": NAN}, {"a": NAN}, True),
        ({"a": 1}, {"b": 1}, False),
        (Range(NAN), Range(NAN), True),
        (Range(1), Range(2), False),
    ],
)
def test_comparison_of_values(one: Any, other: Any, expected: bool) -> None:
    assert is_same(one, other) is expected


@pytest.mark.parametrize(
    ("hint", "fitting", "wrong"),
    [
        (float, [1, 1.5, np.float32(1), np.int64(1), torch.tensor(1.0)], ["1", None, True, [1.0], {}]),
        (int, [1, np.int64(1)], [1.0, "1", None, True]),
        (bool, [True, np.bool_(True)], [1, "yes", None]),
        (str, ["a"], [1, Path("a"), None, b"a"]),
        (Path, [Path("a"), "a"], [1, None]),
        (Gait, [Gait.RUN], ["RUN", 2]),
        (Literal["a", 1], ["a", 1], ["b", True]),
        (float | None, [None, 1], ["1"]),
        (tuple[float, float], [(1, 2), [1, 2], np.ones(2)], [1.0, "12", None, (1,), (1, 2, 3), (1, "2")]),
        (tuple[int, ...], [(), (1, 2), [1]], [(1.5,), 1]),
        (list[str], [[], ["a"], ("a",)], ["a", [1], {"a": 1}]),
        (tuple, [(), (1, "a")], [1]),
        (Sized, [[1], 1], []),
        (dict[str, int], [{"a": 1}], [[1], None]),
        (Range, [Range()], [{}, None]),
        (Any, [1, None, "a", True], []),
        (object, [1, None, "a", True], []),
    ],
    ids=str,
)
def test_make_refuses_options_of_wrong_types(hint: Any, fitting: list[Any], wrong: list[Any]) -> None:
    task = with_option(hint)
    for value in fitting:
        check_options(task, {"value": value})
    for value in wrong:
        with pytest.raises(SaltusError) as caught:
            envs.make(task, 1, value=value)
        assert f"option 'value' of task Mine is {value!r}; expected a value of type" in str(caught.value)


def test_array_defaults_work() -> None:
    @dataclass
    class Weighted(CartBall):
        weights: np.ndarray = field(default_factory=lambda: np.ones(2))
        fields: ClassVar[tuple[str, ...]] = CartBall.fields

    assert envs.make(Weighted, 1, weights=np.zeros(2)).task.weights.tolist() == [0, 0]


@pytest.mark.parametrize("name", envs.list_tasks())
def test_every_option_of_the_built_in_tasks_has_help(name: str, capsys: pytest.CaptureFixture[str]):
    task = find_task(name)
    with pytest.raises(SystemExit):
        tyro.cli(task, args=["--help"])
    text = re.sub(r"[│\s]+", " ", capsys.readouterr().out).partition("show this help message and exit")[2]
    for option in option_hints(task):
        shown = re.split(rf"--{option.replace('_', '-')}[ ,]", text)[1].partition("(default:")[0]
        assert shown.rstrip().endswith("."), option
