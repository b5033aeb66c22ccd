"""Code of Warp's kernels for CUDA, compiled by NVRTC without a GPU.

All tasks' kernels take minutes: ``SALTUS_CUDA_CODE=all pytest tests/device``. Warp's cache keeps what compiled.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compile_warp_for_cuda import WITHOUT_NVRTC

import envs
from benchmarks import checkout

pytest.importorskip("mujoco_warp", reason="Warp is not installed")
PROGRAM = Path(__file__).parent / "compile_warp_for_cuda.py"


def compile_kernels(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, *map(str, arguments)], checkout.environment(**variables)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if WITHOUT_NVRTC in done.stdout:
        pytest.skip(WITHOUT_NVRTC)
    return done


def require_modules(done: subprocess.CompletedProcess[str], at_least: int) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.fullmatch(r"compiled (\d+) modules", done.stdout.splitlines()[-1])
    assert found is not None, done.stdout
    assert int(found[1]) >= at_least


def test_kernels_of_saltus_compile_for_an_h100() -> None:
    require_modules(compile_kernels(PROGRAM, "envs.", "InvertedPendulum-v5"), at_least=1)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("SALTUS_CUDA_CODE") != "all", reason="needs SALTUS_CUDA_CODE=all")
@pytest.mark.parametrize(("tasks", "at_least"), [(["Hopper-v5"], 40), (envs.list_tasks(), 100)], ids=["Hopper", "all"])
def test_every_kernel_that_tasks_launch_compiles_for_an_h100(tasks: list[str], at_least: int) -> None:
    require_modules(compile_kernels(PROGRAM, "", *tasks), at_least)


FAULTY = '''
"""A kernel that the CPU compiles and CUDA does not, launched at every reset."""

from envs.physics.warp_model import modules
from envs.physics.warp_start import WarpStart
from compile_warp_for_cuda import main

wp, _ = modules()


@wp.func_native("""
#ifdef __CUDA_ARCH__
#error planted
#endif
""")
def planted(): ...


@wp.kernel
def faulty(values: wp.array2d[float]):
    planted()
    values[0, 0] = 1.0


launch = WarpStart.launch


def launch_faulty(self, fields):
    launch(self, fields)
    wp.launch(faulty, dim=1, inputs=[self._pairs["qpos"][0]])


WarpStart.launch = launch_faulty
main("__main__", "InvertedPendulum-v5")
'''


def test_a_kernel_that_does_not_compile_is_found(tmp_path: Path) -> None:
    program = tmp_path / "faulty.py"
    program.write_text(FAULTY)
    paths = {"PYTHONPATH": f"{checkout.ROOT}:{PROGRAM.parent}", "WARP_CACHE_PATH": str(tmp_path)}
    done = compile_kernels(program, **paths)
    assert done.returncode == 1, done.stdout
    assert "__main__: " in done.stderr
    assert "planted" in done.stderr
