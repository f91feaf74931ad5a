"""Access to systemd: a few verbs of `systemctl`, the state of units, and their journal. I/O.

Parsing is pure. Every call is a process of its own: systemd checks rights (polkit) for each, and no D-Bus client is
needed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterable, Sequence

import msgspec

_LOG = logging.getLogger("launch.supervise")
_PASSED_ON = ("PATH", "HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""The environment variables that it gets: not our library path, and not the socket on which a unit notifies systemd."""
_PROPERTIES = (
    *("Id", "LoadState", "ActiveState", "SubState", "Result", "MainPID", "ExecMainCode", "ExecMainStatus", "NRestarts"),
    *("ExecMainStartTimestampMonotonic", "ControlGroup"),
)
_CLD_EXITED = 1
_RUNNING = frozenset({"active", "activating", "reloading"})
_LOOKS = 5
_LOOK_PAUSE_S = 0.05


class UnitState(msgspec.Struct, frozen=True, kw_only=True):
    """State of a service unit. `pid` 0: no main process. `code`: exit code of the last one, negative for a signal."""

    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    result: str = ""
    pid: int = 0
    code: int | None = None
    restarts: int = 0
    started_s: float = 0.0
    """Seconds since boot (CLOCK_MONOTONIC) at which the main process was started."""

    @property
    def runs(self) -> bool:
        """Whether its main process lives and should."""
        return self.active in _RUNNING and self.pid > 0

    @property
    def is_over(self) -> bool:
        """Whether no process of it is left, until it is started again (also by systemd itself, after a pause)."""
        return self.active in ("inactive", "failed") or self.sub.startswith("auto-restart")

    @property
    def will_return(self) -> bool:
        """Whether systemd is about to start it again by itself."""
        return self.sub.startswith("auto-restart")


def read_states(text: str) -> dict[str, UnitState]:
    """Unit states by name, from the output of `systemctl show`. Pure."""
    found = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in values:
            found[values["Id"]] = _state(values)
    return found


def _state(values: dict[str, str]) -> UnitState:
    code, status = _number(values.get("ExecMainCode")), _number(values.get("ExecMainStatus"))
    return UnitState(
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        sub=values.get("SubState", ""),
        result=values.get("Result", ""),
        pid=_number(values.get("MainPID")),
        code=None if not code else status if code == _CLD_EXITED else -status,
        restarts=_number(values.get("NRestarts")),
        started_s=_number(values.get("ExecMainStartTimestampMonotonic")) / 1e6,
    )


def _number(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,18}", text) else 0


class Systemctl:
    """The system's service manager, or with `user` the one of our own user."""

    def __init__(self, *, user: bool) -> None:
        self._scope = ("--user",) if user else ()
        self._unit_field = "_SYSTEMD_USER_UNIT" if user else "_SYSTEMD_UNIT"

    async def do(self, verb: str, *units: str) -> str:
        """Run `systemctl VERB UNITS` and wait; returns its error message, "" on success."""
        code, _, errors = await _run("systemctl", *self._scope, "--no-ask-password", *verb.split(), *units)
        return "" if code == 0 else errors.strip() or f"systemctl {verb} ended with {code}"

    async def show(self, units: Iterable[str]) -> dict[str, UnitState]:
        """The state of each of `units`; an unknown one is `not-found`."""
        names = tuple(units)
        if not names:
            return {}
        words = ("systemctl", *self._scope, "show", f"--property={','.join(_PROPERTIES)}", *names)
        code, text, errors = await _run(*words)
        if code:
            _LOG.error("systemd does not answer: %s", errors.strip() or f"systemctl show ended with {code}")
        found = read_states(text)
        return {name: found.get(name, UnitState()) for name in names}

    async def tail(self, unit: str, pid: int, since: float, lines: int) -> tuple[str, ...]:
        """The last log lines of process `pid` of `unit`; the journal may get them a little after its end."""
        words: tuple[str, ...] | None = None
        for _ in range(_LOOKS):
            before, words = words, await self.words(unit, pid, since, lines)
            if words == before:
                break
            await asyncio.sleep(_LOOK_PAUSE_S)
        return words or ()

    async def words(self, unit: str, pid: int, since: float, lines: int) -> tuple[str, ...]:
        """The last log lines of process `pid` of `unit` that the journal has; `since`: Unix time of its start.

        `pid` 0: any process of the unit. Not limited to this boot: in a container the kernel and the journal may have
        different boot ids.
        """
        match = (f"{self._unit_field}={unit}", *((f"_PID={pid}",) if pid else ()), f"--since=@{int(since)}")
        argv = ("journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", *match)
        code, text, errors = await _run(*argv)
        if code:
            _LOG.warning(
                "the journal of %s cannot be read: %s", unit, errors.strip() or f"journalctl ended with {code}"
            )
        return tuple(text.splitlines())


async def _run(*argv: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a program; 127 if it cannot be started. Cancelling the caller kills it."""
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )
    except OSError as error:
        return 127, "", f"cannot start {argv[0]}: {error}"
    try:
        out, err = await child.communicate()
    except asyncio.CancelledError:
        if child.returncode is None:
            child.kill()
        raise
    return child.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


def unit_names(prefix: str, server: str, levels: int) -> Sequence[str]:
    """The unit of `server` as planned, then one for each of its `levels` fallbacks. Pure."""
    return (f"{prefix}-{server}.service", *(f"{prefix}-{server}.rung{n}.service" for n in range(1, levels + 1)))
