"""Start a runtime as a background process, and watch its start through a pipe of events."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from launcher.base.decoding import UNREADABLE
from launcher.errors import SuperviseError
from launcher.supervise import logs
from launcher.supervise.control import ERROR_CLASSES
from launcher.supervise.ending import early_finding
from launcher.supervise.events import AnyEvent, FleetFailed, FleetReady, decode_event

_LOG_NAME = "runtime.log"
_LOG_FILES = 3
_TAIL_LINES = 20
_STOPPED_CODES = (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
"""Exit codes of a runtime that was told to end; the signals: before it had installed its handlers."""


def spawn_runtime(
    deployment_dir: Path, state_dir: Path, on_event: Callable[[AnyEvent], None], asked_ns: int | None = None
) -> int:
    """Start `python -m launcher.runtime` for `deployment_dir` in a session of its own; return its pid once ready.

    `asked_ns`: see `launcher.runtime.run`. Its output goes to `STATE_DIR/runtime.log`. Raises the LaunchError that it
    ended with, or SuperviseError when it died without one or was told to end before the fleet was ready. On
    KeyboardInterrupt (Ctrl-C) the runtime is stopped with all its servers, then the exception is raised again.
    """
    log = state_dir / _LOG_NAME
    asked = () if asked_ns is None else ("--asked-ns", str(asked_ns))
    child, reading = _start((sys.executable, "-m", "launcher.runtime", str(deployment_dir.absolute()), *asked), log)
    with os.fdopen(reading, "rb") as pipe:
        try:
            for line in pipe:
                try:
                    event = decode_event(line)
                except UNREADABLE:
                    continue
                on_event(event)
                if isinstance(event, FleetReady):
                    child.returncode = 0  # it outlives us: no warning about a child that still runs
                    return child.pid
                if isinstance(event, FleetFailed):
                    child.wait()
                    raise ERROR_CLASSES.get(event.exit_code, SuperviseError)(event.findings)
        except KeyboardInterrupt:
            child.send_signal(signal.SIGTERM)
            child.wait()
            raise
    code = child.wait()
    if code in _STOPPED_CODES:
        raise SuperviseError([early_finding(deployment_dir.name)])
    message = f"the runtime ended with {code} before the fleet was ready"
    said = logs.tail(log, _TAIL_LINES)
    raise SuperviseError.of("supervise/runtime-died", message, f"the end of {log}:", *said)


def _start(argv: tuple[str, ...], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start `argv` with its output in `log`; returns the process and a descriptor to read its events from."""
    logs.shift(log, _LOG_FILES)
    reading, writing = os.pipe()
    output = logs.open_log(log)
    try:
        child = subprocess.Popen(
            (*argv, "--events-fd", str(writing)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writing,),
            start_new_session=True,
        )
    finally:
        os.close(writing)
        os.close(output)
    return child, reading
