"""The warm start: Inductor uses what it prepares, and compilation waits for it only where it runs."""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread, Timer
from types import SimpleNamespace
from typing import Any

import pytest
import torch._inductor
import torch._inductor.codecache  # binds functions that the tests replace
from torch._inductor import config as inductor_config
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.runtime import cache_dir_utils
from update_helpers import Regression, make_batch

from envs.physics import warp_model
from saltus import SaltusError
from saltus.device import warm_start
from saltus.device.warm_start import WarmStart, can_precompile_header

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


@pytest.mark.parametrize("openssl", ["/usr/bin/openssl", None])
@pytest.mark.parametrize("enabled", [True, False])
def test_header_is_precompiled_if_enabled_and_openssl_exists(
    openssl: str | None, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", {"openssl": openssl}.get)
    with inductor_config.patch(cpp_cache_precompile_headers=enabled):
        assert can_precompile_header() == (enabled and openssl is not None)


def test_compilation_waits_for_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    known, waiting, compiling, seen = Event(), Event(), Event(), list[bool]()

    class Watched(WarmStart):
        def wait_until_probed(self) -> None:
            waiting.set()
            super().wait_until_probed()

    def compile_(traced: Any, *_: Any, **__: Any) -> Any:
        compiling.set()
        return traced

    def release() -> None:
        seen.extend([waiting.wait(60), compiling.wait(0.5)])
        known.set()

    monkeypatch.setattr(warm_start, "WarmStart", Watched)
    monkeypatch.setattr(warm_start, "_thread", None)
    monkeypatch.setattr(warm_start, "can_precompile_header", lambda: False)
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.pick_vec_isa", lambda: known.wait(60))
    monkeypatch.setattr(torch._inductor, "standalone_compile", compile_)
    warm_start.warm_start()
    other = Thread(target=release)
    other.start()
    Regression().compiled()(make_batch())  # in this thread, as in a run
    other.join(60)
    assert seen == [True, False]
    assert compiling.is_set()
    assert warm_start._thread is not None
    warm_start._thread.join(60)


def test_compilation_does_not_wait_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its parent's WarmStart object, whose thread does not run."""
    monkeypatch.setattr(warm_start, "_thread", WarmStart())
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda traced, *_, **__: traced)
    update = Regression().compiled()
    update(make_batch())
    assert update.compiled


@pytest.mark.parametrize(
    "name",
    [
        "torch._inductor.codecache.CppPythonBindingsCodeCache",
        "torch._inductor.cpu_vec_isa.pick_vec_isa",
        "torch._inductor.runtime.cache_dir_utils.cache_dir",
    ],
)
def test_missing_internals_warn_once_and_updates_compile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "_thread", None)
    with monkeypatch.context() as patch:
        patch.delattr(name)
        with pytest.warns(UserWarning, match="cannot be prepared early") as caught:
            warm_start.warm_start()
        assert warm_start._thread is not None
        warm_start._thread.join(60)
    assert len(caught) == 1
    assert warm_start._thread.probed.is_set()
    update = Regression().compiled()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        update(make_batch())
    assert update.compiled


def unwritable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that cannot be made, and a temporary folder for the one that replaces it."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (folder / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "file" / "cache"))
    return folder


def test_cache_that_cannot_be_written_is_replaced_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unwritable(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match=r"cannot be cached \(.*file.*\).*set TORCHINDUCTOR_CACHE_DIR to a folder"):
        warm_start.ensure_cache_folder()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent == folder
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_dir()


@pytest.mark.parametrize("name", [None, "mine"])
@pytest.mark.parametrize("has_name", [True, False], ids=["user", "user without a name"])
def test_cache_that_can_be_written_is_kept(
    name: str | None, has_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_user() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if not has_name:
        monkeypatch.setattr(getpass, "getuser", no_user)
    if name is not None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warm_start.ensure_cache_folder()
    expected = str(tmp_path / name) if name else cache_dir_utils.default_cache_dir()
    assert [str(path) for path in tmp_path.iterdir()] == [expected]
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (expected if name else None)


def test_kernels_of_warp_are_cached_elsewhere_if_its_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(kernel_cache_dir=None)

    def init() -> None:
        if config.kernel_cache_dir is None:
            raise PermissionError(13, "Permission denied", "/nobody/.cache/warp")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match=r"cannot be cached \(.*/nobody/\.cache/warp.*set WARP_CACHE_PATH to a folder"):
        warp_model._initialize(FakeWarp(config, init))
    assert Path(config.kernel_cache_dir).parent == tmp_path


class FakeWarp:
    def __init__(self, config: SimpleNamespace, init: Callable[[], None]):
        self.config, self.init = config, init


def test_nothing_is_compiled_without_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    unwritable(tmp_path, monkeypatch)
    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.warns(UserWarning, match=r"set TMPDIR to one .*No usable temporary.*Without one, updates run eagerly"):
        warm_start.ensure_cache_folder()
    assert not warm_start.can_compile()
    cache_dir_utils.cache_dir()  # which torch calls at its import
    monkeypatch.setattr(warm_start, "_thread", None)
    update = Regression().compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warm_start.warm_start()
        assert warm_start._thread is None
        assert not update.pending
        update(make_batch())
    assert not update.compiled


def test_warp_is_refused_without_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(SaltusError, match="no folder can be written for temporary files: set TMPDIR to one"):
        warm_start.temporary_cache_folder("WARP_CACHE_PATH", OSError("read-only"))


def test_errors_in_preparation_are_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no folder to cache in")

    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.cache_dir", fail)
    with pytest.warns(UserWarning, match="no folder to cache in"):
        WarmStart()


PREPARE_AND_COMPILE = """
import json, signal
from pathlib import Path
import torch
from tensordict import TensorDict
from torch._inductor import cpu_vec_isa
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from saltus.device import warm_start
from saltus.device.compiled_update import CompiledUpdate

cpu_vec_isa.supported_vec_isa_list[:] = [cpu_vec_isa.VecAVX2()]  # one probe on x86, which takes seconds
signal.signal(signal.SIGINT, lambda *_: None)  # as in training, which saves before it stops
warm_start.warm_start()
warm_start.warm_start()
print("preparing", flush=True)
warm_start._thread.join()
print("prepared", flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
headers = lambda: sorted(str(path) for path in Path(default_cache_dir()).rglob("*.[gp]ch"))
before = headers()
update = CompiledUpdate(lambda batch: {"double": 2 * batch["x"].sin()}, lambda: [])
assert (update(TensorDict({"x": torch.ones(64)}))["double"] > 1).all() and update.compiled
found, probes = str(cpu_vec_isa.pick_vec_isa()), cpu_vec_isa.valid_vec_isa_list.cache_info().misses
print(json.dumps([found, probes, len(before), headers() == before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_precompile_header(), reason="Inductor cannot precompile its header here")
def test_compilation_uses_what_was_prepared_despite_interrupts(tmp_path: Path) -> None:
    unset = ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_VEC_ISA_OK")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    done = Event()
    with subprocess.Popen(
        [sys.executable, "-c", PREPARE_AND_COMPILE],
        env=environment | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        too_late = Timer(240, process.kill)
        too_late.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "preparing\n"
            Thread(target=interrupt_until, args=(done, process.pid), daemon=True).start()
            assert process.stdout.readline() == "prepared\n"
            done.set()
            found, probes, headers, no_new_header = json.loads(process.stdout.read())
        finally:
            done.set()
            too_late.cancel()
            process.kill()
    assert found == ("avx2" if platform.machine() in ("x86_64", "AMD64") else str(pick_vec_isa()))
    assert probes == 1
    assert headers == 1
    assert no_new_header


def interrupt_until(done: Event, group: int) -> None:
    while not done.wait(0.1):
        os.killpg(group, signal.SIGINT)
