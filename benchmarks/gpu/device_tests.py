"""The kit's section of tests: pytest in processes of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from tempfile import TemporaryFile

from benchmarks import checkout
from benchmarks.gpu.context import SectionContext

TESTS_AT_ONCE = 6  # most of their time is compilation, on the CPU
FILES = "tests/test_gpu.py", "tests/test_gpu_learning.py"
TIMED_OUT = 124  # the exit code of timeout(1)


@dataclass(frozen=True)
class PytestRun:
    """An exit code and the non-empty lines of output."""

    code: int
    output: list[str]


def device_tests(context: SectionContext) -> None:
    """Run the tests that need a GPU, each in a process of its own, several at once.

    A capture that fails may leave its process unable to draw random numbers on the device. Without a GPU, all tests are
    skipped, in one process.
    """
    listed = _pytest(context.deadline, "--collect-only", *FILES).output
    tests = [line for line in listed if line.startswith("tests/") and "::" in line]
    if not tests:
        print("\n".join(listed), flush=True)
        raise RuntimeError(f"no tests were found: {' '.join(listed[-1:])}")
    groups = [[test] for test in tests] if context.device.type == "cuda" else [tests]
    until = time.monotonic() + min(context.sizes.test_seconds, context.seconds_left() - 5)
    with ThreadPoolExecutor(TESTS_AT_ONCE) as pool:
        runs = list(pool.map(lambda group: _pytest(until, "-vv", "-rfE", *group), groups))
    _report(context, groups, runs)


def _report(context: SectionContext, groups: Sequence[Sequence[str]], runs: Sequence[PytestRun]) -> None:
    """Report the tests' results; raise RuntimeError if a run of pytest did not end well."""
    output = [line for run in runs for line in run.output]
    passed = [line.split()[0] for line in output if " PASSED" in line]
    skipped = [line.split()[0] for line in output if " SKIPPED" in line]
    failed = [line for line in output if line.startswith(("FAILED", "ERROR"))]
    for group, run in zip(groups, runs, strict=True):
        if run.code not in (0, TIMED_OUT) and not any(line in failed for line in run.output):
            failed.append(f"EXIT CODE {run.code} {' '.join(group)}")  # its process died
    cut = [test for group, run in zip(groups, runs, strict=True) if run.code == TIMED_OUT for test in group]
    cut = [test for test in cut if test not in (*passed, *skipped)]
    summary = f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped, {len(cut)} cut short"
    context.note("tests", summary=summary, passed=passed, failed=failed, skipped=skipped, cut_short=cut)
    if wrong := [run for run in runs if run.code != 0]:
        for run in wrong:
            print("\n".join(run.output[-60:]), flush=True)
        raise RuntimeError(summary)


def _pytest(until: float, *arguments: str) -> PytestRun:
    """Run pytest on tests that need a GPU; kill it at `until`, by time.monotonic()."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *arguments]
    limit = max(0.0, until - time.monotonic())
    with TemporaryFile("w+") as file:
        try:
            code = subprocess.run(
                command,
                cwd=checkout.ROOT,
                env=checkout.environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
        file.seek(0)
        return PytestRun(code, [line for line in file.read().splitlines() if line.strip()])
