"""Programs that are started to be asked something: none outlives the asking, however that ends. I/O."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from time import monotonic, sleep
from typing import Any, Self

from launcher.base import procfs

PR_SET_PDEATHSIG = 1
"""prctl(2)."""
MARK = "LAUNCH_ASKED_BY"
"""What a program and all that it starts carry in their environment: our process, and which question it was."""
_LAST_WORDS_S = 0.2
"""How long its pipes are still read once a program has ended: somebody else may hold them open."""
_LOOK_S = 0.05
_ROUNDS = 20
_COUNT = itertools.count()


class ScopeEndedError(Exception):
    """Nothing is started any more: the block of its scope is over."""


class ProcessScope:
    """Programs that run now, in any thread. After the block none runs and none starts.

    A thread that reads one of them (`heard`) goes on then, because it has ended; so Ctrl-C waits for nobody's timeout.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], str] = {}
        self._ended = False

    def __enter__(self) -> Self:
        """The scope itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """SIGKILL to all that runs."""
        with self._lock:
            self._ended = True
            for child, mark in self._running.items():
                kill_all(child, mark)

    @contextlib.contextmanager
    def start(self, words: Sequence[str], env: Mapping[str, str], **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run `words`; after the block it is killed with all that it started, in whatever session that is.

        The kernel kills it, too, when this thread dies without a word; what it started is left to `kill_left_behind`.
        `popen`: what `subprocess.Popen` takes beside. Raises OSError, ScopeEndedError.
        """
        if self._ended:
            raise ScopeEndedError
        mark = f"{_ourselves()}/{next(_COUNT)}"
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_dying_with_us(),  # noqa: PLW1509 - one call of a libc that is loaded already; takes no lock
            env={**env, MARK: mark},
            **popen,
        )
        with child:
            with self._lock:
                self._running[child] = mark
                ended = self._ended
            try:
                if ended:
                    raise ScopeEndedError
                yield child
            finally:
                with self._lock:
                    kill_all(child, mark)
                    del self._running[child]


def heard(child: subprocess.Popen[bytes], until: float) -> Iterator[tuple[Any, bytes]]:
    """Each piece that it writes to its pipes, with the pipe, until they end, or it has ended. Raises TimeoutError.

    `until`: `time.monotonic()`.
    """
    with selectors.DefaultSelector() as selector:
        for stream in filter(None, (child.stdout, child.stderr)):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(_LOOK_S)
            for key, _ in ready:
                if data := os.read(key.fd, 65536):
                    yield key.fileobj, data
                else:
                    selector.unregister(key.fileobj)
            now = monotonic()
            if now > until:
                raise TimeoutError
            if not ready and until > now + _LAST_WORDS_S and has_ended(child):
                until = now + _LAST_WORDS_S
                with contextlib.suppress(TimeoutError):
                    yield from heard(child, until)
                return


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now, for a program that is about to listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def _dying_with_us() -> Callable[[], object]:
    """What a child calls before it becomes another program: SIGKILL to it when the thread that started it dies."""
    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGKILL)


def has_ended(child: subprocess.Popen[Any]) -> bool:
    """Whether it has; it is not reaped, so that its group can still be named."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def wait_for_end(child: subprocess.Popen[Any], until: float) -> None:
    """Until it has ended, not reaped. `until`: `time.monotonic()`. Raises TimeoutError."""
    while not has_ended(child):
        if monotonic() > until:
            raise TimeoutError
        sleep(_LOOK_S / 5)


def signal_name(number: int) -> str:
    """`SIGILL`; of a signal without a name of its own, its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def kill_all(child: subprocess.Popen[Any], mark: str) -> None:
    """SIGKILL to what the child started, by its group and by `mark`, until there is nothing more."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for _ in range(_ROUNDS):
        left = [pid for pid, found in _marked() if found == mark and pid != child.pid]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def kill_left_behind() -> None:
    """SIGKILL to what the programs started that a command asked which was killed itself.

    Only of our own pid namespace: in a container's a pid means another process.
    """
    namespace = _namespace()
    for pid, mark in _marked():
        asker = mark.partition("/")[0]
        if asker.startswith(f"{namespace}.") and not _is_alive(asker.removeprefix(f"{namespace}.")):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _marked() -> Iterator[tuple[int, str]]:
    """Processes that carry a mark, and may be looked at; those that are ending carry nothing any more."""
    for pid in procfs.pids():
        mark = procfs.environment(pid, MARK)
        if mark is not None:
            yield pid, mark


def _ourselves() -> str:
    """Our pid namespace, our pid, and when we began, in clock ticks since boot."""
    return f"{_namespace()}.{os.getpid()}.{_began(os.getpid())}"


def _namespace() -> str:
    """What the kernel calls our pid namespace: `pid:[4026531836]`."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    except OSError:
        return "pid"


def _is_alive(process: str) -> bool:
    """Whether the process that `_ourselves` named, without its namespace, still is."""
    pid, _, began = process.partition(".")
    return pid.isdigit() and _began(int(pid)) == began


def _began(pid: int) -> str:
    """Clock ticks since boot; nothing where there is no such process."""
    stat = procfs.proc_stat(pid)
    return "" if stat is None else str(stat.start_ticks)
