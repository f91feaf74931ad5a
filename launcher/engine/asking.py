"""Asking an engine something: bounded in time and bytes, and nothing that it started is left behind. I/O."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from time import monotonic, sleep
from typing import IO, Any, NamedTuple

from launcher.base.environment import passed_on

SAID_MAX = 8 * 1024**2
"""Bytes of an answer; `--help` of today's builds has 100,000."""
_LOOK_S = 0.01


class Said(NamedTuple):
    """What an engine wrote, and its exit status (a signal < 0)."""

    status: int
    out: str
    err: str


class NoAnswerError(Exception):
    """It was ended before it had answered; the text says why: `did not answer in 20 s`, `wrote more than 8 MiB`."""


def ask(words: Sequence[str], env: Mapping[str, str] | None, *, timeout_s: float) -> Said:
    """Run `words` to its end; `env` is added to what servers inherit. Raises OSError (it cannot run), NoAnswerError."""
    until = monotonic() + timeout_s
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**passed_on(os.environ), **(env or {})},
        start_new_session=True,
    ) as child:
        try:
            out, err = _read(child.stdout, child.stderr, until)
            _wait(child, until)
        except TimeoutError:
            raise NoAnswerError(f"did not answer in {timeout_s:g} s") from None
        finally:
            kill_session(child)
    return Said(child.returncode, out, err)


def _read(out: IO[bytes] | None, err: IO[bytes] | None, until: float) -> tuple[str, str]:
    """Both streams to their ends. Raises TimeoutError, NoAnswerError."""
    said: dict[Any, bytearray] = {out: bytearray(), err: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in filter(None, said):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                said[key.fileobj] += data
                if not data:
                    selector.unregister(key.fileobj)
            if sum(map(len, said.values())) > SAID_MAX:
                raise NoAnswerError(f"wrote more than {SAID_MAX // 1024**2} MiB")
    return said[out].decode(errors="replace"), said[err].decode(errors="replace")


def _wait(child: subprocess.Popen[bytes], until: float) -> None:
    """Until it has ended. Raises TimeoutError."""
    while not has_ended(child):
        if monotonic() > until:
            raise TimeoutError
        sleep(_LOOK_S)


def has_ended(child: subprocess.Popen[Any], *, wait: bool = False) -> bool:
    """Whether it has; it is not reaped, so that its session can still be named."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)) is not None


def kill_session(child: subprocess.Popen[Any]) -> None:
    """SIGKILL to all that the child started, as long as it is not reaped; a wrapper leaves nothing behind."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
