"""``saltus profile TASK``."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from envs.task_ref import resolve_task
from pipeline import files
from pipeline.config import Config
from pipeline.console import print_line
from pipeline.logger import require_packages
from pipeline.profile.options import ProfileOptions, require_rounds
from pipeline.run_dir import require_unused
from pipeline.train_options import parse_options
from saltus.errors import SaltusError


def profile(arguments: list[str], console: Console) -> None:
    """Check every option, profile, print the report and write the files asked for.

    Raises:
        SaltusError: options that do not work, alone or together.
        SystemExit: code 1, if `--compare` found something slower.
    """
    parsed = parse_options(arguments, "profile", ProfileOptions())
    config, options = parsed.config, parsed.extra
    resolve_task(config.task)  # refuses an environment of another library
    run_dir = None if parsed.run_dir is None else parsed.run_dir.expanduser()
    options.check(run_dir)
    if run_dir is not None:
        require_unused(run_dir)
    require_packages(config)
    with _exit_on_signals():
        if options.sweep is not None:
            _sweep(arguments, config, options, console)
        else:
            require_rounds(config)
            _profile(config, run_dir, options, console)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exit on SIGTERM and SIGHUP as on an error, so that the temporary directory is removed."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda received, frame: sys.exit(128 + received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _profile(config: Config, run_dir: Path | None, options: ProfileOptions, console: Console) -> None:
    _warm_start(config)
    from pipeline.profile.measure import measure
    from pipeline.profile.report import report
    from pipeline.profile.result import compare, load, require_same_task, summarize

    before = None
    if options.compare is not None:
        before = load(options.compare)
        require_same_task(before, config.task, options.compare)
    started = time.monotonic() - (time.time() - psutil.Process().create_time())
    result = summarize(measure(config, options.seconds, console, started, run_dir=run_dir, trace=options.trace))
    report(result, console)
    if options.trace is not None:
        print_line(console, f"trace: {options.trace}")
    _write_json(options.json, result, console)
    if before is not None:
        lines, slower = compare(before, result)
        for line in lines or ["nothing changed beyond the noise of the repeats"]:
            print_line(console, line)
        if slower:
            print_line(console, f"slower than {options.compare}")
            sys.exit(1)


def _sweep(arguments: list[str], config: Config, options: ProfileOptions, console: Console) -> None:
    assert options.sweep is not None
    from pipeline.profile.sweep import parse_sweep, picture_path, plot_sweep, print_sweep, run_sweep

    sweep = parse_sweep(
        options.sweep, arguments, lambda given: parse_options(given, "profile", ProfileOptions()).config
    )
    _warm_start(config)
    results = run_sweep(sweep, options.seconds, console)
    print_sweep(sweep, results, console)
    picture = options.png or picture_path(config.task_name, sweep.option)
    plot_sweep(sweep, results, picture)
    print_line(console, f"picture: {picture}")
    _write_json(options.json, {"sweep": sweep.option, "values": sweep.values, "results": results}, console)


def _warm_start(config: Config) -> None:
    from saltus.device import cuda_available
    from saltus.device.warm_start import warm_start

    on_cpu = config.device == "cpu" or (config.device == "auto" and not cuda_available())
    if config.compile and on_cpu:
        warm_start()


def _write_json(path: Path | None, content: dict[str, Any], console: Console) -> None:
    if path is None:
        return
    try:
        files.write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise SaltusError(f"could not write {path}: {error.strerror}. The result is printed above") from error
    print_line(console, str(path))
