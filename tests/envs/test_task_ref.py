"""Tasks by name and file: executed once, with the modules and files beside them, from any current folder."""

from __future__ import annotations

import importlib
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import pytest
import torch
from env_helpers import CartBall

import envs
from envs import Task, task_ref
from envs.task_ref import resolve_task, task_file
from saltus.errors import SaltusError

HINGE = """<mujoco><worldbody><body><joint name="hinge" axis="0 1 0"/><geom size=".1"/></body></worldbody>
<actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator></mujoco>"""
HEAD = "import torch\nfrom envs import Task\n"
TASK = """
class Swing(Task):
    mjcf = '''{mjcf}'''
    def observation(self, state):
        return state.qpos
    def reward(self, state, action, next_state):
        return {reward} * torch.ones(len(state), dtype=torch.float64)
"""


def task(head: str = HEAD, reward: str = "1", mjcf: str = HINGE) -> str:
    return head + TASK.format(reward=reward, mjcf=mjcf)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write files, with their folders; return the first one's path."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder / next(iter(files))


def reward(name: str) -> float:
    env = envs.make(name, 1)
    env.reset()
    return env.step(torch.zeros(1, 1))[0]["next", "reward"].item()


@pytest.fixture(autouse=True)
def no_new_registered_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_ref, "_registry", dict(task_ref._registry))


# The reference


def test_reference_has_absolute_path_class_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, {"mine/swing.py": task()})
    monkeypatch.chdir(tmp_path)
    found = resolve_task("mine/swing.py:Swing")
    assert (found.name, found.file, found.text) == (f"{file}:Swing", file, task())
    assert issubclass(found.task, Task)
    assert resolve_task(found.name) == found
    built_in = resolve_task("Hopper-v5")
    assert (built_in.name, built_in.file, built_in.text) == ("Hopper-v5", None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine/swing.py:Swing", "mine/swing.py"),
        ("mine/../mine/swing.py:Swing", "mine/swing.py"),
        ("a:b/swing.py:Swing", "a:b/swing.py"),
        ("swing.py", "swing.py"),
        ("swing.py:", "swing.py"),
        ("Hopper-v5", None),
        ("swing:Swing", None),
    ],
)
def test_task_file_executes_nothing(
    name: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"mine/swing.py": "raise RuntimeError", "swing.py": "raise RuntimeError"})
    monkeypatch.chdir(tmp_path)
    assert task_file(name) == (expected and tmp_path / expected)


def test_text_is_the_one_that_was_executed(tmp_path: Path) -> None:
    file = write(tmp_path, {"swing.py": task(reward="1")})
    first = resolve_task(f"{file}:Swing")
    file.write_text(task(reward="2"))
    with pytest.warns(UserWarning, match=r"swing\.py was edited after this process executed it; start Python again"):
        assert resolve_task(f"{file}:Swing") == first
    assert first.text == task(reward="1")


def test_text_of_another_encoding_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "swing.py"
    file.write_bytes(("# coding: latin-1\n# Käfer\n" + task()).encode("latin-1"))
    assert "Käfer" in (resolve_task(f"{file}:Swing").text or "")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mine/swing.py", ["name a class in it", "as in mine/swing.py:Swing", "it has Swing, Other"]),
        ("mine/swing.py:", ["name a class in it", "as in mine/swing.py:Swing"]),
        ("mine/swing.py:Swnig", ["no Task class 'Swnig'; it has Swing, Other"]),
        ("mine/swing.py:Hopper", []),
        ("mine/none.py", ["name a class in it, as in mine/none.py:ClassName; it has none"]),
        ("mine/absent.py:Swing", ["there is no file", "mine/absent.py", "relative to the current folder"]),
        ("mine/swing:Swing", ["there is no task 'mine/swing:Swing'", "path/to/file.py:ClassName"]),
    ],
)
def test_missing_class_lists_the_classes_in_the_file(
    name: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = task(HEAD + "from envs.tasks.hopper import Hopper\n") + "\nclass Other(Swing):\n    pass\n"
    write(tmp_path, {"mine/swing.py": text, "mine/none.py": "x = 1"})
    monkeypatch.chdir(tmp_path)
    if not parts:  # a class that the file imports is one of it, but not listed
        assert resolve_task(name).task.__name__ == "Hopper"
        return
    with pytest.raises(SaltusError) as caught:
        resolve_task(name)
    assert [part for part in parts if part not in str(caught.value)] == []


# Executed once


def test_file_is_executed_once_by_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = task(HEAD + "import enum\nclass Mode(enum.Enum):\n    WALK = 1\n")
    text += "\nwith open('count', 'a') as count:\n    count.write('x')\n"
    text += "import envs\nenvs.register('Swing-v0', Swing)\n"
    file = write(tmp_path, {"mine/swing.py": text})
    (tmp_path / "link.py").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    names = [str(file), "mine/swing.py", "mine/../mine/swing.py", "link.py"]
    classes = {resolve_task(f"{name}:Swing").task for name in names}
    assert classes == {resolve_task("Swing-v0").task}
    assert (file.parent / "count").read_text() == "x"


def test_file_that_a_program_has_imported_is_not_executed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, {"imported_swing.py": task()})
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("imported_swing")
    assert resolve_task(f"{file}:Swing").task is module.Swing
    assert resolve_task(f"{file}:Swing").text == task()


def test_file_that_failed_is_executed_again(tmp_path: Path) -> None:
    file = write(tmp_path, {"swing.py": "raise RuntimeError('mine')"})
    with pytest.raises(RuntimeError, match="mine"):
        resolve_task(f"{file}:Swing")
    file.write_text(task())
    assert resolve_task(f"{file}:Swing").text == task()


def test_nothing_is_written_beside_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, {"swing.py": task(HEAD + "import helper\n"), "helper.py": ""})
    resolve_task(f"{file}:Swing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helper.py", "swing.py"]


# The modules beside it


@pytest.mark.parametrize(
    ("head", "expression"),
    [
        ("import factor", "factor.VALUE"),
        ("import factor as f", "f.VALUE"),
        ("from factor import VALUE", "VALUE"),
        ("from . import factor", "factor.VALUE"),
        ("import parts.inner", "parts.inner.VALUE"),
        ("from parts.inner import VALUE", "VALUE"),
        ("from parts import inner", "inner.VALUE"),
        ("from parts.outer import VALUE", "VALUE"),
        ("import plain.inner", "plain.inner.VALUE"),
        ("from chain import VALUE", "VALUE"),
        ("", "__import__('factor').VALUE"),
    ],
)
@pytest.mark.parametrize("lazily", [False, True])
def test_modules_beside_the_file_are_imported(head: str, expression: str, lazily: bool, tmp_path: Path) -> None:
    """At its start, or later within its functions; those of two folders do not mix."""
    path, names = list(sys.path), {}
    text = task(HEAD if lazily else f"{HEAD}{head}\n", expression)
    if lazily:
        text = text.replace(f"        return {expression}", f"        {head}\n        return {expression}")
    for value in (2, 3):
        files = {
            "swing.py": text,
            "factor.py": f"VALUE = {value}",
            "chain.py": "from factor import VALUE",
            "parts/__init__.py": "",
            "parts/inner.py": f"VALUE = {value}",
            "parts/outer.py": "from .inner import VALUE\nimport factor\nassert factor.VALUE == VALUE",
            "plain/inner.py": f"VALUE = {value}",
        }
        names[value] = f"{write(tmp_path / str(value), files)}:Swing"
        resolve_task(names[value])
    assert {value: reward(name) for value, name in names.items()} == {2: 2, 3: 3}
    assert sys.path == path
    assert not {"factor", "chain", "parts", "plain"} & sys.modules.keys()


@pytest.mark.parametrize("name", ["envs", "pipeline", "saltus", "torch", "numpy", "tyro", "json", "calendar"])
def test_modules_beside_the_file_do_not_shadow_installed_ones(name: str, tmp_path: Path) -> None:
    head = HEAD + f"import {name}\nassert '{tmp_path}' not in {name}.__file__\n"
    files = {"swing.py": task(head), f"{name}.py": "raise RuntimeError", f"{name}/__init__.py": "raise RuntimeError"}
    assert reward(f"{write(tmp_path, files)}:Swing") == 1


def test_current_folder_on_the_path_does_not_become_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As "" is in notebooks; paths that the file adds stay."""
    head = HEAD + "import sys, only_installed, torch.utils\nsys.path.append('mine')\n"
    files = {"mine/swing.py": task(head, "only_installed.VALUE"), "mine/only_installed.py": "VALUE = 3"}
    file = write(tmp_path, {**files, "site/only_installed.py": "VALUE = 2"})
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(tmp_path / "site")])
    assert reward(f"{file}:Swing") == 2
    assert (sys.path[0], sys.path[-1]) == ("", "mine")
    assert "only_installed" in sys.modules
    monkeypatch.delitem(sys.modules, "only_installed")


def test_module_beside_the_file_comes_before_one_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m saltus` has the current folder on its path."""
    file = write(tmp_path, {"mine/swing.py": task(HEAD + "import gain\n", "gain.VALUE"), "mine/gain.py": "VALUE = 2"})
    write(tmp_path, {"gain.py": "VALUE = 3"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert reward(f"{file}:Swing") == 2


def test_a_task_of_another_file_in_the_folder_is_the_same_class(tmp_path: Path) -> None:
    file = write(tmp_path, {"swing.py": task(), "other.py": "from swing import Swing\nclass Other(Swing):\n    pass\n"})
    other = resolve_task(f"{tmp_path}/other.py:Other").task
    assert issubclass(other, resolve_task(f"{file}:Swing").task)


def test_missing_module_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, {"swing.py": task(HEAD + "import no_such_module\n")})
    for name, place in (("swing.py", "swing.py:3"), ("other.py", "swing.py:3")):
        write(tmp_path, {"other.py": "from swing import Swing\n"})
        with pytest.raises(SaltusError) as caught:
            resolve_task(f"{tmp_path / name}:Swing")
        assert str(caught.value).startswith(
            f"{tmp_path / place} imports no_such_module, which is neither installed nor in {file.parent}: was it"
        )


def test_error_of_an_installed_module_arrives_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write(tmp_path, {"elsewhere/broken_one.py": "import no_such_module\n"}).parent)
    file = write(tmp_path, {"tasks/swing.py": task(HEAD + "import broken_one\n")})
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        resolve_task(f"{file}:Swing")


# The files beside it

MESH = """<mujoco><compiler meshdir="мешы"/><asset><mesh name="tetra" file="tetra.obj"/></asset>
<worldbody>{body}</worldbody><actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator></mujoco>"""
BODY = '<body><joint name="hinge" axis="0 1 0"/><geom type="mesh" mesh="tetra"/></body>'
TETRA = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
FROM_SPEC = HEAD + "import mujoco\nspec = mujoco.MjSpec.{}\n"
INLINE, INCLUDED = MESH.format(body=BODY), MESH.format(body='<include file="part é.xml"/>')


@pytest.mark.parametrize(
    "text",
    [
        task(mjcf=INLINE),
        task(mjcf=INCLUDED),
        task(mjcf="\ufeff" + INLINE),
        task(mjcf="scène.xml"),
        task(FROM_SPEC.format("from_file('scène.xml')")).replace(f"'''{HINGE}'''", "spec"),
        task(FROM_SPEC.format("from_file('../mine/scène.xml')")).replace(f"'''{HINGE}'''", "spec"),
        task(FROM_SPEC.format(f"from_string('''{INLINE}''')")).replace(f"'''{HINGE}'''", "spec"),
        task(FROM_SPEC.format(f"from_string('''{INCLUDED}''')")).replace(f"'''{HINGE}'''", "spec"),
        task(HEAD + "text = open('scène.xml').read()\n").replace(f"'''{HINGE}'''", "text"),
    ],
    ids=["string", "included", "byte order mark", "file", "spec", "parent", "spec of string", "included", "read"],
)
def test_files_beside_the_task_are_found_from_any_folder(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"swing.py": text, "scène.xml": INCLUDED, "part é.xml": f"<mujoco>{BODY}</mujoco>", "мешы/tetra.obj": TETRA}
    file = write(tmp_path / "mine", files)
    write(tmp_path / "мешы", {"tetra.obj": "of another project"})
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # for training, and for evaluation
        env = envs.make(f"{file}:Swing", 1)
        assert env.physics.model.nmesh == 1
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("mjcf", ["mjcf", "mjcf: str"])
def test_inherited_model_is_found_beside_the_file_that_sets_it(mjcf: str, tmp_path: Path) -> None:
    text = task("from dataclasses import dataclass\n" + HEAD, mjcf="swing.xml").replace("mjcf =", f"{mjcf} =")
    text = text.replace("class Swing", "@dataclass\nclass Swing")
    variant = "from parts.swing import Swing\nclass Variant(Swing):\n    frame_skip = 2\n"
    file = write(tmp_path, {"variant.py": variant, "parts/swing.py": text, "parts/swing.xml": HINGE})
    assert envs.make(f"{file}:Variant", 1).physics.model.nq == 1


def test_spec_of_the_current_folder_is_compiled_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"models/scene.xml": INLINE, "models/мешы/tetra.obj": TETRA})
    monkeypatch.chdir(tmp_path)
    cls = type("Swing", (CartBall,), {"mjcf": mujoco.MjSpec.from_file("models/scene.xml")})
    assert envs.task.load_model(cls()).nmesh == 1
    assert cls.mjcf.modelfiledir == "models/"


def test_missing_mesh_says_where_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    file = write(tmp_path, {"swing.py": task(mjcf=INLINE)})
    with pytest.raises(SaltusError) as caught:
        envs.make(f"{file}:Swing", 1)
    assert "tetra.obj" in str(caught.value)
    assert f"Relative paths start at {tmp_path}" in str(caught.value)


# Registered names


@pytest.mark.parametrize(
    ("name", "cls", "part"),
    [
        ("", CartBall, "registered as ''"),
        (" ", CartBall, "registered as ' '"),
        (None, CartBall, "registered as None"),
        ("a.py:S", CartBall, "not a file's path"),
        ("a.py", CartBall, "not a file's path"),
        ("gym:Cart-v0", CartBall, "registered as 'gym:Cart-v0'"),
        ("Cart-v0", CartBall(), "expected a subclass of saltus.Task"),
        ("Cart-v0", {}, "expected a subclass of saltus.Task"),
        ("Cart-v0", dict, "expected a subclass of saltus.Task"),
        ("Cart-v0", Task, "expected a subclass of saltus.Task"),
        ("Hopper-v5", CartBall, "'Hopper-v5' is registered already"),
        ("Cart-v0", type("Cart", (CartBall,), {"fields": "qpos"}), "fields = ('qpos',)"),
    ],
)
def test_what_cannot_be_found_again_is_not_registered(name: Any, cls: Any, part: str) -> None:
    before = envs.list_tasks()
    with pytest.raises(SaltusError) as caught:
        envs.register(name, cls)
    assert part in str(caught.value)
    assert envs.list_tasks() == before


def test_a_class_may_be_registered_again() -> None:
    def define() -> type[Task]:
        @dataclass
        class Mine(CartBall):
            noise: float = 0.2

        return Mine

    first, second = define(), define()
    for cls in (first, first, second):
        envs.register("Mine-v0", cls)
        assert envs.find_task("Mine-v0") is cls
