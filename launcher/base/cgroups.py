"""Limits of this process's cgroups (v1 and v2), and the kernel's OOM kills. I/O: reads /proc and /sys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from launcher.base.procfs import read

_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def memory_limit(sys_root: Path, proc_root: Path) -> tuple[int, int] | None:
    """(limit, used) in bytes of the cgroup with the least room, of this process's and all above; None: no limit."""
    tightest: tuple[int, int] | None = None
    for group, version in _with_ancestors(sys_root, proc_root, "memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = ((read(group / name) or "").strip() for name in names)
        # v1 writes "no limit" as a huge page-rounded number
        if not limit.isdigit() or int(limit) >= 1 << 60:
            continue
        room = (int(limit), int(used) if used.isdigit() else 0)
        if tightest is None or room[0] - room[1] < tightest[0] - tightest[1]:
            tightest = room
    return tightest


def cpu_quota(sys_root: Path, proc_root: Path) -> float | None:
    """The smallest CPU quota of this process's cgroups and all above, in CPUs; None: no quota."""
    quotas = []
    for group, version in _with_ancestors(sys_root, proc_root, "cpu"):
        if version == 2:
            words = (read(group / "cpu.max") or "").split()
        else:
            words = [(read(group / name) or "").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        # "max" and -1 are no quota
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel killed for lack of memory: in our cgroup plus on the whole machine.

    Only the difference between two calls means something. Cgroups v2 count in `memory.events`, v1 in
    `memory.oom_control`, each with the groups below it; the machine counts in /proc/vmstat. Missing files count 0.
    """
    files = [root / "proc/vmstat"]
    for top, parts, version in _own(root / "sys", root / "proc", "memory"):
        files.append(top.joinpath(*parts, "memory.events" if version == 2 else "memory.oom_control"))
    return sum(int(kills) for file in files for kills in _OOM_KILLS.findall(read(file) or ""))


def _with_ancestors(sys_root: Path, proc_root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Directories of this process's cgroups and of their ancestors, each with its cgroup version."""
    for top, parts, version in _own(sys_root, proc_root, controller):
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth]), version


def _own(sys_root: Path, proc_root: Path, controller: str) -> Iterator[tuple[Path, list[str], int]]:
    """Top directory, path below it and version of each cgroup of this process that may have `controller`."""
    for line in (read(proc_root / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        parts = [part for part in path.split("/") if part]
        if controllers == "":
            yield sys_root / "fs/cgroup", parts, 2
        elif controller in controllers.split(","):
            yield sys_root / "fs/cgroup" / controller, parts, 1
