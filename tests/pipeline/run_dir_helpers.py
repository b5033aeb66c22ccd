"""Contents and refusals of run directories, and a run of a user's own task, moved or in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import SWINGER, SWINGER_XML
from pipeline_helpers import small_config, train_here

from envs.task import load_model
from envs.tasks import InvertedPendulum
from saltus import SaltusError

MODEL = load_model(InvertedPendulum())
CONFIG = small_config()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(function: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(SaltusError) as error:
        function(*arguments, **options)
    return str(error.value)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task's file, its XML, and a run of it named run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "swinger.py").write_text(SWINGER)
    (folder / "swinger.xml").write_text(SWINGER_XML)
    train_here(folder / "run", f"{folder}/swinger.py:Swinger", total_env_steps=120)
    return folder


def copy_of(own_run: Path, folder: Path, recorded: Path | str) -> Path:
    """Copy `own_run` to `folder`; its config.json names a task's file in the folder `recorded`."""
    shutil.copytree(own_run, folder)
    file = folder / "run" / "config.json"
    content = json.loads(file.read_text())
    content["config"]["task"] = f"{recorded}/swinger.py:Swinger"
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def moved(own_run: Path, tmp_path: Path) -> Path:
    """A copy of `own_run` whose config.json names a file that does not exist."""
    return copy_of(own_run, tmp_path / "moved", "/old/project")


@pytest.fixture
def project(own_run: Path, tmp_path: Path) -> Path:
    """A copy of `own_run` whose config.json names the copy's file."""
    return copy_of(own_run, tmp_path / "project", tmp_path / "project")
