"""CUDA code of the updates, written by Inductor and compiled by Triton without a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import checkout

pytest.importorskip("triton", reason="torch's CPU build comes without Triton")
PROGRAM = Path(__file__).parent / "compile_for_cuda.py"


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "updates", "most_kernels"), [("sac", 1, 50), ("fast", 2, 80)])
def test_updates_compile_for_an_h100(preset: str, updates: int, most_kernels: int) -> None:
    command = [sys.executable, str(PROGRAM), preset, "Hopper-v5"]
    done = subprocess.run(command, env=checkout.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.fullmatch(r"compiled (\d+) updates with (\d+) kernels", done.stdout.splitlines()[-1])
    assert found is not None, done.stdout
    assert int(found[1]) == updates
    assert 10 < int(found[2]) <= most_kernels, "an update that needs more kernels is slower on a GPU"
