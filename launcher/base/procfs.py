"""Read /proc: processes, with enough to tell whether a pid still means the same process, and RAM. I/O."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import msgspec

_PROC = Path("/proc")
_MEMINFO = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)


class ProcStat(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of /proc/PID/stat.

    `start_ticks` counts clock ticks since boot and never changes; `state` Z is a zombie: dead, not yet reaped.
    """

    pid: int
    state: str
    ppid: int
    session: int
    start_ticks: int
    rss_bytes: int


def read(path: Path) -> str | None:
    """Text of a pseudo-file; None if it is missing or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


@functools.cache
def boot_id() -> str:
    """The kernel's id of this boot: pids and start ticks mean nothing across boots."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def proc_stat(pid: int) -> ProcStat | None:
    """/proc/PID/stat of `pid` now; None if there is no such process, or we may not read it."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The name is in parentheses and may hold anything, parentheses too.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcStat(
        pid=pid,
        state=fields[0],
        ppid=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        rss_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


class Birth(TypedDict):
    """Identity of a process: no other process has the same three values."""

    pid: int
    start_ticks: int
    boot_id: str


def birth(pid: int) -> Birth:
    """Identity of `pid`: our own process, or a child that was not yet reaped."""
    stat = proc_stat(pid)
    return Birth(pid=pid, start_ticks=stat.start_ticks if stat else 0, boot_id=boot_id())


def read_bytes(pid: int) -> int:
    """Bytes that `pid` has read with read() and the like since its start; 0 if it is gone or another user's."""
    text = read(_PROC / str(pid) / "io") or ""
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("rchar:")), 0)


def cmdline(pid: int) -> tuple[str, ...]:
    """The argv of `pid` now; () if it is gone, a zombie, or we may not read it."""
    raw = _read(pid, "cmdline")
    return tuple(os.fsdecode(part) for part in raw.removesuffix(b"\0").split(b"\0")) if raw else ()


def environment(pid: int, name: str) -> str | None:
    """Value of `name` in the environment that `pid` was started with; None if unset or we may not read it."""
    raw, prefix = _read(pid, "environ"), os.fsencode(name) + b"="
    if prefix not in raw:
        return None
    return next((os.fsdecode(v.removeprefix(prefix)) for v in raw.split(b"\0") if v.startswith(prefix)), None)


def _read(pid: int, name: str) -> bytes:
    """A file of /proc/PID; empty if the process is gone or we may not read it."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123 - asked of every process; a Path takes longer
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def open_files(pid: int) -> frozenset[str]:
    """What `pid` has open, as /proc names it; empty if we may not look."""
    directory, found = f"/proc/{pid}/fd", []
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):  # noqa: PTH208 - done for every process; Path objects double its time
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"{directory}/{entry}"))  # noqa: PTH115 - as above
    return frozenset(found)


def pids() -> Iterator[int]:
    """The pids of all processes now."""
    for entry in os.listdir(_PROC):  # noqa: PTH208 - a scan of all processes; Path objects double its time
        if entry.isdecimal():
            yield int(entry)


def session_members(session: int) -> tuple[ProcStat, ...]:
    """Processes of `session`, zombies left out; a server's own session has the server and what it forked."""
    stats = (proc_stat(pid) for pid in pids())
    return tuple(s for s in stats if s is not None and s.session == session and s.state != "Z")


def is_suspended(pid: int) -> bool:
    """Whether `pid` is stopped by a signal, or by a debugger."""
    stat = proc_stat(pid)
    return stat is not None and stat.state in ("T", "t")


def memory_bytes(pid: int) -> dict[str, int]:
    """Memory of `pid` in bytes per device: `ram`, resident now (VmRSS: anonymous and file-backed). {} if it is gone."""
    resident = next((line for line in _read(pid, "status").splitlines() if line.startswith(b"VmRSS:")), None)
    return {} if resident is None else {"ram": int(resident.split()[1]) * 1024}


def pss_bytes(pid: int) -> int | None:
    """Proportional set size of `pid` (`smaps_rollup`), in bytes; None when it cannot be read."""
    text = read(_PROC / str(pid) / "smaps_rollup") or ""
    line = next((line for line in text.splitlines() if line.startswith("Pss:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def meminfo() -> dict[str, int]:
    """This machine's RAM in bytes, by the kernel's names (`MemTotal`, `MemAvailable` …). Raises OSError."""
    found = _MEMINFO.findall((_PROC / "meminfo").read_text())
    return {name: int(number) * 1024 for name, number in found}
