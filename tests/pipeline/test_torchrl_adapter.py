from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from pipeline_helpers import PRESETS, make_agent
from torchrl.objectives import CrossQLoss, DiscreteSACLoss, SACLoss

import pipeline
from pipeline.torchrl_adapter import PARTS, require_parts
from saltus.errors import SaltusError

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SHARED = {"_alpha", "_cached_detached_qvalue_params", "_vmap_qnetworkN0", "target_entropy"}
NAMES = dict.fromkeys((SACLoss, CrossQLoss, DiscreteSACLoss), SHARED)
PRESET_OF = {SACLoss: "sac", CrossQLoss: "crossq", DiscreteSACLoss: "sac-discrete"}


def test_the_undocumented_parts_of_torchrl_are_listed() -> None:
    assert {cls: set(parts) for cls, parts in PARTS.items()} == NAMES


@pytest.mark.parametrize("preset", [*PRESETS, "sac-discrete"])
def test_the_installed_torchrl_has_every_part(preset: str) -> None:
    require_parts(make_agent(preset).loss)


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, names in NAMES.items() for name in sorted(names)])
def test_a_missing_part_is_refused_by_name(cls: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make_agent(PRESET_OF[cls]).loss
    monkeypatch.delattr(cls if hasattr(cls, name) else loss, name)
    message = f"torchrl {version('torchrl')} has no {cls.__name__}.{name} ({PARTS[cls][name]}): install a version"
    with pytest.raises(SaltusError, match=re.escape(message)):
        require_parts(loss)


def test_every_missing_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make_agent("sac").loss
    names = ("_alpha", "_cached_detached_qvalue_params")
    for name in names:
        monkeypatch.delattr(SACLoss, name)
    with pytest.raises(SaltusError, match=rf"no SACLoss\.{names[0]} \(.*\), no SACLoss\.{names[1]} \(.*\): install"):
        require_parts(loss)


@pytest.mark.parametrize("preset", ["sac", "redq", "flashsac"])
def test_an_agent_is_not_made_with_a_missing_part(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SACLoss, "_alpha")
    with pytest.raises(SaltusError, match=r"has no SACLoss\._alpha \(the temperature, detached\)"):
        make_agent(preset)


def test_only_the_adapter_uses_private_parts() -> None:
    private = re.compile("|".join([r"\bloss\._\w", *(rf"\b{name}\b" for name in SHARED if name.startswith("_"))]))
    paths = sorted(Path(pipeline.__file__).parent.glob("*.py"))
    assert [path.name for path in paths if private.search(path.read_text())] == ["torchrl_adapter.py"]
