"""Locks on files (flock), which the kernel drops when their holder dies. I/O."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec


class LockOwner(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a lock, as the lock file names it: its pid (0: unknown), and what makes the pid unambiguous.

    `start_ticks` is field 22 of /proc/PID/stat (clock ticks since boot); `boot_id` tells boots apart.
    """

    pid: int
    start_ticks: int
    boot_id: str
    deployment: str = ""
    deployment_dir: str = ""
    front: str | None = None
    """URL of the runtime's front, once it listens."""


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting. Returns whether it is locked now. Raises OSError."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path, *, shared: bool = False) -> bool:
    """Whether the file is locked exclusively, or with `shared` in any way. Raises OSError.

    The check takes a lock for an instant: a shared one, so that two checks do not see each other, or with `shared` an
    exclusive one. A missing file is not locked, and opening a pipe in its place does not block.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not try_lock(descriptor, shared=not shared)
    finally:
        os.close(descriptor)
