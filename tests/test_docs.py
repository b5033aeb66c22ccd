"""Everything that README.md and docs/ show works: commands, examples, tables, trees and links.

A fenced block that is not run has the reason in a comment directly above it: ``<!-- not run: needs a GPU -->``.
Commands that take minutes are parsed: ``<!-- parsed, not run: trains for minutes -->``.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked_saltus import ForkedSaltus, Zygote, finish

from benchmarks import __main__ as benchmarks
from pipeline import presets
from pipeline.profile.options import ProfileOptions
from pipeline.profile.sweep import parse_sweep
from pipeline.train_options import parse_options, parse_train
from pipeline.tune.command import parse_plan

ROOT = Path(__file__).parent.parent
PARSED = ("saltus train ", "saltus tune ", "saltus warmup ", "saltus profile ", "python -m benchmarks ")
EXECUTED = (
    "saltus evaluate ",
    "saltus play ",
    "saltus resume ",
    "saltus export ",
    "saltus check ",
    "saltus gradients ",
)
SALTUS = (sys.executable, "-m", "saltus")
README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LANGUAGES = {"bash", "console", "python", "text"}
TINY = [
    "--device", "cpu", "--no-compile", "--num-envs", "4", "--utd-ratio", "0.25", "--total-env-steps", "400",
    "--learning-starts", "100", "--batch-size", "32", "--eval-episodes", "2", "--num-threads", "1",
]  # fmt: skip


@dataclass(frozen=True)
class Fence:
    """A fenced block: its page, language, first line's number and text, why it is not run, whether it is parsed."""

    page: Path
    language: str
    line: int
    text: str
    reason: str
    parsed: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def not_run(self) -> bool:
        """Whether its commands are neither run nor parsed."""
        return bool(self.reason) and not self.parsed

    @property
    def commands(self) -> list[str]:
        """Its lines without comments; a backslash joins a line with the next."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def fences(page: Path) -> list[Fence]:
    found, text = [], page.read_text()
    pattern = r"(?:^<!-- (?P<parsed>parsed, )?not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    for match in re.finditer(pattern, text, re.M | re.S):
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Fence(page, match["language"], line, match["text"], match["reason"] or "", bool(match["parsed"])))
    return found


FENCES = [fence for page in PAGES for fence in fences(page)]
COMMANDS = [
    (str(fence), command)
    for fence in FENCES
    if fence.language == "bash" and not fence.not_run
    for command in fence.commands
]


def commands(*starts: str) -> list[Any]:
    """The commands shown that start with one of `starts`, each with its place as the test's name."""
    return [pytest.param(command, id=f"{place} {command}") for place, command in COMMANDS if command.startswith(starts)]


def example() -> str:
    return next(fence.text for fence in FENCES if "class SwingUp(Task)" in fence.text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with swing_up.py."""
    path = tmp_path_factory.mktemp("docs")
    (path / "swing_up.py").write_text(example())
    return path


@pytest.fixture(scope="module")
def trained(folder: Path, zygote: Zygote) -> Path:
    """The folder, with the runs that the pages speak of."""
    own = ["swing_up.py:SwingUp", "--run-dir", "runs/swing-up", *TINY, "--task.effort-cost", "0.1"]
    for arguments in (["Hopper-v5", "--run-dir", "runs/hopper", *TINY], own):
        finish(ForkedSaltus(zygote, ["train", *arguments], folder))
    return folder


def draw(arguments: list[str], cwd: Path) -> None:
    """Run a command that draws, in a new process: MuJoCo chooses an OpenGL when it is imported."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([*SALTUS, *arguments], cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    if "apt install libegl1" in done.stdout + done.stderr:
        pytest.skip("no OpenGL")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_there_are_exactly_two_set_up_commands():
    found = re.findall(r"^\$ (.*)$", README, re.M)
    assert len(found) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in found)
    assert found[0].endswith("saltus train Hopper-v5")
    assert found[1].endswith(" -m pytest -n 2 --dist loadfile")


@pytest.mark.parametrize("fence", FENCES, ids=str)
def test_every_block_is_run_or_says_why_not(fence: Fence):
    assert fence.language in LANGUAGES
    if fence.language == "console":  # its commands are checked above, and run as CI
        assert fence.page.name == "README.md"
        assert all(command.startswith("$ ") for command in fence.commands)
    if fence.language == "bash" and not fence.not_run:
        assert fence.commands
        for command in fence.commands:
            assert command.startswith((*PARSED, *EXECUTED)), (
                f"no test runs {command!r}: mark the block with <!-- not run: the reason -->"
            )


@pytest.mark.parametrize("fence", [fence for fence in FENCES if fence.language == "bash"], ids=str)
def test_blocks_with_commands_that_are_parsed_say_so(fence: Fence):
    parsed = any(command.startswith(PARSED) for command in fence.commands)
    assert fence.not_run or fence.parsed == parsed


@pytest.mark.parametrize("command", commands("saltus train ", "saltus warmup "))
def test_the_training_commands_shown_are_accepted(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    config, _ = parse_train(shlex.split(command, comments=True)[2:])
    assert config.updates_per_round >= 1


@pytest.mark.parametrize("command", commands("saltus tune "))
def test_the_sweeps_shown_are_accepted(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert parse_plan(shlex.split(command, comments=True)[2:]).space


@pytest.mark.parametrize("command", commands("saltus profile "))
def test_the_profiles_shown_are_accepted(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    arguments = shlex.split(command, comments=True)[2:]
    parsed = parse_options(arguments, "profile", ProfileOptions())
    parsed.extra.check(parsed.run_dir)
    if parsed.extra.sweep is not None:
        parse_sweep(
            parsed.extra.sweep, arguments, lambda given: parse_options(given, "profile", ProfileOptions()).config
        )


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for start in EXECUTED for command in commands(start)])
def test_the_other_commands_shown_run(command: str, trained: Path, zygote: Zygote):
    arguments = shlex.split(command, comments=True)[1:]
    if arguments[0] == "play":
        draw([*arguments, "--steps", "20"], trained)  # a whole episode takes long without a GPU
    else:
        finish(ForkedSaltus(zygote, arguments, trained))


@pytest.mark.parametrize("command", commands("python -m benchmarks "))
def test_the_benchmarks_shown_are_accepted(command: str, monkeypatch: pytest.MonkeyPatch):
    arguments = shlex.split(command, comments=True)[3:]
    called: list[str] = []
    for name, function in benchmarks.COMMANDS.items():
        monkeypatch.setitem(benchmarks.COMMANDS, name, only_parse(function, called))
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    benchmarks.main()
    assert called == [arguments[0]]
    for option in arguments[arguments.index("--") + 1 :][::2] if "--" in arguments else []:
        assert option.removeprefix("--").replace("-", "_") in vars(presets.preset("fast", "Hopper-v5"))


def only_parse(function: Callable[..., None], called: list[str]) -> Callable[..., None]:
    """A function with the signature of `function`, which notes that it was called."""

    @functools.wraps(function)
    def noted(*_args: Any, **_options: Any) -> None:
        called.append(function.__name__)

    return noted


@pytest.mark.slow
def test_the_example_trains_and_is_evaluated(trained: Path, zygote: Zygote):
    assert "3 episodes" in finish(ForkedSaltus(zygote, ["evaluate", "runs/swing-up", "--episodes", "3"], trained))


def test_the_example_is_short():
    assert len(example().splitlines()) < 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(f.language == "python" for f in fences(page))], ids=lambda page: page.name
)
def test_the_python_shown_runs(page: Path, trained: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks of a page run in their order and share their names."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)
    names: dict[str, Any] = {"__name__": "builtins"}  # a module that is there, for the dataclasses defined here
    for fence in fences(page):
        if fence.language == "python" and not fence.not_run:
            exec(compile("\n" * (fence.line - 1) + fence.text, str(page), "exec"), names)


def test_the_table_of_recipes_is_true():
    table = RECIPES[RECIPES.index("| setting | `") :].partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]
    configs = [presets.preset(name, "Hopper-v5") for name in head[1:]]
    assert sorted(head[1:]) == presets.names()
    for setting, *cells in rows:
        for cell, config in zip(cells, configs, strict=True):
            assert shows(cell, getattr(config, setting)), f"{setting}: {cell}"
    shown = {setting for setting, *_ in rows}
    assert {name for c in configs for name, value in vars(c).items() if value != vars(configs[0])[name]} <= shown


def shows(cell: str, value: object) -> bool:
    """Whether a cell of the table gives a setting's value exactly."""
    match value:
        case bool():
            return cell == ("yes" if value else "no")
        case tuple():
            return cell == f"{len(value)}x{value[0]}"
        case float():
            return float(cell) == value
    return cell == (f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value))


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_the_tree_shown_is_there(page: str):
    tree = next(fence.text for fence in fences(ROOT / page) if "\nenvs/  " in fence.text)
    folders: dict[int, Path] = {}
    shown = 0
    for indent, names in re.findall(r"^( *)([\w./]+(?:, [\w./]+)*)  +\S", tree[tree.index("saltus/") :], re.M):
        for name in names.split(", "):
            parent = next((folders[depth] for depth in sorted(folders, reverse=True) if depth < len(indent)), ROOT)
            assert (parent / name).exists(), f"{parent.relative_to(ROOT)}/{name}"
            shown += 1
        folders = {depth: path for depth, path in folders.items() if depth < len(indent)}
        folders[len(indent)] = parent / name
    assert shown >= 5


def test_every_file_of_the_packages_is_in_the_tree_of_the_design():
    tree = (ROOT / "docs" / "design.md").read_text()
    for package in ("saltus", "envs", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py" and path.parent.name != "tasks":
                assert path.name in tree, path.relative_to(ROOT)


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not heading or heading in headings(found), target


def test_every_page_can_be_found():
    """The README, or a page that it links to, links to every page of docs/."""
    linked = {target for page in PAGES for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())}
    assert {page.name for page in PAGES} <= {Path(target).name for target in linked}
