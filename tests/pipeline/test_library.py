"""`saltus.train` and `saltus.resume`: the commands of these names, from Python."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import SWINGER, Command
from pipeline_helpers import SMALL, read_csv, train_here

import saltus
from envs import Task
from envs.task_ref import name_task
from envs.tasks.hopper import Hopper
from pipeline import library, presets, session
from pipeline.divergence import DivergenceError
from pipeline.run import Run
from pipeline.train_options import configure, parse_train
from saltus import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

TASK = "InvertedPendulum-v5"
SHORT: dict[str, Any] = {**SMALL, "total_env_steps": 80, "eval_every": 80, "log_every": 20}
TIMES = {"seconds", "env_steps_per_second", "gradient_steps_per_second"}


def rows(run_dir: Path, table: str = "metrics.csv") -> list[dict[str, str]]:
    """A table of a run, without times and rates."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_csv(run_dir / table)]


# The run


def test_loop_over_seeds_equals_the_commands_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also config.json: a whole number for a float, a list for a tuple and NumPy's numbers are converted."""
    given = {**SHORT, "critic_hidden": [8], "tau": np.float32(0.5), "preset": "sac", "alpha_init": 1}
    before = torch.get_rng_state(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    for seed in np.arange(2):
        run_dir = saltus.train(TASK, run_dir=str(tmp_path / f"{seed}"), seed=seed, **given)
        assert run_dir == tmp_path / f"{seed}"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGINT)) == before[1:]
    printed = capsys.readouterr().out
    expected = train_here(tmp_path / "command", seed=1, **{**SHORT, "preset": "sac", "tau": 0.5, "alpha_init": 1.0})
    assert [line.partition(" ")[0] for line in printed.splitlines()[-2:]] == ["finished", "best"]
    assert printed.count("\n") == 2 * expected.count("\n")
    for table in ("metrics.csv", "evaluations.csv"):
        assert rows(tmp_path / "1", table) == rows(tmp_path / "command", table) != rows(tmp_path / "0", table)
    config, other = (tmp_path / name / "config.json" for name in ("1", "command"))
    assert config.read_text() == other.read_text()


def test_run_directory_is_chosen_loaded_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = saltus.train(Hopper, progress=False, task_options={"reset_noise_scale": 0}, **SHORT)
    assert run_dir.parent == Path("runs")
    assert run_dir.name.startswith("Hopper-v5-s0-")
    policy = saltus.load_policy(run_dir)
    env = policy.make_env(2)
    assert env.reset()[:, 0].tolist() == [1.25, 1.25]
    assert len(saltus.evaluate(policy, env).returns) == 2
    assert saltus.resume(str(run_dir), task=Hopper, progress=False) == run_dir
    assert capsys.readouterr().out == ""
    with pytest.raises(SaltusError, match=f"{run_dir} exists: `saltus resume {run_dir}` continues the run in it"):
        saltus.train(TASK, run_dir=run_dir, **SHORT)
    with pytest.raises(SaltusError, match=r"is not a run's directory: it has no config\.json"):
        saltus.resume(tmp_path)


# Signals


@pytest.fixture
def signals_at_60(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[signal.Signals]]:
    """Signals that this process gets at 60 env steps."""
    numbers, plain = list[signal.Signals](), Run.step

    def step(run: Run, action: torch.Tensor) -> Any:
        while run.env_steps == 60 and numbers:
            os.kill(os.getpid(), numbers.pop())
        return plain(run, action)

    monkeypatch.setattr(Run, "step", step)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by processes in the background
    yield numbers
    signal.signal(signal.SIGINT, before)
    assert numbers == []


def test_interrupted_run_is_saved_and_raises(tmp_path: Path, signals_at_60: list[signal.Signals]) -> None:
    """Otherwise a loop over seeds would continue."""
    signals_at_60.append(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        saltus.train(TASK, run_dir=tmp_path / "run", progress=False, **SHORT)
    assert [row["env_steps"] for row in rows(tmp_path / "run")] == ["20", "40", "60"]
    saltus.resume(tmp_path / "run", progress=False)
    train_here(tmp_path / "whole", **SHORT, preset="fast")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_signal_reaches_the_programs_handler_after_the_run_is_saved(
    tmp_path: Path, signals_at_60: list[signal.Signals]
) -> None:
    saved = list[bool]()
    before = signal.signal(signal.SIGTERM, lambda *_: saved.append(any((tmp_path / "checkpoints").glob("*64.pt"))))
    try:
        signals_at_60.append(signal.SIGTERM)
        assert saltus.train(TASK, run_dir=tmp_path, progress=False, **SHORT) == tmp_path
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved == [True]


def test_another_thread_trains_without_handlers(tmp_path: Path) -> None:
    def train() -> None:
        returned.append(saltus.train(TASK, run_dir=tmp_path, progress=False, **SHORT))

    returned = list[Path]()
    thread = Thread(target=train)
    thread.start()
    thread.join()
    assert returned == [tmp_path]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_env": 4}, "^there is no setting 'num_env'; did you mean num_envs"),
        ({"xyz": 4}, "^there is no setting 'xyz': physics, num_threads, .*, wandb$"),
        ({"reset_noise_scale": 0.1}, r"is an option of the task: pass task_options=\{'reset_noise_scale': ...\}"),
        ({"preset": "ppo"}, "there is no preset 'ppo'; there are crossq, droq"),
        ({"gamma": 1.5}, r"^gamma is 1.5; it must be in \[0, 1\), or auto"),
        ({"gamma": "much"}, "^gamma is 'much'; it must be a number or auto$"),
        ({"total_env_steps": 1e6}, r"^total_env_steps is 1000000\.0; it must be a whole number$"),
        ({"num_envs": "4"}, "^num_envs is '4'; it must be a whole number$"),
        ({"minutes": "4"}, "^minutes is '4'; it must be a number or None$"),
        ({"compile": 1}, "^compile is 1; it must be true or false$"),
        ({"actor_lr": torch.ones(())}, r"^actor_lr is tensor\(1\.\); it must be a number$"),
        ({"critic_hidden": 256}, "^critic_hidden is 256; it must be a list of numbers$"),
        ({"critic_loss": "hinge"}, "^critic_loss is 'hinge'; it must be one of mse, categorical$"),
        ({"tau": 0.01}, "^tau has no effect here: it needs target_network or value_network$"),
        ({"policy": "joint", "dropout": 0.1}, "^policy joint needs critic_loss mse, target_network, network mlp, "),
        ({"policy": "joint", "value_network": True}, "set value_network=False$"),
        ({"minutes": 1, "total_env_steps": 1000}, "^minutes and total_env_steps both set the length of the run"),
        ({"run_dir": ""}, "^run_dir is empty: name a run's directory$"),
        ({"run_dir": 3}, "^run_dir is 3; it must be a path, such as 'runs/hopper'$"),
        ({"preset": ["fast"]}, r"^there is no preset \['fast'\]; there are crossq, droq"),
        ({"task_options": 3}, "^task_options is 3; it must be a dictionary of options by name, or None$"),
        ({"task_options": {"noise": 1}}, "^task InvertedPendulum has no option 'noise'; its options are"),
        ({"task_options": {"reset_noise_scale": "much"}}, "is 'much'; expected a value of type float$"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SaltusError, match=message):
        saltus.train(TASK, **{"run_dir": "unused", **settings})
    assert not Path("unused").exists()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("needs Warp (--physics warp, or --num-envs 2)", "needs Warp (physics warp, or num_envs 2)"),
        ("set --no-compile: no -- here, well-known", "set compile=False: no -- here, well-known"),
        (
            "give --trust (trust=True) or --no-compile (compile=False)",
            "give --trust (trust=True) or --no-compile (compile=False)",
        ),
    ],
)
def test_messages_name_arguments_wherever_an_option_is(message: str, expected: str) -> None:
    assert library._name_arguments(message) == expected


def test_refusals_of_a_run_name_arguments_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that follow the configuration: of directories, of packages, of the run itself."""

    def refused(function: Callable[..., Path], *arguments: Any, **settings: Any) -> str:
        with pytest.raises(SaltusError) as caught:
            function(*arguments, **settings)
        return str(caught.value)

    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.csv").touch()
    assert refused(saltus.train, TASK, run_dir=tmp_path / "file").endswith("not a directory: choose another run_dir")
    assert refused(saltus.train, TASK, run_dir=tmp_path / "other").endswith("would overwrite: choose another run_dir")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert refused(saltus.train, TASK, wandb=True).startswith("wandb needs the wandb package: pip install -c ")
    message = "matmul_dtype tf32 needs CUDA, and this run is on cpu: use float32 or bfloat16"
    assert refused(saltus.train, TASK, device="cpu", matmul_dtype="tf32", run_dir=tmp_path / "run") == message

    def diverge(*_: object, **__: object) -> None:
        raise DivergenceError("set --no-compile, --run-dir X, --trust (trust=True) or --task a.py:B (task=...)")

    monkeypatch.setattr(session, "train_run", diverge)
    with pytest.raises(DivergenceError) as caught:
        saltus.train(TASK)
    assert str(caught.value) == "set compile=False, run_dir X, --trust (trust=True) or --task a.py:B (task=...)"


@pytest.mark.parametrize("function", [saltus.resume, saltus.load_policy])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "^run_dir is 3; it must be a path, such as 'runs/hopper'$"),
        (("",), "^run_dir is empty: name a run's directory$"),
        (("~no such user/run",), "^~no such user/run does not exist: name the directory of a run"),
    ],
    ids=str,
)
def test_what_is_no_directory_of_a_run_is_refused(
    function: Callable[..., Any], arguments: tuple[Any], message: str
) -> None:
    with pytest.raises(SaltusError, match=message):
        function(*arguments)


def test_settings_of_another_librarys_worlds_are_refused() -> None:
    with pytest.raises(SaltusError, match="physics has no effect on gym:CartPole-v1, which another library simulates"):
        saltus.train("gym:CartPole-v1", preset="sac-discrete", physics="cpu")


@pytest.mark.parametrize("preset", presets.names())
def test_every_setting_of_a_run_may_be_given_again(preset: str) -> None:
    """Such as those in config.json."""
    config = presets.preset(preset, TASK).to_dict()
    given = {name: config[name] for name in config if name not in ("task", "task_options")}
    assert configure(TASK, preset, given, {}) == presets.preset(preset, TASK)


def test_options_of_a_task_are_those_of_the_command(swinger: str) -> None:
    given = ["--task.target", "1", "--task.weights", "2", "3"]
    config = configure(swinger, "fast", {}, {"target": 1, "weights": [2, 3]})
    assert json.dumps(config.to_dict()) == json.dumps(parse_train([swinger, *given])[0].to_dict())
    assert configure(swinger, "fast", {}, {"target": 0.5}).task_options == {}, "the default"


# Tasks


def define(name: str, text: str, file: Path | None) -> ModuleType:
    """A module of this process, such as a script or a notebook."""
    module = ModuleType(name)
    if file is not None:
        module.__file__ = str(file)
    sys.modules[name] = module
    exec(text, vars(module))
    return module


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> None:
    """`__main__` may be replaced."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.mark.usefixtures("main")
def test_class_of_a_script_trains_by_its_file(tmp_path: Path, swinger: str, command: Command) -> None:
    file = tmp_path / "mine" / "swinger.py"
    script = define("__main__", SWINGER, file)
    run_dir = saltus.train(script.Swinger, run_dir=tmp_path / "run", progress=False, **SHORT)
    assert (
        saltus.load_policy(run_dir).task == saltus.load_policy(run_dir, task=script.Swinger).task == f"{file}:Swinger"
    )
    assert command("evaluate", run_dir, "--episodes", 2).code == 0


@pytest.mark.usefixtures("main")
def test_classes_without_a_file_are_refused() -> None:
    class Local(Task):
        pass

    notebook = define("__main__", SWINGER, None)
    message = (
        "at its top level, and a run keeps its task as a file: move the class to a file, and pass 'path/to/file.py:"
    )
    for task in (notebook.Swinger, Local):
        with pytest.raises(SaltusError, match=f"no Python file has the task {task.__qualname__} {message}"):
            name_task(task)


@pytest.mark.parametrize("task", [Hopper(), Task, 3, None])
def test_other_objects_are_no_tasks(task: Any) -> None:
    with pytest.raises(SaltusError, match=r"is not a task; expected a name .* whose options are task_options"):
        saltus.train(task)
    if task is not None:
        with pytest.raises(SaltusError, match="is not a task; expected a name"):
            saltus.load_policy("run", task=task)


def test_names_of_tasks() -> None:
    assert [name_task(task) for task in (Hopper, "gym:A-v0")] == ["Hopper-v5", "gym:A-v0"]


def test_script_that_trains_when_it_is_executed_for_its_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SWINGER + "\nimport saltus\nsaltus.train(Swinger)\n")
    message = (
        f"{tmp_path}/script.py trains while saltus executes it for its task: put the training under if __name__ =="
    )
    with pytest.raises(SaltusError, match=message):
        saltus.make(f"{tmp_path}/script.py:Swinger", 1)


def test_torchrun_is_for_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SaltusError, match="torchrun started 2 processes: several ranks train with `saltus train`"):
        saltus.train(TASK)
