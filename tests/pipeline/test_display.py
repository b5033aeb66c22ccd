"""The display of a run: live on terminals only, and never the end of a run."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked_saltus import ForkedSaltus, Zygote
from pipeline_helpers import small_arguments
from rich.console import Console

from pipeline import checkpoint, display
from pipeline.display import Display, show_progress, tolerate_lost_output

ROW = {"env_steps_per_second": 100.0, "gradient_steps_per_second": 25.0, "alpha": 0.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(file: io.StringIO, environment: dict[str, str]) -> str:
    console = Console(file=file, width=100, _environ=environment)
    with Display(console, total=1000) as display:
        display.phase("learning")
        display.set_progress(0.5)
        display.show(ROW)
        display.print_progress(500)
        display.say("a line [/] with brackets")
    return file.getvalue()


def test_failures_of_all_kinds_are_one_number() -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=100), total=1000) as display:
        display.show({"unstable": 2, "nonfinite": 3})
        display.print_progress(500)
    assert "failed world-steps 5" in file.getvalue()


def test_progress_of_a_run_of_minutes_is_shown_in_minutes() -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=100), total=1000, minutes=5.0) as display:
        display.set_progress(0.25)
        display.show(ROW)
        display.print_progress(3000)
    assert file.getvalue().startswith("3,000 env steps in 1.2 of 5 minutes: env steps/s")


@pytest.mark.parametrize(
    ("file", "environment", "live"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {"TERM": "unknown"}, False),
        (io.StringIO(), {}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1", "TERM": "xterm-256color"}, False),
        (io.StringIO(), {"TTY_COMPATIBLE": "1"}, False),
        (io.StringIO(), {"TTY_INTERACTIVE": "1", "TTY_COMPATIBLE": "1"}, False),
    ],
    ids=lambda value: " ".join(value) or "file" if isinstance(value, dict) else "",
)
def test_display_is_live_on_terminals_only(file: io.StringIO, environment: dict[str, str], live: bool) -> None:
    shown = shown_on(file, environment)
    assert ("\x1b" in shown) == live
    assert "a line [/] with brackets\n" in shown
    assert "env steps/s" in shown
    if not live:
        assert shown.splitlines() == [
            "[learning]",
            "500 of 1,000 env steps: env steps/s 100, gradient steps/s 25, alpha 0.5",
            "a line [/] with brackets",
        ]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seconds = Terminal() if terminal else io.StringIO(), iter([0.0, 9.0, 10.0, 19.0, 25.0])
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    clock = [next(seconds)]
    with show_progress(Console(file=file, width=100, _environ={"TERM": "xterm"}), "playing", 4000, "steps") as report:
        for done, now in enumerate(seconds, 1):
            clock[0] = now
            report(done * 1000)
    shown = file.getvalue()
    if terminal:
        assert "playing" in shown
        assert shown.endswith("\x1b[2K"), "the bar is erased"
    else:
        assert shown.splitlines() == ["playing: 2,000 of 4,000 steps", "playing: 4,000 of 4,000 steps"]


def without_reader() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed_stream() -> io.TextIOWrapper:
    stream = open(os.devnull, "w")  # noqa: SIM115 - closed in the next line
    stream.close()
    return stream


def closed_terminal() -> io.TextIOWrapper:
    terminal, ours = os.openpty()
    os.close(terminal)
    return os.fdopen(ours, "w")


LOST: dict[str, Callable[[], Any]] = {
    "pipe without a reader": without_reader,
    "full disk": lambda: open("/dev/full", "w"),  # noqa: SIM115 - closed by the test
    "closed stream": closed_stream,
    "closed terminal": closed_terminal,
    "no stream at all": lambda: None,
    "ASCII only": lambda: open(os.devnull, "w", encoding="ascii"),  # noqa: SIM115 - closed by the test
}


@pytest.mark.parametrize("make", LOST.values(), ids=LOST)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_lost_output_raises_nothing(make: Callable[[], Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make()
    monkeypatch.setattr(sys, name, stream)
    with tolerate_lost_output():
        for _ in range(3):
            print("ä line " * 10_000, file=getattr(sys, name), flush=True)
            Console(stderr=name == "stderr").print("more ä")
            sys.stdout.flush()
    assert getattr(sys, name) is stream
    if stream is not None:
        stream.close()  # Python does this at exit, and would fail


def test_output_that_works_is_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    with tolerate_lost_output():
        print("one")
        Console(width=100).print("two")
        assert not sys.stdout.isatty()
    assert capsys.readouterr().out == "one\ntwo\n"


def test_what_the_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii", write_through=True))
    with tolerate_lost_output():
        print("runs/längs")
    assert buffer.getvalue() == b"runs/l\\xe4ngs\n"


def arguments(run_dir: Path, **settings: Any) -> list[Any]:
    return ["train", "InvertedPendulum-v5", *small_arguments(**settings), "--run-dir", run_dir]


@pytest.mark.slow
def test_hangup_saves_the_run(zygote: Zygote, tmp_path: Path) -> None:
    with ForkedSaltus(zygote, arguments(tmp_path / "run", total_env_steps=10**6)) as process:
        while "[learning]" not in (line := process.stdout.readline()):
            assert line, "the run ended too early"
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=150)
    assert "SIGHUP: saving after the current step or compilation\n" in output
    assert "stopped by SIGHUP and saved; `saltus resume " in output
    last = checkpoint.find(tmp_path / "run" / "checkpoints")[-1]
    assert 40 < int(last.stem) < 10**6
