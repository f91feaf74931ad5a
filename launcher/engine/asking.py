"""Asking an engine something: bounded in time and bytes, and nothing that it started is left behind. I/O."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any, NamedTuple

from launcher.base.environment import passed_on
from launcher.base.processes import ProcessScope, has_ended

SAID_MAX = 8 * 1024**2
"""Bytes of an answer; `--help` of today's builds has 100,000."""
AGAIN_S = 60.0
_LOOK_S = 0.01


class Said(NamedTuple):
    """What an engine wrote, and its exit status (a signal < 0)."""

    status: int
    out: str
    err: str


class NoAnswerError(Exception):
    """It was ended before it had answered; the text says why: `did not answer in 20 s`, `wrote more than 8 MiB`."""


_unanswered: dict[tuple[object, ...], tuple[float, NoAnswerError]] = {}
"""Question → when it was given up, and why."""


def ask(words: Sequence[str], env: Mapping[str, str] | None, *, timeout_s: float) -> Said:
    """Run `words` to its end; `env` is added to what servers inherit.

    What got no answer is not asked again for AGAIN_S, as long as the program's file is the same. Raises OSError (it
    cannot run), NoAnswerError.
    """
    question = (*words, *sorted((env or {}).items()), *_file(words[0]))
    given_up, why = _unanswered.get(question, (0.0, None))
    if why is not None and monotonic() - given_up < AGAIN_S:
        raise why
    try:
        return _run(words, env or {}, timeout_s)
    except NoAnswerError as error:
        _unanswered[question] = monotonic(), error
        raise


def _file(program: str) -> tuple[int, ...]:
    """What tells a program's file from another in its place; nothing for one that cannot be looked at."""
    try:
        facts = Path(shutil.which(program) or program).stat()
    except OSError:
        return ()
    return facts.st_ino, facts.st_mtime_ns


def _run(words: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Said:
    """See `ask`."""
    until = monotonic() + timeout_s
    env = {**passed_on(os.environ), **env}
    scope = ProcessScope()
    with scope, scope.start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as child:
        try:
            out, err = _read(child.stdout, child.stderr, until)
            _wait(child, until)
        except TimeoutError:
            raise NoAnswerError(f"did not answer in {timeout_s:g} s") from None
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
