"""Lists of seeds on the command line."""

from __future__ import annotations

import pytest
import tyro

from benchmarks.seeds import Seeds, parse_seeds


@pytest.mark.parametrize(
    ("words", "seeds"),
    [([], ()), (["0"], (0,)), (["3", "1"], (3, 1)), (["100-103", "7"], (100, 101, 102, 103, 7)), (["5-5"], (5,))],
)
def test_seeds_are_numbers_and_ranges(words: list[str], seeds: tuple[int, ...]) -> None:
    assert parse_seeds(words) == seeds


@pytest.mark.parametrize("word", ["", "a", "-1", "1-", "1-2-3", "1.5", "1,2", "a-3"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=f"'{word}' is no seed: give numbers and ranges, like 0 1 2 or 100-109"):
        parse_seeds(["0", word])


def test_empty_ranges_and_duplicates_are_refused() -> None:
    with pytest.raises(ValueError, match="5-3 is an empty range of seeds: did you mean 3-5"):
        parse_seeds(["5-3"])
    with pytest.raises(ValueError, match="seeds that are named twice: 2, 3"):
        parse_seeds(["3", "0-3", "2"])


def test_command_line_has_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    def command(seeds: Seeds = (0, 1)) -> tuple[int, ...]:
        return seeds

    assert tyro.cli(command, args=[]) == (0, 1)
    assert tyro.cli(command, args=["--seeds", "4", "8-9"]) == (4, 8, 9)
    with pytest.raises(SystemExit):
        tyro.cli(command, args=["--seeds", "many"])
    assert "is no seed" in capsys.readouterr().err
