"""`launch` as a process that was forked where its modules are imported already: else they are most of its time.

Each command is a process of its own, with its own arguments, environment, directory, streams and exit code; only the
interpreter's start is shared. What is about that start (a pseudo-terminal, `PYTHON…`, a limit) runs `LAUNCH` itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Never

LAUNCH = Path(sys.executable).with_name("launch")

_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ")
"""Beginnings of the variables that an interpreter, or its C library, reads once."""


def launched(
    words: Sequence[str | Path],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """`launch WORDS` run to its end, with nothing to read, and what it wrote."""
    argv, wanted = [str(LAUNCH), *map(str, words)], dict(os.environ if env is None else env)
    if _read_at_start(wanted) != _read_at_start(os.environ):
        return subprocess.run(
            argv,
            cwd=cwd,
            env=wanted,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    answer, theirs = socket.socketpair()
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    with answer, open(out, "rb") as stdout, open(err, "rb") as stderr:  # noqa: PTH123  # descriptors, not paths
        with theirs:
            socket.send_fds(_forking(), [b"!"], [theirs.fileno(), out_end, err_end])
        os.close(out_end)
        os.close(err_end)
        answer.sendall(json.dumps({"argv": argv, "cwd": str(cwd or Path.cwd()), "env": wanted}).encode() + b"\n")
        said = answer.makefile("rb")
        pid = int(said.readline())
        try:
            written = _read(stdout.fileno(), stderr.fileno(), until=time.monotonic() + timeout_s)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(argv, timeout_s) from None
        return subprocess.CompletedProcess(argv, int(said.readline()), *map(_text, written))


def _text(written: bytes) -> str:
    """As `subprocess` reads text."""
    return written.decode().replace("\r\n", "\n").replace("\r", "\n")


def _read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    """What a running interpreter no longer looks at."""
    return {name: value for name, value in env.items() if name.startswith(_AT_START)}


def _read(*descriptors: int, until: float) -> list[bytes]:
    """All that comes from each, to its end."""
    parts: dict[int, bytearray] = {descriptor: bytearray() for descriptor in descriptors}
    with selectors.DefaultSelector() as watching:
        for descriptor in descriptors:
            watching.register(descriptor, selectors.EVENT_READ)
        while watching.get_map():
            ready = watching.select(max(0.0, until - time.monotonic()))
            if not ready and time.monotonic() >= until:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                parts[key.fd] += part
                if not part:
                    watching.unregister(key.fd)
    return [bytes(part) for part in parts.values()]


@functools.cache
def _forking() -> socket.socket:
    """The control socket of this process' own; where it ends, that process does."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "LAUNCH_TEST_MARK"},  # no test's own
        )  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


def _serve(control: socket.socket) -> None:
    """Fork whenever asked; returns in the child, whose place `_become` took, and never here."""
    watching = selectors.DefaultSelector()
    watching.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in watching.select():
            if key.data is None:
                asked, descriptors, *_ = socket.recv_fds(control, 1, 3)
                if not asked:
                    os._exit(0)
                answer = socket.socket(fileno=descriptors[0])
                if not (pid := os.fork()):
                    for other in [*watching.get_map().values()]:
                        os.close(other.fd)
                        if other.data:
                            other.data[1].close()
                    watching.close()
                    _become(answer, *descriptors[1:])
                    return
                for descriptor in descriptors[1:]:
                    os.close(descriptor)
                with contextlib.suppress(OSError):
                    answer.sendall(b"%d\n" % pid)
                watching.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, answer))
            else:
                pid, answer = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                watching.unregister(key.fd)
                os.close(key.fd)
                with answer, contextlib.suppress(OSError):
                    answer.sendall(b"%d\n" % code)


def _become(answer: socket.socket, out: int, err: int) -> None:
    """This process is the one that was asked for: its arguments, environment, directory and streams."""
    with answer, answer.makefile("rb") as asked:
        wanted = json.loads(asked.readline())
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    sys.argv = wanted["argv"]


def _end(code: object) -> Never:
    """What an interpreter does last, but for taking each module apart."""
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _main() -> None:
    """Import all that a command may, then serve the descriptor that is named."""
    sys.path[0] = str(LAUNCH.parent)
    sys.path.append(str(Path(__file__).parents[1]))
    import launcher.cli

    for found in pkgutil.walk_packages(launcher.__path__, "launcher."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for late in ("httpcore", "jinja2", "antlr4.LL1Analyzer"):
        importlib.import_module(late)
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        launcher.cli.main()
    except SystemExit as ended:
        _end(ended.code)


if __name__ == "__main__":
    _main()
