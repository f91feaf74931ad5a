"""Run a llama-server binary for an answer after which it ends: its help, its devices. I/O: starts it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from launcher.base.environment import passed_on
from launcher.base.processes import ProcessScope, read_pipes, signal_name, wait_for_end
from launcher.ir.catalog import SeenDevice
from launcher.sizes import MIB

ANSWER_MAX_BYTES = 8 * 1024**2
"""Bytes of an answer at most; `--help` of today's builds has 100,000."""
RETRY_AFTER_S = 60.0
"""Seconds for which a question that got no answer is not asked again."""


class BinaryAnswer(NamedTuple):
    """Output of an engine, and its exit status (negative: a signal)."""

    status: int
    out: str
    err: str


class NoAnswerError(Exception):
    """The engine was ended before it answered; the message says why.

    Messages: `did not answer in 20 s`, `wrote more than 8 MiB`.
    """


_unanswered: dict[tuple[object, ...], tuple[float, NoAnswerError]] = {}
"""Question → when it was given up (monotonic clock), and why."""


def ask(words: Sequence[str], env: Mapping[str, str] | None, *, timeout_s: float) -> BinaryAnswer:
    """Run `words` until the program ends; `env` is added to what servers inherit.

    A question that got no answer is not asked again for AGAIN_S, as long as the program's file is the same. Raises
    OSError (it cannot run), NoAnswerError.
    """
    question = (*words, *sorted((env or {}).items()), *_file(words[0]))
    given_up, why = _unanswered.get(question, (0.0, None))
    if why is not None and monotonic() - given_up < RETRY_AFTER_S:
        raise NoAnswerError(*why.args)
    try:
        return _run(words, env or {}, timeout_s)
    except NoAnswerError as error:
        _unanswered[question] = monotonic(), error
        raise
    except ValueError as error:  # a NUL
        raise OSError(errno.EINVAL, str(error)) from None


def _file(program: str) -> tuple[int, ...]:
    """Inode and modification time (ns) of a program's file, to notice another in its place; () if it cannot be read."""
    try:
        facts = Path(shutil.which(program) or program).stat()
    except OSError:
        return ()
    return facts.st_ino, facts.st_mtime_ns


def _run(words: Sequence[str], env: Mapping[str, str], timeout_s: float) -> BinaryAnswer:
    until = monotonic() + timeout_s
    scope, env = ProcessScope(), {**passed_on(os.environ), **env}
    heard_from: dict[Any, bytearray] = defaultdict(bytearray)
    with scope, scope.start(words, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            for stream, data in read_pipes(child, until):
                heard_from[stream] += data
                if sum(map(len, heard_from.values())) > ANSWER_MAX_BYTES:
                    raise NoAnswerError(f"wrote more than {ANSWER_MAX_BYTES // 1024**2} MiB")
            wait_for_end(child, until)
        except TimeoutError:
            raise NoAnswerError(f"did not answer in {timeout_s:g} s") from None
    return BinaryAnswer(
        child.returncode, *(heard_from[stream].decode(errors="replace") for stream in (child.stdout, child.stderr))
    )


_DEVICE = re.compile(r"^  (\w+): (.*?)(?: \((\d{1,9}) MiB, (\d{1,9}) MiB free\))?\s*$", re.MULTILINE)
LIST_TIMEOUT_S = 30.0
"""Seconds; a CUDA build opens every GPU first."""


def list_devices(binary: Path, *, rpc: str = "", env: Mapping[str, str] | None = None) -> tuple[SeenDevice, ...] | None:
    """The devices that `binary` sees, with those of the RPC servers `rpc` (`host:port,…`).

    None if the build does not say: it fails, or is too old for the flag. Raises NoAnswerError, also if a signal ended
    it.
    """
    words = [str(binary), *(("--rpc", rpc) if rpc else ()), "--list-devices"]
    try:
        status, listing, _ = ask(words, env, timeout_s=LIST_TIMEOUT_S)
    except OSError:
        return None
    if status < 0:
        raise NoAnswerError(f"was killed by signal {-status} ({signal_name(-status)})")
    if status or "Available devices:" not in listing:
        return None
    found = _DEVICE.findall(listing.partition("Available devices:")[2])
    return tuple(
        SeenDevice(name, _printable(model), int(total or 0) * MIB, int(free or 0) * MIB)
        for name, model, total, free in found
    )


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))
