"""What the cgroups of this process are given, v1 and v2. I/O: reads /proc and /sys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def read(path: Path) -> str | None:
    """Text of a pseudo-file, None where it is not there or not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def memory_limit(sys_root: Path, proc_root: Path) -> tuple[int, int] | None:
    """(limit, used) in bytes of the tightest memory cgroup above this process; None when unlimited."""
    tightest: tuple[int, int] | None = None
    for group, version in _groups(sys_root, proc_root, "memory"):
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
    """How many CPUs' time the tightest cgroup above this process is given; None when as much as there is."""
    quotas = []
    for group, version in _groups(sys_root, proc_root, "cpu"):
        if version == 2:
            words = (read(group / "cpu.max") or "").split()
        else:
            words = [(read(group / name) or "").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        # "max" and -1 are no quota
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _groups(sys_root: Path, proc_root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Directories of the cgroups that this process is in, with their ancestors, and the version of each."""
    for line in (read(proc_root / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = sys_root / "fs/cgroup", 2
        elif controller in controllers.split(","):
            root, version = sys_root / "fs/cgroup" / controller, 1
        else:
            continue
        parts = [p for p in path.split("/") if p]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth]), version
