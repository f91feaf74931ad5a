"""Programs that are started to be asked something: none outlives the asking, however that ends. I/O."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Self

PR_SET_PDEATHSIG = 1
"""prctl(2)."""


class ScopeEndedError(Exception):
    """Nothing is started any more: the block of its scope is over."""


class ProcessScope:
    """Programs that run now, each in a session of its own, in any thread. After the block none runs and none starts.

    A thread that is blocked on one of them goes on, because it has ended; so Ctrl-C waits for nobody's timeout.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[Any]] = set()
        self._ended = False

    def __enter__(self) -> Self:
        """The scope itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """SIGKILL to all that runs."""
        with self._lock:
            self._ended = True
            for child in self._running:
                kill_session(child)

    @contextlib.contextmanager
    def start(self, words: Sequence[str], **popen: Any) -> Iterator[subprocess.Popen[Any]]:
        """Run `words`; after the block its session is killed. `popen`: what `subprocess.Popen` takes.

        The kernel kills it, too, when this thread dies without a word. Raises OSError, ScopeEndedError.
        """
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=dying_with_us(),  # noqa: PLW1509 - one call of a libc that is loaded already; takes no lock
            **popen,
        )
        with child:
            with self._lock:
                self._running.add(child)
                ended = self._ended
            try:
                if ended:
                    raise ScopeEndedError
                yield child
            finally:
                with self._lock:
                    kill_session(child)
                    self._running.discard(child)


@cache
def dying_with_us() -> Callable[[], None]:
    """What a child calls before it becomes another program: SIGKILL to it when the thread that started it dies."""
    prctl = ctypes.CDLL(None).prctl

    def die_with_us() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return die_with_us


def has_ended(child: subprocess.Popen[Any], *, wait: bool = False) -> bool:
    """Whether it has; it is not reaped, so that its session can still be named."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)) is not None


def kill_session(child: subprocess.Popen[Any]) -> None:
    """SIGKILL to all that the child started, as long as it is not reaped; a wrapper leaves nothing behind."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
