"""One running process: started in a session of its own, watched, signalled, and never confused with another.

With `podman run` or `docker run` the process is only the client: when it is killed, its container keeps running, on our
port and without a state file. So the container is removed by name whenever its client has ended, and before any start.

Servers are meant to outlive a runtime that is killed (a model takes a minute to load; the next runtime adopts them), so
there is no PR_SET_PDEATHSIG: the state files find them again. Linux 5.3 or newer (pidfd).
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.base import procfs
from launcher.base.addresses import is_path
from launcher.base.cgroups import oom_kills
from launcher.base.environment import passed_on
from launcher.base.processes import signal_name
from launcher.base.unix_socket import remove_stale
from launcher.ir.fleet import ServerUnit, ServiceUnit
from launcher.supervise import logs
from launcher.supervise.identity import MARKER, ServerRecord, mismatch
from launcher.supervise.owner import Ending, Watcher

_LOG = logging.getLogger("launch.supervise")
_NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables that systemd sets for the runtime, not for its children."""
_CLEAR_ATTEMPTS = 50
_CLEAR_PAUSE_S = 0.02
_ENGINES = frozenset({"podman", "docker"})
_REMOVE_S = 20.0
_INSPECT_S = 5.0


@dataclass(eq=False)
class RunningProcess:
    """A process by pidfd: signals and the notice of its end cannot hit another process with the same pid.

    See `launcher.supervise.owner.OwnedProcess`. `popen` is None for a process that another runtime started (adopted):
    its exit code stays unknown. Of `record` the command, the log and the host are used.
    """

    record: ServerRecord
    pid: int
    pidfd: int
    popen: subprocess.Popen[bytes] | None = None
    members: tuple[procfs.ProcStat, ...] = ()
    """Of its session, as they were seen last."""
    address: None = None
    waits: Literal[False] = False
    _is_watched: bool = False
    _oom_kills: int = 0
    _removing: asyncio.Task[None] | None = None

    async def started(self) -> int:
        """See `OwnedProcess`; returns at once."""
        return self.pid

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` when it has ended; before, what it left is killed and its unix socket or container removed."""
        self._is_watched = True
        self._oom_kills = oom_kills()
        if self.popen is None:
            self.members = procfs.session_members(self.pid)
        asyncio.get_running_loop().add_reader(self.pidfd, self._ended, watcher)

    def terminate(self) -> None:
        """Send SIGTERM to the whole session, then SIGCONT, without which a stopped process could not react."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL to the whole session."""
        self._signal(signal.SIGKILL)

    def wait_gone(self, timeout_s: float) -> bool:
        """Block until the process has ended, at most `timeout_s`; returns whether it has.

        Then what is left in its session is killed. For use without an event loop, on adopted processes.
        """
        if self.pidfd >= 0:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if not poller.poll(timeout_s * 1000):
                return False
        for _ in range(_CLEAR_ATTEMPTS):
            if not [m for m in self.members if signal_exactly(m.pid, m.start_ticks, signal.SIGKILL)]:
                break
            time.sleep(_CLEAR_PAUSE_S)
        return True

    def release(self) -> None:
        """Stop watching; the process itself is left alone."""
        if self.pidfd >= 0:
            if self._is_watched:
                asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1

    async def log_mark(self) -> object:
        """The size of its log in bytes."""
        return logs.size_bytes(Path(self.record.log_file))

    def _ended(self, watcher: Watcher, attempts: int = _CLEAR_ATTEMPTS) -> None:
        """Kill what is left of its session, remove its container; report when both are done or take too long."""
        left = []
        with contextlib.suppress(OSError):  # no descriptor left: the end is reported all the same
            if self.pidfd >= 0:
                self.release()
                if self.popen is not None:
                    # Not reaped yet, so the pid, and with it the session, cannot be anybody else's.
                    self.members = procfs.session_members(self.pid)
            left = [m for m in self.members if signal_exactly(m.pid, m.start_ticks, signal.SIGKILL)]
        loop = asyncio.get_running_loop()
        if left and attempts > 0:
            loop.call_later(_CLEAR_PAUSE_S, self._ended, watcher, attempts - 1)
            return
        record = self.record
        if engine_and_name(record.argv) is not None and self._removing is None:
            watcher.on_end()
            self._removing = loop.create_task(asyncio.to_thread(remove_container, record.argv))
            self._removing.add_done_callback(lambda _: self._ended(watcher, 0))
            return
        if is_path(record.host):
            remove_stale(record.host)
        code = None if self.popen is None else self.popen.wait()
        killed = oom_kills() > self._oom_kills
        watcher.on_exit(Ending(code=code, tail=logs.tail(Path(record.log_file)), oom_killed=killed))

    def _signal(self, number: signal.Signals) -> None:
        """Send `number` to the process, then to the others of its session, while that is certainly its own."""
        if self.pidfd < 0:
            return
        if self.popen is not None:
            _kill_group(self.pid, number)
            return
        self.members = procfs.session_members(self.pid)
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return
        for member in self.members:
            if member.pid != self.pid:
                signal_exactly(member.pid, member.start_ticks, number)


def inherited() -> dict[Literal["server", "service"], dict[str, str]]:
    """Environment variables that a process inherits from us, by kind.

    A llama-server inherits a short list (`launcher.base.environment`); a service, which is any program, all but the
    variables that systemd sets for the runtime.
    """
    ours = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {"server": passed_on(ours), "service": ours}


def spawn(
    unit: ServerUnit | ServiceUnit, record: ServerRecord, env: Mapping[str, str], state_file: Path
) -> RunningProcess:
    """Start `unit` in its own session, output appended to the log of `record`, input from nowhere.

    The environment is `env` with the unit's own over it, and the state file's path as a marker. Its OOM score is ours
    where it sets none, else set as far as the kernel lets us. Raises OSError when it cannot be executed.
    """
    output = logs.open_log(Path(record.log_file))
    try:
        child = subprocess.Popen(
            unit.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**env, **unit.env, MARKER: str(state_file)},
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
    if unit.oom_score_adjust:
        _adjust_oom_score(child.pid, unit.oom_score_adjust)
    return RunningProcess(record, child.pid, pidfd, child)


def _adjust_oom_score(pid: int, adjust: int) -> None:
    """Make the OOM killer prefer or spare `pid`; lowering its score needs CAP_SYS_RESOURCE.

    Without it the server keeps the runtime's score, which systemd or the shell has set.
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
    """Warn once, not at every start: all but root are refused a lower score."""
    _LOG.warning("servers are not protected from the OOM killer: oom_score_adjust %d needs CAP_SYS_RESOURCE", adjust)


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
    return RunningProcess(record, record.pid, pidfd)


def signal_exactly(pid: int, start_ticks: int, number: signal.Signals) -> bool:
    """Send `number` to `pid` if it still is the process started at `start_ticks`. Returns whether it was sent."""
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
    """The exit in words: `exited with code 1`, `killed by SIGKILL`."""
    if code is None:
        return "ended (exit code unknown: started by an earlier runtime)"
    return f"exited with code {code}" if code >= 0 else f"killed by {signal_name(-code)}"


def _kill_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group that `pid`, our unreaped child, leads."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def remove_container(argv: tuple[str, ...]) -> None:
    """Remove the container that the command `argv` runs, if there is one; nothing for any other command. Blocks."""
    found = engine_and_name(argv)
    if found is not None:
        engine, name = found
        # podman's would send SIGTERM first, and wait 10 s: its client has passed ours on, and had its time
        at_once = ("--time=0",) if Path(engine).name == "podman" else ()
        _ask_engine((engine, "rm", "--force", *at_once, name), _REMOVE_S)


def main_process(argv: tuple[str, ...]) -> int | None:
    """Pid of the first process in the container that `argv` runs; None: none, or unknown. Blocks."""
    found = engine_and_name(argv)
    if found is None:
        return None
    engine, name = found
    answer = _ask_engine((engine, "inspect", "--format", "{{.State.Pid}}", name), _INSPECT_S).strip()
    return int(answer) if answer.isdecimal() and int(answer) > 1 else None


def engine_and_name(argv: tuple[str, ...]) -> tuple[str, str] | None:
    """Engine and container name of `podman run … --name=NAME … image`; None for another command."""
    if len(argv) < 2 or Path(argv[0]).name not in _ENGINES or argv[1] != "run":
        return None
    name = next((word.removeprefix("--name=") for word in argv[2:] if word.startswith("--name=")), "")
    return (argv[0], name) if name else None


def _ask_engine(argv: tuple[str, ...], timeout_s: float) -> str:
    """Output of a container engine's command; "" when the engine is missing, fails, or takes too long."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    return ""
