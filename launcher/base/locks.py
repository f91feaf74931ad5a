"""Locks on files (flock), which the kernel drops when their holder dies. I/O."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec


class LockOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock, as its file says: the process (0: nobody knows), and what makes its pid unambiguous.

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
    """Lock an open file, if that needs no waiting; whether it is locked now. Raises OSError."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path, *, shared: bool = False) -> bool:
    """Whether a process holds a lock of the file for itself, or with `shared` any lock. Raises OSError.

    Asking takes a lock for an instant: a shared one, so that two who ask do not see each other, but where the holders
    share theirs. A file that is not there is not locked, and a pipe in its place holds nobody up.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not try_lock(descriptor, shared=not shared)
    finally:
        os.close(descriptor)
