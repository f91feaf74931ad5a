"""One llama-server on trial: on a free port of loopback, ended with the trial, however that ends. I/O."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from launcher.base.environment import passed_on
from launcher.base.processes import ProcessScope, free_port

TAIL_LINES = 3
POLL_S = 0.05
STOP_S = 10.0
"""Seconds from SIGTERM to SIGKILL."""


class TrialError(Exception):
    """A server on trial did not start, or gave no answer that can be measured; the message says why."""


class Running(NamedTuple):
    """A server that is ready."""

    pid: int
    url: str
    load_s: float
    """Seconds from its start until it was ready."""


@contextlib.contextmanager
def running(words: Sequence[str], env: Mapping[str, str], log: Path, timeout_s: float) -> Iterator[Running]:
    """Run the server that `words` start, within the block, from when it is ready. Raises TrialError.

    `log` is overwritten. The kernel kills the server when this process dies, so that a killed sweep leaves nothing.
    """
    url = f"http://127.0.0.1:{free_port()}"
    words = [*words, "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    with log.open("wb") as output, ProcessScope() as scope, contextlib.ExitStack() as stack:
        try:
            start = scope.start(words, {**passed_on(os.environ), **env}, stdout=output, stderr=subprocess.STDOUT)
            child = stack.enter_context(start)
        except OSError as error:
            raise TrialError(f"{words[0]} cannot be run: {error.strerror}") from None
        begun = time.monotonic()
        try:
            _wait(child, url, log, timeout_s)
            yield Running(child.pid, url, time.monotonic() - begun)
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_S)


def _wait(child: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    """Wait until `/health` answers 200. Raises TrialError."""
    deadline = time.monotonic() + timeout_s
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise TrialError(f"it ended with status {child.returncode}: {tail(log)}")
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{url}/health").status_code == httpx.codes.OK:
                    return
            time.sleep(POLL_S)
    raise TrialError(f"not ready within {timeout_s:g} s: {tail(log)}")


def tail(log: Path) -> str:
    """The last error lines of a log, or its last lines if it has no errors."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if " E " in line or "error" in line.lower()]
    return plain(" / ".join((errors or lines)[-TAIL_LINES:]))


def plain(text: str) -> str:
    """What a server wrote, as one line that drives no terminal."""
    return "".join(filter(str.isprintable, " ".join(text.split())))
