"""A process that imports saltus's packages once and forks a `python -m saltus` for each request.

A fork takes 10 ms, the imports 4 s. Each message on the socket, whose descriptor is the first argument, is a request:
JSON, with the descriptors that become stdin, stdout and stderr. The child answers with its pid and, if asked to
intercept, the descriptor of its `Listener`; after its end, the zygote sends its status. The first message is "ready".
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import io
import json
import os
import resource
import runpy
import signal
import socket
import sys
import termios
from contextlib import redirect_stdout, suppress
from typing import Any

from blank_pictures import draw_blank
from file_operations import intercept

MODULES = (
    "PIL.PngImagePlugin", "matplotlib", "torch.utils.tensorboard", "envs", "pipeline.cli", "pipeline.plot",
    "pipeline.policy", "pipeline.restarts", "pipeline.run", "pipeline.session", "pipeline.train",
    "pipeline.train_options",
)  # fmt: skip


def warm_up() -> None:
    """Do what each command would do once: picture, command line, versions. Draw no learning curves later."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(layout="constrained")
    axes.plot([0, 1], label="label")
    axes.legend()
    figure.savefig(io.BytesIO())
    pyplot.close(figure)
    from pipeline import plot
    from pipeline.train_options import parse_train
    from saltus.versions import versions

    with suppress(SystemExit), redirect_stdout(io.StringIO()):
        parse_train(["Hopper-v5", "--help"])
    versions()
    plot._draw = draw_blank


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork a child for each request, one after another; return the request in a child, None at the end."""
    while True:
        message, descriptors, *_ = socket.recv_fds(channel, 1 << 16, 3)
        if not message:
            return None
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            prepare(request, descriptors, channel)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        channel.send(json.dumps({"status": status}).encode())


def prepare(request: dict[str, Any], descriptors: list[int], channel: socket.socket) -> None:
    """Set up the child: its files, terminal, signals, folder, limits and interception."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["terminal"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` ignores it
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]  # as `python -m` does
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    listeners = []
    if request["intercept"]:
        try:
            listeners = [intercept()]
        except OSError as error:
            channel.send(json.dumps({"error": str(error)}).encode())
            os._exit(1)
    socket.send_fds(channel, [json.dumps({"pid": os.getpid()}).encode()], listeners)
    for listener in listeners:
        os.close(listener)
    channel.close()


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in MODULES:
        importlib.import_module(name)
    warm_up()
    gc.collect()
    gc.freeze()  # else the first collection in each child copies the memory
    channel.send(b"ready")
    request = serve(channel)
    if request is not None:
        sys.argv[1:] = request["arguments"]
        runpy.run_module("saltus", run_name="__main__", alter_sys=True)


main()
