"""The `saltus` command: what it prints, refuses and writes."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from cli_helpers import Command, assert_refused
from pipeline_helpers import PRESETS, read_csv, small_arguments, train_here
from run_helpers import quiet_console

import envs
import saltus
from pipeline import cli
from pipeline import run as run_module
from saltus import SaltusError
from saltus.device import warm_start as warm_start_module
from saltus.versions import versions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


# Usage


def test_without_a_command_usage_lists_commands_and_tasks(command: Command) -> None:
    outcome = command()
    assert outcome.code == 2
    for name in (
        "train",
        "resume",
        "evaluate",
        "play",
        "export",
        "gradients",
        "profile",
        "check",
        "new",
        *envs.list_tasks(),
    ):
        assert name in outcome.out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_prints_usage(command: Command, flag: str) -> None:
    outcome = command(flag)
    assert outcome.code == 0
    assert "saltus COMMAND --help" in outcome.out


def test_unknown_command_is_refused_with_usage(command: Command) -> None:
    outcome = command("tarin", "Hopper-v5")
    assert outcome.code not in (0, None)
    assert "no command 'tarin'; did you mean train?" in outcome.err
    assert "saltus train TASK" in outcome.out
    assert command("xyz").err.strip() == "saltus: there is no command 'xyz'"


@pytest.mark.parametrize("name", ["train", "resume", "evaluate", "play", "export", "gradients"])
def test_every_command_has_help(command: Command, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert f"saltus {name}" in outcome.out


# Run directories


def test_run_has_one_length(command: Command) -> None:
    for flag in ("--total-env-steps", "--total_env_steps"):
        outcome = command("train", "Hopper-v5", "--minutes", "1", flag, "100")
        assert_refused(outcome, "--minutes and --total-env-steps both set the length of the run: give one of them")
    for value in ("0", "-1", "nan", "inf"):
        outcome = command("train", "Hopper-v5", "--minutes", value)
        assert_refused(outcome, f"minutes is {float(value)}; it must be a finite number above 0, or None")


def test_run_without_an_update_says_so(command: Command, tmp_path: Path) -> None:
    outcome = command(
        "train", "InvertedPendulum-v5", "--minutes", "1e-6", "--no-compile", "--run-dir", tmp_path / "run"
    )
    assert outcome.code == 0
    assert (
        "the run ended before its first update, after 128 env steps: give it more --minutes or fewer --learning-starts "
        "(5,000)"
    ) in outcome.text


def test_complete_run_of_minutes_is_called_complete(command: Command, tmp_path: Path) -> None:
    arguments = [word for word in small_arguments() if word not in ("--total-env-steps", "400")]
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--minutes", "0.02", "--run-dir", tmp_path / "run")
    assert outcome.code == 0
    outcome = command("resume", tmp_path / "run")
    assert outcome.code == 0
    assert "the run is complete" in outcome.text


# Output


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_without_warnings_and_logs_losses(command: Command, tmp_path: Path, preset: str) -> None:
    arguments = small_arguments(preset, log_every=4, policy_delay=3, total_env_steps=120)
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--run-dir", tmp_path / "run")
    assert outcome.code == 0
    assert "warning" not in outcome.text.lower()
    assert outcome.err == ""
    rows = read_csv(tmp_path / "run" / "metrics.csv")
    assert ("value_loss" in rows[0]) == ("alpha_loss" not in rows[0]) == (preset == "sac-v1")
    for name in {"value_loss", "critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy"} & rows[0].keys():
        known = [math.isfinite(float(row[name])) for row in rows]
        assert any(known)
        assert all(known[known.index(True) :]), f"{name} is missing in later rows"


def test_paths_are_printed_without_line_breaks(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "a-run-with-a-name-that-is-longer-than-the-line-of-a-terminal" / "and-is-copied-and-pasted"
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60), "--run-dir", folder)
    assert f"files: {folder}\n" in outcome.out
    assert str(folder / "learning_curve.png") in outcome.out
    assert str(folder / "evaluation.json") in command("evaluate", folder, "--episodes", 2).out


def test_log_messages_are_printed_during_a_command_and_not_after(tmp_path: Path) -> None:
    log = logging.getLogger("saltus")
    before = log.level, [*log.handlers]
    assert "memory on cpu: replay buffer" in train_here(tmp_path / "run", total_env_steps=60)
    assert (log.level, log.handlers) == before
    with pytest.raises(MemoryError):
        train_here(tmp_path / "large", buffer_size=10**14, total_env_steps=10**14)
    assert (log.level, log.handlers) == before


# Errors


def test_too_large_buffer_is_refused_in_one_line(command: Command, tmp_path: Path) -> None:
    arguments = small_arguments(buffer_size=10**14, total_env_steps=10**14)
    outcome = command("train", "InvertedPendulum-v5", *arguments, "--run-dir", tmp_path / "run")
    assert_refused(outcome, "set buffer_size below")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."
            ),
            "CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of memory"),
        (
            RuntimeError("Failed to allocate 8 bytes on device 'cuda:0'"),
            "Failed to allocate 8 bytes on device 'cuda:0'",
        ),
    ],
)
def test_memory_that_ends_is_reported_in_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, line: str
) -> None:
    monkeypatch.setattr(cli, "train", Mock(side_effect=error))
    outcome = command("train")
    assert_refused(outcome, f"saltus: {line}. Lower --num-envs, --buffer-size or --batch-size\n")
    monkeypatch.setattr(cli, "train", Mock(side_effect=RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        command("train")


def test_error_of_the_system_is_printed_in_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", tmp_path / "file" / "run")
    assert_refused(outcome, "Not a directory")


def test_bug_in_saltus_shows_its_traceback(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain ValueError is no refusal, even if a file of saltus raises it."""
    monkeypatch.setattr(run_module, "derive_seed", lambda *_: "no number")
    with pytest.raises(ValueError, match="no number") as error:
        command("train", "InvertedPendulum-v5", *small_arguments(), "--run-dir", tmp_path / "run")
    assert not isinstance(error.value, SaltusError)
    assert not (tmp_path / "run").exists()


# Evaluating and playing


def test_version_is_printed(command: Command) -> None:
    outcome = command("--version")
    assert outcome.code in (0, None)
    assert outcome.out == f"saltus {saltus.__version__}\n"
    assert versions()["saltus"] == saltus.__version__, "also where the metadata are those of an earlier install"


# Start of the compiler


@pytest.mark.parametrize(
    ("flags", "cuda", "started"),
    [
        ((), False, 1),
        ((), True, 0),
        (("--device", "cpu"), True, 1),
        (("--device", "cuda"), False, 0),
        (("--no-compile",), False, 0),
    ],
)
def test_compiler_is_started_early_if_updates_are_compiled_on_the_cpu(
    flags: tuple[str, ...], cuda: bool, started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_run(*_: object) -> None:
        raise SaltusError("no run")

    calls: list[None] = []
    monkeypatch.setattr(warm_start_module, "warm_start", lambda: calls.append(None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(run_module, "Run", no_run)
    with pytest.raises(SaltusError, match="no run"):
        cli.train(["InvertedPendulum-v5", *flags, "--run-dir", str(tmp_path / "run")], quiet_console())
    assert len(calls) == started


WITHOUT_TEMPORARY_FOLDER = """
import json, sys, tempfile
tempfile._candidate_tempdir_list = lambda: ["/dev/null"]
from saltus.__main__ import main
from saltus.errors import warn_once
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    warn_once.cache_clear()
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.mark.slow
def test_commands_work_without_a_temporary_folder(copied: Path, tmp_path: Path) -> None:
    train = ["train", "InvertedPendulum-v5", *small_arguments(total_env_steps=60, compile=True), "--run-dir", "run"]
    words = json.dumps([["--help"], ["evaluate", str(copied), "--episodes", "2"], train])
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TEMPORARY_FOLDER, words],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert all(text in output for text in ("saltus train TASK", "2 episodes", "finished after")), output
    assert [line for line in output.splitlines() if "warning" in line] == [
        "warning: no folder can be written for temporary files: set TMPDIR to one ([Errno 2] No usable temporary "
        "directory found in ['/dev/null']). Without one, updates run eagerly, at about half the speed"
    ] * 3
