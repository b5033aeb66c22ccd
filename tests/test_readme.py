"""What the README shows works as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import presets
from pipeline.cli import _parse_train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SALTUS = (sys.executable, "-c", "from pipeline.cli import main; main()")


def example() -> str:
    return next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class SwingUp(Task)" in block)


def test_there_are_exactly_two_set_up_commands():
    commands = re.findall(r"^\$ (.*)$", README, re.M)
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert commands[0].endswith("saltus train Hopper-v5")
    assert commands[1].endswith(" -m pytest -n 2 --dist loadfile")


def test_the_example_is_short():
    assert len(example().splitlines()) < 60


@pytest.mark.slow
def test_the_example_trains_and_is_evaluated(tmp_path: Path):
    (tmp_path / "swing_up.py").write_text(example())
    train = "train swing_up.py:SwingUp --run-dir run --total-env-steps 1200 --learning-starts 400 --num-envs 4"
    options = " --utd-ratio 0.25 --no-compile --eval-episodes 2 --task.effort-cost 0.1"
    for command in (train + options, "evaluate run --episodes 3"):
        done = subprocess.run([*SALTUS, *command.split()], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "3 episodes" in done.stdout
    assert (tmp_path / "run" / "learning_curve.png").stat().st_size > 0


@pytest.mark.parametrize("command", re.findall(r"^saltus (train [^#\n]*)", README, re.M))
def test_the_commands_shown_are_accepted(command: str):
    config, _ = _parse_train(shlex.split(command)[1:])
    assert config.updates_per_round >= 1


def test_the_table_of_recipes_is_true():
    table = README[README.index("| setting | ") :].partition("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]
    configs = [presets.preset(name, "Hopper-v5") for name in head[1:]]
    assert sorted(head[1:]) == presets.names()
    for setting, *cells in rows:
        assert cells == [in_the_table(getattr(config, setting)) for config in configs], setting
    shown = {setting for setting, *_ in rows} | {"total_env_steps", "log_every", "eval_every", "checkpoint_every"}
    assert {name for c in configs for name, value in vars(c).items() if value != vars(configs[0])[name]} <= shown


def test_what_fast_has_of_its_own_on_humanoid_is_true():
    sentence = README[README.index("On Humanoid-v5 `fast` has ") :].partition(":")[0]
    shown = dict(re.findall(r"`(\w+)` ([\w.]*\w)", sentence.partition("has ")[2]))
    hopper, humanoid = (vars(presets.preset("fast", task)) for task in ("Hopper-v5", "Humanoid-v5"))
    differing = {name: in_the_table(value) for name, value in humanoid.items() if value != hopper[name]}
    del differing["task"]
    assert shown == differing


def in_the_table(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case tuple():
            return f"{len(value)}x{value[0]}"
        case float():
            return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def test_the_tree_shown_is_there():
    tree = README[README.index("envs/                worlds") : README.index("## Measured")]
    folder = ROOT
    for line in filter(None, re.findall(r"^( *[\w/., ]+?)  ", tree, re.M)):
        indented, names = line.startswith(" "), line.strip().split(", ")
        for name in names:
            folder = folder if indented else ROOT / name
            assert (folder / name if indented else ROOT / name).exists(), name
