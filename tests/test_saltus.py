"""The public package: its names, its command, its errors, and clashes with other packages' names."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import saltus
from saltus import SaltusError, device, require_own_packages
from saltus.device import resolve_device
from saltus.versions import PACKAGES, versions

ROOT = Path(saltus.__file__).resolve().parents[1]


def python(*arguments: str, path: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with `path` first on its path."""
    folders = [str(folder) for folder in (path, ROOT) if folder is not None]
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", saltus.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(saltus, name).__name__.removeprefix("envs.") == name
    assert name in dir(saltus)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'saltus' has no attribute 'mkae'"):
        _ = saltus.mkae
    with pytest.raises(ImportError, match="cannot import name 'mkae'"):
        exec("from saltus import mkae")


def test_import_is_lazy() -> None:
    code = "import sys, saltus, saltus.__main__, json; print(json.dumps(sorted(sys.modules)))"
    imported = json.loads(python("-c", code).stdout)
    assert "saltus" in imported
    assert not {"torch", "numpy", "mujoco", "envs", "pipeline"} & set(imported)


def test_saltus_error_is_a_value_error() -> None:
    assert issubclass(SaltusError, ValueError)


def write_package(folder: Path, name: str) -> Path:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    return package


def write_module(folder: Path, name: str) -> Path:
    module = folder / f"{name}.py"
    module.touch()
    return module


@pytest.fixture
def unimported() -> Iterator[None]:
    """Hide that `envs` and `pipeline` were imported, and undo what a test imports by these names."""
    names = ("envs", "pipeline")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize("name", ["envs", "pipeline"])
@pytest.mark.parametrize("write", [write_package, write_module])
@pytest.mark.parametrize("already_imported", [False, True])
def test_shadowing_package_is_an_import_error(
    name: str,
    write: Callable[[Path, str], Path],
    already_imported: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = write(tmp_path, name)
    monkeypatch.syspath_prepend(tmp_path)
    if already_imported:
        importlib.import_module(name)
    with pytest.raises(ImportError, match="Rename that one, or remove its parent folder from Python's path") as caught:
        exec("from saltus import make")
    assert f"saltus needs its own package {name!r}" in str(caught.value)
    assert f"Python finds {other} first" in str(caught.value)
    assert (caught.value.name, caught.value.path) == (name, str(other))


@pytest.mark.usefixtures("unimported")
def test_plain_folder_shadows_if_python_finds_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prefers a package with __init__.py that comes later, unless an import hook provides it."""
    folder = tmp_path / "envs"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    require_own_packages()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "__editable__" not in repr(finder)])
    with pytest.raises(ImportError, match=f"Python finds {folder} first"):
        require_own_packages()


def test_command_names_a_shadowing_package(tmp_path: Path) -> None:
    package = write_package(tmp_path, "envs")
    (package / "plain.py").touch()
    result = python("-m", "saltus", "train", "envs/plain.py:Swing", path=tmp_path, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"saltus: saltus needs its own package 'envs' ({ROOT / 'envs'})")
    assert str(package) in result.stderr
    assert "Traceback" not in result.stderr


def test_python_m_saltus_is_the_command(tmp_path: Path) -> None:
    result = python("-m", "saltus", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train" in result.stdout


def test_versions_list_packages_and_numerics() -> None:
    found = versions("tyro", "a-package-that-does-not-exist")
    extra = {"tyro", "a-package-that-does-not-exist", "python", "torch threads", "cpu capability", "bfloat16 products"}
    assert set(found) == {*PACKAGES, *extra}
    assert {"saltus", "torch", "torchrl", "tensordict", "mujoco", "numpy"} < set(PACKAGES)
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["torch threads"] == str(torch.get_num_threads())
    assert found["a-package-that-does-not-exist"] == "not installed"
    assert all(isinstance(version, str) and version for version in found.values())


def test_resolve_device() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("auto") == resolve_device("cpu") == resolve_device(cpu) == cpu


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device cuda was requested, but torch sees no CUDA device: use device cpu or auto"),
        (torch.device("cuda:1"), "device cuda:1 was requested, but torch sees no CUDA device"),
        ("nonsense", "device 'nonsense' is not supported: use auto, cpu, cuda or"),
        ("cuda:x", "device 'cuda:x' is not supported: use auto, cpu, cuda or"),
        ("mps", "device 'mps' is not supported: use auto, cpu, cuda or"),
        ("", "device '' is not supported"),
    ],
)
def test_resolve_device_refuses(name: str | torch.device, message: str) -> None:
    with pytest.raises(SaltusError, match=message):
        resolve_device(name)


def test_resolve_device_says_why_torch_cannot_use_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch warns at its first look only, and the command line hides the warnings of torch."""
    looks = []

    def look() -> bool:
        looks.append(1)
        if len(looks) == 1:
            warnings.warn("CUDA initialization: The driver is too old. (Triggered internally at a)", stacklevel=1)
        return False

    monkeypatch.setattr(device, "_torch_reasons", [])
    monkeypatch.setattr(torch.cuda, "is_available", look)
    reason = r"torch says: CUDA initialization: The driver is too old\.$"
    with pytest.warns(UserWarning, match=f"^torch sees no CUDA device, so device auto is the CPU. {reason}") as seen:
        assert resolve_device("auto") == resolve_device("auto") == torch.device("cpu")
    assert len(seen) == 1
    with pytest.raises(SaltusError, match=f"torch sees no CUDA device: use device cpu or auto. {reason}"):
        resolve_device("cuda")


def test_resolve_device_checks_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SaltusError, match="device cuda:2 was requested, but torch sees 2 CUDA devices"):
        resolve_device("cuda:2")
