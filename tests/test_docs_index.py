"""docs/README.md lists every page, every built-in task with its numbers, and every public name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import saltus
from envs import find_task

DOCS = Path(__file__).parent.parent / "docs"
INDEX = (DOCS / "README.md").read_text()
TASKS = re.findall(r"^\| `([\w-]+-v\d+)` \| (.*) \|$", INDEX, re.M)
BUILT_IN = [name for name in saltus.list_tasks() if find_task(name).__module__.startswith("envs.tasks.")]


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\(([\w-]+\.md)", INDEX))
    assert {page.name for page in DOCS.glob("*.md")} - linked == {"README.md"}


def test_every_built_in_task_is_in_the_table():
    assert [name for name, _ in TASKS] == BUILT_IN


@pytest.mark.parametrize(("name", "cells"), TASKS)
def test_the_numbers_of_a_task_are_true(name: str, cells: str):
    env = saltus.make(name, num_envs=1, num_threads=1, check_task=False)
    task = env.task
    numbers = env.observation_dim, env.action_dim, task.dt, task.max_episode_steps, task.model.opt.timestep
    assert cells == " | ".join(f"{number:g}" for number in numbers)


def test_every_public_name_is_in_the_table():
    table = INDEX[INDEX.index("| `saltus.` |") :].splitlines()[2:]
    listed = [name for row in table for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(saltus.__all__)
