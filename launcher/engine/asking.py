"""Asking an engine something: bounded in time and bytes, and nothing that it started is left behind. I/O."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from launcher.base.environment import passed_on
from launcher.base.processes import ProcessScope, heard, wait_for_end

SAID_MAX = 8 * 1024**2
"""Bytes of an answer; `--help` of today's builds has 100,000."""
AGAIN_S = 60.0
"""How long a question that got no answer is not asked again."""


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
        raise NoAnswerError(*why.args)
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
    scope, env = ProcessScope(), {**passed_on(os.environ), **env}
    said: dict[Any, bytearray] = defaultdict(bytearray)
    with scope, scope.start(words, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            for stream, data in heard(child, until):
                said[stream] += data
                if sum(map(len, said.values())) > SAID_MAX:
                    raise NoAnswerError(f"wrote more than {SAID_MAX // 1024**2} MiB")
            wait_for_end(child, until)
        except TimeoutError:
            raise NoAnswerError(f"did not answer in {timeout_s:g} s") from None
    return Said(child.returncode, *(said[stream].decode(errors="replace") for stream in (child.stdout, child.stderr)))
