"""Run programs that answer a question; none outlives the question, however that ends. I/O."""

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
"""From prctl(2)."""
MARK = "LAUNCH_ASKED_BY"
"""Environment variable of such a program, inherited by all that it starts: our process, and the number of the
question."""
_DRAIN_S = 0.2
"""Seconds for which pipes are still read after their program has ended: another process may hold them open."""
_LOOK_S = 0.05
_ROUNDS = 20
_COUNT = itertools.count()


class ScopeEndedError(Exception):
    """The scope's block has ended: no program is started any more."""


class ProcessScope:
    """The programs that run now, in any thread. When the `with` block ends, all are killed and none can start.

    A thread that reads from one of them (`read_pipes`) then returns, because the program has ended: Ctrl-C waits for no
    timeout.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], str] = {}
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all running programs (SIGKILL)."""
        with self._lock:
            self._ended = True
            for child, mark in self._running.items():
                kill_all(child, mark)

    @contextlib.contextmanager
    def start(self, words: Sequence[str], env: Mapping[str, str], **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run `words`; after the block the program and all that it started, in whatever session, are killed.

        The kernel also kills the program when this thread dies; what it started is then left to `kill_left_behind`.
        `popen`: further arguments of `subprocess.Popen`. Raises OSError, ScopeEndedError.
        """
        if self._ended:
            raise ScopeEndedError
        mark = f"{_own_identity()}/{next(_COUNT)}"
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


def read_pipes(child: subprocess.Popen[bytes], until: float) -> Iterator[tuple[Any, bytes]]:
    """Yield (pipe, bytes) as a program writes, until its pipes are closed or it has ended. Raises TimeoutError.

    `until`: deadline, as `time.monotonic()`.
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
            if not ready and until > now + _DRAIN_S and has_ended(child):
                until = now + _DRAIN_S
                with contextlib.suppress(TimeoutError):
                    yield from read_pipes(child, until)
                return


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, for a program that is about to listen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def _dying_with_us() -> Callable[[], object]:
    """What a child calls before it becomes another program: SIGKILL to it when the thread that started it dies."""
    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGKILL)


def has_ended(child: subprocess.Popen[Any]) -> bool:
    """Whether `child` has ended; it is not reaped, so that its process group can still be named."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def wait_for_end(child: subprocess.Popen[Any], until: float) -> None:
    """Wait until `child` has ended, without reaping it. `until`: as `time.monotonic()`. Raises TimeoutError."""
    while not has_ended(child):
        if monotonic() > until:
            raise TimeoutError
        sleep(_LOOK_S / 5)


def signal_name(number: int) -> str:
    """The name of a signal, such as `SIGILL`; `signal NUMBER` if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def kill_all(child: subprocess.Popen[Any], mark: str) -> None:
    """Kill (SIGKILL) the child's process group, and all processes that carry `mark`, until none is left."""
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
    """Kill (SIGKILL) programs that were started by a command of ours that was itself killed.

    Only in our own pid namespace: in a container's, the same pid means another process.
    """
    namespace = _namespace()
    for pid, mark in _marked():
        asker = mark.partition("/")[0]
        if asker.startswith(f"{namespace}.") and not _is_alive(asker.removeprefix(f"{namespace}.")):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _marked() -> Iterator[tuple[int, str]]:
    """(pid, mark) of every process that carries MARK and may be read; a process that is ending carries nothing."""
    for pid in procfs.pids():
        mark = procfs.environment(pid, MARK)
        if mark is not None:
            yield pid, mark


def _own_identity() -> str:
    """Our pid namespace, our pid, and our start in clock ticks since boot, separated by dots."""
    return f"{_namespace()}.{os.getpid()}.{_start_ticks(os.getpid())}"


def _namespace() -> str:
    """The kernel's name of our pid namespace: `pid:[4026531836]`."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    except OSError:
        return "pid"


def _is_alive(process: str) -> bool:
    """Whether the process that `_own_identity` named, without its namespace, still exists."""
    pid, _, began = process.partition(".")
    return pid.isdigit() and _start_ticks(int(pid)) == began


def _start_ticks(pid: int) -> str:
    """Start of a process in clock ticks since boot; "" if there is none."""
    stat = procfs.proc_stat(pid)
    return "" if stat is None else str(stat.start_ticks)
