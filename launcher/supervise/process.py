"""One running process: started in a session of its own, watched, signalled, and known to be the one that was meant.

Servers are meant to outlive a runtime that is killed (a model takes a minute to load; the next runtime adopts
them), so there is no PR_SET_PDEATHSIG: the state files find them again. Linux 5.3 or newer (pidfd).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypedDict

from launcher.base.environment import passed_on
from launcher.supervise import logs, procfs
from launcher.supervise.identity import MARKER, ServerRecord, mismatch

_LOG = logging.getLogger("launch.supervise")
_NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
"""systemd's messages to us, not to our children."""
_CLEAR_ATTEMPTS = 50
_CLEAR_PAUSE_S = 0.02


class RunningProcess:
    """A process by pidfd: signals and the notice of its end cannot hit another process with the same pid."""

    def __init__(self, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        """`child` is None for a process that another runtime started (adopted): its exit code stays unknown."""
        self.pid = pid
        self._pidfd = pidfd
        self._child = child
        self._loop: asyncio.AbstractEventLoop | None = None
        self._members: tuple[procfs.ProcStat, ...] = ()

    @property
    def adopted(self) -> bool:
        """Whether another runtime started it."""
        return self._child is None

    def watch(self, on_exit: Callable[[int | None], None]) -> None:
        """Call `on_exit(code)` in the running loop as soon as the process ends.

        `code` is negative for a signal and None when unknown. What it left in its session is killed before that.
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        if self.adopted:
            self._members = procfs.session_members(self.pid)
        loop.add_reader(self._pidfd, lambda: self._ended(on_exit))

    def terminate(self) -> None:
        """SIGTERM to the whole session, and SIGCONT, without which a stopped process never gets to act on it."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the whole session."""
        self._signal(signal.SIGKILL)

    def wait_gone(self, timeout_s: float) -> bool:
        """Block until the process ended, at most `timeout_s`; then what it left in its session is killed too.

        For use without an event loop, on adopted processes.
        """
        if self._pidfd >= 0:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if not poller.poll(timeout_s * 1000):
                return False
        for _ in range(_CLEAR_ATTEMPTS):
            left = [m for m in self._members if signal_exactly(m.pid, m.start_ticks, signal.SIGKILL)]
            if not left:
                break
            time.sleep(_CLEAR_PAUSE_S)
        return True

    def release(self) -> None:
        """Stop watching; the process itself is left alone."""
        if self._pidfd >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self, on_exit: Callable[[int | None], None]) -> None:
        """Kill what is left of the session, and report when that is gone too, or after a second."""
        self.release()
        with contextlib.suppress(OSError):  # no descriptor left: the end is reported all the same
            if self._child is not None:
                # Not reaped yet, so the pid, and with it the session, cannot be anybody else's.
                self._members = procfs.session_members(self.pid)
        self._clear(on_exit, attempts=_CLEAR_ATTEMPTS)

    def _clear(self, on_exit: Callable[[int | None], None], attempts: int) -> None:
        """One look at who is left."""
        left = []
        with contextlib.suppress(OSError):
            left = [m for m in self._members if signal_exactly(m.pid, m.start_ticks, signal.SIGKILL)]
        if left and attempts > 0:
            asyncio.get_running_loop().call_later(_CLEAR_PAUSE_S, self._clear, on_exit, attempts - 1)
            return
        on_exit(None if self._child is None else self._child.wait())

    def _signal(self, number: signal.Signals) -> None:
        """Send `number` to the process, then to the others of its session, while it is certain whose that is."""
        if self._pidfd < 0:
            return
        if self._child is not None:
            _kill_group(self.pid, number)
            return
        self._members = procfs.session_members(self.pid)
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        for member in self._members:
            if member.pid != self.pid:
                signal_exactly(member.pid, member.start_ticks, number)


def environment(kind: Literal["server", "service"], own: Mapping[str, str]) -> dict[str, str]:
    """What a process gets: `own`, its config's, over what it inherits of ours.

    A llama-server inherits a short list (`launcher.base.environment`); a service, any program, all that is not
    systemd's word to us.
    """
    ours = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**(passed_on(ours) if kind == "server" else ours), **own}


def spawn(
    argv: tuple[str, ...], env: Mapping[str, str], log: Path, state_file: Path, oom_score_adjust: int = 0
) -> RunningProcess:
    """Start `argv` in its own session, output appended to `log`, input from nowhere.

    The environment is `env`, with the state file's path as a marker. `oom_score_adjust` 0 leaves our
    own; else it is set, as far as the kernel lets us. Raises OSError when it cannot be executed.
    """
    output = logs.open_log(log)
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**env, MARKER: str(state_file)},
            start_new_session=True,
        )
    except ValueError as error:  # a NUL in a manifest that somebody wrote by hand
        raise OSError(errno.EINVAL, str(error)) from None
    finally:
        os.close(output)
    try:
        pidfd = os.pidfd_open(child.pid)
    except OSError:  # no descriptor left: what we cannot watch must not run
        _kill_group(child.pid, signal.SIGKILL)
        child.wait()
        raise
    if oom_score_adjust:
        _adjust_oom_score(child.pid, oom_score_adjust)
    return RunningProcess(child.pid, pidfd, child)


def _adjust_oom_score(pid: int, adjust: int) -> None:
    """Have the kernel prefer or spare `pid` when memory runs out; lowering needs CAP_SYS_RESOURCE.

    Without it the server keeps our own score, which is what systemd or the shell gave us.
    """
    path = Path(f"/proc/{pid}/oom_score_adj")
    try:
        path.write_text(str(max(-1000, min(1000, adjust))))
    except PermissionError:
        _not_allowed(adjust)
    except OSError:
        return  # it ended already: whoever watches it will say so


@functools.cache
def _not_allowed(adjust: int) -> None:
    """Say so once, not at every start: anybody but root is refused a lower score."""
    _LOG.warning("servers keep our own OOM score: oom_score_adjust %d needs root (CAP_SYS_RESOURCE)", adjust)


def adopt(record: ServerRecord) -> RunningProcess | None:
    """The living process of `record`, or None when it is gone or another one has its pid."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except (ProcessLookupError, OSError, OverflowError):
        return None
    # Checked after opening: from here on the descriptor means this process and no later one.
    if mismatch(record) is not None:
        os.close(pidfd)
        return None
    return RunningProcess(record.pid, pidfd, None)


def signal_exactly(pid: int, start_ticks: int, number: signal.Signals) -> bool:
    """Send `number` to `pid` if it still is the process that started at `start_ticks`; whether it was sent."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        stat = procfs.proc_stat(pid)
        if stat is None or stat.start_ticks != start_ticks or stat.state == "Z":
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def describe_exit(code: int | None) -> str:
    """`exited with code 1`, `killed by SIGKILL`, as people say it."""
    if code is None:
        return "ended (exit code unknown: started by an earlier runtime)"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _kill_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group that `pid`, our unreaped child, leads."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


class Birth(TypedDict):
    """What identifies a process besides its pid; keys as in `ServerRecord`."""

    pid: int
    start_ticks: int
    boot_id: str


def birth(pid: int) -> Birth:
    """Identity of our own, not yet reaped child `pid`."""
    stat = procfs.proc_stat(pid)
    return Birth(pid=pid, start_ticks=stat.start_ticks if stat else 0, boot_id=procfs.boot_id())
