"""saltus export: files of a policy that act as the policy does, without saltus."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from cli_helpers import SWINGER_XML, Command
from pipeline_helpers import small_config, train_here
from run_helpers import train_run
from torch import Tensor

from envs.tasks.hopper import Hopper
from pipeline import export
from pipeline.evaluate import evaluate
from pipeline.export import export_policy
from pipeline.policy import Policy, load_policy
from saltus import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
EXAMPLE = Path(__file__).parents[2] / "examples" / "run_exported_policy.py"
FILES = ["policy.json", "policy.mjb", "policy.onnx", "policy.pt2"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    settings = {"preset": "sac", "normalize_observations": True, "total_env_steps": 100}
    train_here(path, "Hopper-v5", "--task.reset-noise-scale", "0.0", **settings)
    return path


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))


def swinging_policy(folder: Path, **settings: Any) -> Policy:
    """A policy whose action has the bounds -1 and 3, after a few updates."""
    (folder / "swinger.xml").write_text(SWINGER_XML.replace('ctrlrange="-1 1"', 'ctrlrange="-1 3"'))
    source = (
        "import torch\nfrom saltus import Task\n\n\nclass Swinger(Task):\n    mjcf = 'swinger.xml'\n"
        "    max_episode_steps = 20\n\n"
        "    def observation(self, state):\n        return torch.cat([state.qpos.sin(), state.qvel], dim=-1)\n\n"
        "    def reward(self, state, action, next_state):\n        return -next_state.qpos[:, 0].square()\n"
    )
    (folder / "swinger.py").write_text(source)
    config = small_config(f"{folder}/swinger.py:Swinger", total_env_steps=120, actor_hidden=(16, 16), **settings)
    train_run(config, folder / "run")
    return load_policy(folder / "run")


def expected_actions(policy: Policy, observation: Tensor) -> Tensor:
    return torch.tensor([1.0]) + torch.tensor([2.0]) * policy(observation)


SETTINGS = [
    {"preset": "fast"},
    {"preset": "sac", "normalize_observations": True, "eval_policy_averaging": 0.5},
    {"preset": "xqc"},
    {"preset": "flashsac"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["preset"])
def test_files_act_as_the_policy(settings: dict[str, Any], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    policy = swinging_policy(tmp_path, **settings)
    paths = export_policy(policy, tmp_path / "exported")
    assert sorted(path.name for path in paths) == FILES
    program = torch.export.load(tmp_path / "exported" / "policy.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "policy.onnx")
    for batch in (1, 7):
        observation = torch.randn(batch, 2) * 0.05
        expected = expected_actions(policy, observation)
        assert len(expected.unique()) == batch
        torch.testing.assert_close(program(observation), expected, rtol=1e-6, atol=1e-6)
        (action,) = session.run(None, {"observation": observation.numpy()})
        torch.testing.assert_close(torch.from_numpy(action), expected, rtol=1e-5, atol=1e-5)


def test_actions_keep_the_limits(tmp_path: Path) -> None:
    policy = swinging_policy(tmp_path)
    low, high = torch.tensor([0.1]), torch.tensor([0.3])
    env = SimpleNamespace(action_choices=(), control_low=low, control_high=high)
    module = export.ExportedPolicy(policy, env)
    with torch.no_grad():
        module.actor.body[-1].weight.mul_(1e4)
        action = module(torch.randn(1000, 2))
    assert action.min() == low
    assert action.max() == high


def test_policy_of_lower_precision_is_exported_in_float32(tmp_path: Path) -> None:
    policy = swinging_policy(tmp_path, matmul_dtype="bfloat16")
    export_policy(policy, tmp_path / "exported")
    program = torch.export.load(tmp_path / "exported" / "policy.pt2")
    assert "bfloat16" not in str(program)
    observation = torch.randn(7, 2)
    torch.testing.assert_close(
        program.module()(observation), expected_actions(policy, observation), rtol=0.05, atol=0.05
    )


RUN_ALONE = """
import runpy
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("saltus", "envs", "pipeline"):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_example_earns_the_return_of_the_evaluation_without_saltus(run_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(run_dir)
    export_policy(policy, tmp_path)
    command = [sys.executable, "-I", "-c", RUN_ALONE, str(EXAMPLE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"return (\S+) in (\d+) steps\n", done.stdout)
    assert found, done.stdout
    evaluation = evaluate(policy, policy.make_env(1))
    assert int(found[2]) == evaluation.lengths[0] > 10
    assert float(found[1]) == pytest.approx(evaluation.returns[0], rel=1e-5)


def test_example_is_short() -> None:
    code = [line for line in EXAMPLE.read_text().splitlines() if line and not line.lstrip().startswith(("#", '"'))]
    assert len([line for line in code if not line.startswith(("import ", "from "))]) <= 35


# The files


def test_facts_say_how_to_use_the_policy(run_dir: Path, tmp_path: Path) -> None:
    export_policy(load_policy(run_dir, "last"), tmp_path)
    text = (tmp_path / "policy.json").read_text()
    facts = json.loads(text)
    assert facts == json.loads(text, parse_constant=str), "numbers that JSON does not have"
    model = mujoco.MjModel.from_binary_path(str(tmp_path / facts["model"]))
    assert facts["task"] == "Hopper-v5"
    options = {field.name: field.default for field in dataclasses.fields(Hopper)} | {"reset_noise_scale": 0.0}
    assert facts["task_options"] == json.loads(json.dumps(options), parse_constant=str)
    assert (facts["policy"], facts["env_steps"]) == ("last", 100)
    assert [entry["name"] for entry in facts["observation"]][::5] == [
        "joint rootz qpos", "joint rootx qvel", "joint foot_joint qvel",
    ]  # fmt: skip
    assert facts["action"][0] == {"name": "#0 of thigh_joint", "low": -1.0, "high": 1.0}
    assert len(facts["action"]) == model.nu
    assert facts["action_is_ctrl"]
    assert facts["actuators"][2] == {"name": "#2 of foot_joint", "controls": [2]}
    assert facts["ctrl"][2] == {"name": "#2 of foot_joint", "offset": 0, "actions": [2], "scales": [1]}
    assert facts["computed_inputs"] == []
    assert (facts["timestep"], facts["frame_skip"], facts["max_episode_steps"]) == (model.opt.timestep, 4, 1000)
    assert facts["start"]["qpos"] == model.qpos0.tolist()
    data = mujoco.MjData(model)
    data.qvel[:] = np.arange(model.nv)
    entries = [getattr(data, entry["field"]).flat[entry["index"]] for entry in facts["observation"]]
    assert entries == [*data.qpos[1:], *data.qvel]


def test_program_names_no_path_of_this_machine(run_dir: Path, tmp_path: Path) -> None:
    export_policy(load_policy(run_dir), tmp_path)
    program = torch.export.load(tmp_path / "policy.pt2")
    assert not [node for node in program.graph.nodes if "stack_trace" in node.meta]


@pytest.mark.usefixtures("without_onnx")
def test_without_onnx_the_other_files_are_written(command: Command, run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    outcome = command("export", run_dir, "--output", folder)
    assert outcome.code == 0
    assert "warning: policy.onnx is not written: it needs pip install -c constraints.txt -e '.[export]'" in outcome.out
    assert sorted(path.name for path in folder.iterdir()) == [name for name in FILES if name != "policy.onnx"]


@pytest.mark.usefixtures("without_onnx")
def test_without_onnx_the_file_of_an_earlier_export_is_removed(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"written_by": "saltus export"}')
    (tmp_path / "policy.onnx").write_bytes(b"another policy")
    with pytest.warns(UserWarning, match=r"policy\.onnx is not written"):
        export_policy(load_policy(run_dir), tmp_path)
    assert not (tmp_path / "policy.onnx").exists()


@pytest.mark.parametrize("which", ["best", "last"])
def test_command_writes_to_the_runs_directory_again_and_again(command: Command, run_dir: Path, which: str) -> None:
    outcome = command("export", run_dir, "--policy", which)
    assert outcome.code == 0
    assert f"Hopper-v5, {which} policy (after 100 env steps)" in outcome.out
    written = [Path(line) for line in outcome.out.splitlines() if line.startswith(str(run_dir))]
    assert {path.name for path in written} >= {"policy.json", "policy.pt2", "policy.mjb"}
    assert all(path.parent == run_dir and path.is_file() for path in written)
    assert json.loads((run_dir / "policy.json").read_text())["policy"] == which


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["mine", '{"written_by": "me"}', "[]"])
def test_files_of_others_are_not_overwritten(
    command: Command, run_dir: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    outcome = command("export", run_dir, "--output", tmp_path)
    assert outcome.code == 1
    assert outcome.err == (
        f"saltus: {tmp_path} holds {name}, which `saltus export` did not write and would overwrite: choose another "
        "folder with --output\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_file_is_no_folder_to_write_to(command: Command, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = command("export", run_dir, "--output", tmp_path / "file")
    assert outcome.err == f"saltus: {tmp_path}/file is a file, not a folder: choose another --output\n"


def test_folder_that_cannot_be_made_is_named(command: Command, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = command("export", run_dir, "--output", tmp_path / "file" / "x")
    assert outcome.err == (f"saltus: could not write to {tmp_path}/file/x: Not a directory. Choose another --output\n")


def test_failed_export_loses_no_earlier_one(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = {"policy.json": '{"written_by": "saltus export"}', "policy.onnx": "of another policy"}
    for name, content in earlier.items():
        (tmp_path / name).write_text(content)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaltusError, match=r"could not write to .*: No space left on device\. Choose another --output"):
        export_policy(load_policy(run_dir), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == earlier


def test_folder_of_a_files_name_is_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.pt2").mkdir()
    with pytest.raises(SaltusError, match=r"has a folder named policy\.pt2: choose another folder"):
        export_policy(load_policy(run_dir), tmp_path)


def test_symbolic_link_in_the_folder_is_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.pt2").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SaltusError, match=r"holds policy\.pt2, which `saltus export` did not write"):
        export_policy(load_policy(run_dir), tmp_path)
