"""Who holds a lock, as a test sees it from outside."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from launcher.base.locks import LockOwner


def lock_owner(path: Path) -> LockOwner | None:
    """Who holds the lock at `path` now; None when nobody does. An unreadable name gives pid 0."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return msgspec.json.decode(path.read_bytes(), type=LockOwner)
        except (OSError, msgspec.DecodeError):
            return LockOwner(pid=0, start_ticks=0, boot_id="")
    finally:
        os.close(descriptor)
    return None
