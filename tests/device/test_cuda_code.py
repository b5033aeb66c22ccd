"""CUDA code of the updates, written by Inductor and compiled by Triton without a GPU.

Presets other than `QUICK`, and privileged observations, take minutes: ``SALTUS_CUDA_CODE=all pytest tests/device``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import checkout
from pipeline import presets

pytest.importorskip("triton", reason="torch's CPU build comes without Triton")
PROGRAM = Path(__file__).parent / "compile_for_cuda.py"
SEEK = f"{PROGRAM.parents[2]}/examples/seek.py:Seek"

# The most kernels of all updates of a preset together: one that needs more is slower on a GPU.
QUICK = {"sac": 50, "fast": 80}
OTHERS = {
    "sac-v1": 55, "sac-discrete": 45, "redq": 60, "droq": 80, "crossq": 80, "xqc": 110, "flashsac": 160,
    "flashsac-parallel": 160,
}  # fmt: skip

takes_minutes = pytest.mark.skipif(os.environ.get("SALTUS_CUDA_CODE") != "all", reason="needs SALTUS_CUDA_CODE=all")


def compile_updates(preset: str, task: str) -> int:
    """Compile a preset's updates; return the number of kernels."""
    command = [sys.executable, str(PROGRAM), preset, task]
    done = subprocess.run(command, env=checkout.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.fullmatch(r"compiled (\d+) updates with (\d+) kernels", done.stdout.splitlines()[-1])
    assert found is not None, done.stdout
    assert int(found[1]) == (1 if presets.preset(preset, task).policy_delay == 1 else 2)
    return int(found[2])


@pytest.mark.parametrize(("preset", "most_kernels"), QUICK.items())
def test_updates_compile_for_an_h100(preset: str, most_kernels: int) -> None:
    assert 10 < compile_updates(preset, "Hopper-v5") <= most_kernels


@pytest.mark.slow
@takes_minutes
@pytest.mark.parametrize(("preset", "most_kernels"), OTHERS.items())
def test_updates_of_other_presets_compile_for_an_h100(preset: str, most_kernels: int) -> None:
    assert 10 < compile_updates(preset, "Hopper-v5") <= most_kernels


@pytest.mark.slow
@takes_minutes
@pytest.mark.parametrize("preset", QUICK)
def test_updates_with_privileged_observations_compile_for_an_h100(preset: str) -> None:
    assert 10 < compile_updates(preset, SEEK) <= 1.2 * QUICK[preset]


def test_every_preset_is_compiled() -> None:
    assert sorted({**QUICK, **OTHERS}) == presets.names()
