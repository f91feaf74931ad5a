"""Whether the kernel killed for want of memory: its counters, before and after."""

from __future__ import annotations

import re
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel killed for want of memory: in our control group, and on the whole machine.

    Only a difference says something. Control groups v2 count in `memory.events`, v1 in `memory.oom_control`, each with
    the groups below; the machine in /proc/vmstat. What is not there counts 0.
    """
    files = [root / "proc/vmstat"]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if controllers == "":
            files.append(root / "sys/fs/cgroup" / inside / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(root / "sys/fs/cgroup/memory" / inside / "memory.oom_control")
    return sum(int(match[1]) for file in files if (match := _COUNT.search(_read(file))))


def _read(path: Path) -> str:
    """The text of `path`, "" where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
