"""Changes of a task since the start of its run are noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import mujoco
import pytest
from cli_helpers import SWINGER, SWINGER_XML, Command
from pipeline_helpers import train_here
from run_dir_helpers import MODEL, contents

from envs.task import load_model
from envs.tasks import InvertedPendulum
from pipeline import stored_task
from pipeline.policy import load_policy

DOC, LINE = '    """A pendulum whose joint should reach a target angle."""\n', "    frame_skip: int = 5\n"
EDITS: dict[str, tuple[str, str, str, str]] = {
    "a line": ("swinger.py", "self.target).square()", "self.target).abs()", "in line 25)"),
    "lines": ("swinger.py", LINE, LINE + "    # one\n    # two\n", "in lines 18-19)"),
    "a line removed": ("swinger.py", DOC, "", "in lines removed after line 12)"),
    "ends of lines": ("swinger.py", SWINGER, SWINGER.rstrip(), "in line ends)"),
    "damping": ("swinger.xml", 'damping="0.1"', 'damping="0.2"', "in dof_damping)"),
    "gear": ("swinger.xml", "ctrlrange", 'gear="2" ctrlrange', "in actuator_acc0, actuator_gear)"),
    "timestep": ("swinger.xml", "<worldbody>", '<option timestep="0.001"/><worldbody>', "in opt.timestep)"),
}


@pytest.mark.parametrize(("name", "before", "after", "said"), EDITS.values(), ids=EDITS)
def test_resume_warns_of_an_edited_task(
    command: Command, project: Path, name: str, before: str, after: str, said: str
) -> None:
    text = (project / name).read_text()
    assert before in text
    (project / name).write_text(text.replace(before, after))
    outcome = command("resume", project / "run")
    assert outcome.code == 0, outcome.text
    assert "warning: resumed, but not bit for bit: its task has changed (" in outcome.text
    assert said in outcome.text
    stored = "task/swinger.py" if name == "swinger.py" else "task/model.mjb"
    assert f"differs from {project}/run/{stored}" in outcome.text


@pytest.mark.parametrize(
    ("name", "before", "after", "said"), [EDITS["a line"], EDITS["damping"]], ids=["file", "model"]
)
def test_policy_of_an_edited_task_is_loaded_with_a_warning(
    command: Command, project: Path, name: str, before: str, after: str, said: str
) -> None:
    (project / name).write_text((project / name).read_text().replace(before, after))
    warning = "the policy plays, but not as it was trained: its task has changed ("
    with pytest.warns(UserWarning, match="has changed") as caught:
        load_policy(project / "run")
    (message,) = {str(item.message) for item in caught}
    assert message.startswith(warning)
    assert said in message
    outcome = command("evaluate", project / "run", "--episodes", 1)
    assert outcome.code == 0
    assert f"warning: {warning}" in outcome.text


@pytest.mark.parametrize("name", ["resume", "evaluate"])
def test_unchanged_task_is_not_warned_about(command: Command, project: Path, name: str) -> None:
    assert "warning" not in command(name, project / "run").text


def test_solver_of_the_training_is_no_change_of_the_task(command: Command, tmp_path: Path) -> None:
    model = "<mujoco><option solver='CG'/>" + SWINGER_XML.replace("<mujoco>", "")
    (tmp_path / "swinger.py").write_text(SWINGER)
    (tmp_path / "swinger.xml").write_text(model)
    run = tmp_path / "run"
    train_here(run, f"{tmp_path}/swinger.py:Swinger", solver="newton", total_env_steps=60)
    for name in ("resume", "evaluate"):
        assert "warning" not in command(name, run).text


TETRA = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def test_moved_mesh_is_no_change_of_the_task(tmp_path: Path) -> None:
    """A compiled model holds the absolute paths of its meshes."""
    models = {}
    for name in ("here", "a/longer/path"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "tetra.obj").write_text(TETRA)
        xml = "<mujoco><asset><mesh name='t' file='{}/tetra.obj'/></asset><worldbody><body><freejoint/>"
        xml += "<geom type='mesh' mesh='t'/></body></worldbody></mujoco>"
        models[name] = mujoco.MjModel.from_xml_string(xml.format(folder))
    before, after = models.values()
    assert before.npaths != after.npaths
    record = stored_task.store(tmp_path, "InvertedPendulum-v5", before)
    assert stored_task.changes(tmp_path, record, "InvertedPendulum-v5", after) == []
    after.body_mass[1] += 1
    (change,) = stored_task.changes(tmp_path, record, "InvertedPendulum-v5", after)
    assert change.endswith("in body_mass")


@pytest.mark.parametrize("error", [ValueError, mujoco.FatalError, MemoryError])
def test_model_that_mujoco_cannot_read_is_reported_as_another(
    tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stored_task.store(tmp_path, "InvertedPendulum-v5", load_model(InvertedPendulum()))
    other = load_model(InvertedPendulum())
    other.body_mass[1] += 1
    monkeypatch.setattr(mujoco.MjModel, "from_binary_path", lambda *_: (_ for _ in ()).throw(error("forged")))
    (change,) = stored_task.changes(tmp_path, record, "InvertedPendulum-v5", other)
    assert change == "the compiled model differs from that at the start of the run"


def test_stored_text_that_is_no_utf8_is_compared(command: Command, project: Path) -> None:
    file, text = project / "run" / "config.json", project / "run" / "task" / "swinger.py"
    text.write_bytes(b"# \xff\n" + text.read_bytes())
    content = json.loads(file.read_text())
    content["task"]["sha256"] = hashlib.sha256(text.read_bytes()).hexdigest()
    file.write_text(json.dumps(content))
    assert f"swinger.py differs from {text} in lines removed after line 0" in command("resume", project / "run").text


def test_model_of_another_state_is_refused(command: Command, project: Path) -> None:
    xml = SWINGER_XML.replace("<joint", '<joint name="second" axis="1 0 0"/><joint', 1)
    (project / "swinger.xml").write_text(xml)
    source = SWINGER.replace(
        "[state.qpos.sin(), state.qpos.cos(), state.qvel]",
        "[state.qpos[:, :1].sin(), state.qpos[:, :1].cos(), state.qvel[:, :1]]",
    )
    (project / "swinger.py").write_text(source)
    before = contents(project / "run" / "checkpoints")
    outcome = command("resume", project / "run")
    assert outcome.code == 1
    assert "the task's model has changed since the start of the run: its state has" in outcome.err
    assert contents(project / "run" / "checkpoints") == before


@pytest.mark.parametrize("damage", ["missing", "changed"])
@pytest.mark.parametrize("edited", [False, True])
def test_lost_copies_still_show_whether_the_task_changed(
    command: Command, project: Path, damage: str, edited: bool
) -> None:
    for name in ("swinger.py", "model.mjb"):
        path = project / "run" / "task" / name
        path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1])
    if edited:
        (project / "swinger.py").write_text(SWINGER + "\n# edited\n")
        (project / "swinger.xml").write_text(SWINGER_XML.replace("0.05", "0.06"))
    text = command("resume", project / "run").text
    assert (f"{project}/swinger.py has another text than at the start of the run" in text) == edited
    assert ("the compiled model differs from that at the start of the run" in text) == edited
    assert ("warning" in text) == edited


@pytest.mark.parametrize(
    "record", [None, 5, [], {}, {"sha256": "0"}, {"file": 5, "sha256": "0"}, {"former": "Swinger"}, {"former": [5]}]
)
def test_run_without_a_record_of_its_task_resumes(command: Command, project: Path, record: object) -> None:
    file = project / "run" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task": record}))
    assert "warning" not in command("resume", project / "run").text


def test_many_changes_are_counted(tmp_path: Path) -> None:
    record = stored_task.store(tmp_path, "InvertedPendulum-v5", MODEL)
    other = mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": (tmp_path / record["model"]).read_bytes()})
    for name in ("body_mass", "body_inertia", "body_pos", "geom_size", "geom_friction", "dof_damping", "dof_armature",
                 "jnt_range", "actuator_gear", "jnt_stiffness"):  # fmt: skip
        getattr(other, name)[:] += 1
    (change,) = stored_task.changes(tmp_path, record, "InvertedPendulum-v5", other)
    assert change.endswith("and 2 more")
