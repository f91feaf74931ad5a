"""A lock that the kernel drops when its holder dies, in a file that names the holder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import msgspec

from launcher.base.regular import read_regular

_ATTEMPTS = 5
_PAUSE_S = 0.025


class LockOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a lock: the process, and what makes its pid unambiguous.

    `start_ticks` is field 22 of /proc/PID/stat (clock ticks since boot); `boot_id` tells boots apart.
    """

    pid: int
    start_ticks: int
    boot_id: str
    deployment: str = ""
    deployment_dir: str = ""
    front: str | None = None
    """URL of the runtime's front, once it listens."""


class LockHeldError(Exception):
    """Somebody else holds the lock; `owner` is None when the file does not say who."""

    def __init__(self, path: Path, owner: LockOwner | None) -> None:
        """`path` is the lock file."""
        self.path = path
        self.owner = owner
        super().__init__(f"{path} is held by " + (f"process {owner.pid}" if owner else "an unknown process"))


class OwnedLock:
    """An exclusive flock on `path`, held from `acquire` to `release` or to the death of the process."""

    def __init__(self, path: Path) -> None:
        """`path` is created on `acquire`; its directory must exist."""
        self.path = path
        self._fd: int | None = None

    def acquire(self, owner: LockOwner) -> None:
        """Take the lock and write `owner` into it. Raises LockHeldError.

        Tries for 0.1 s, because `lock_owner` in another process holds it for an instant.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 < _ATTEMPTS:
                    time.sleep(_PAUSE_S)
                    continue
                os.close(descriptor)
                raise LockHeldError(self.path, _read_owner(self.path)) from None
        self._fd = descriptor
        self.rename(owner)

    def rename(self, owner: LockOwner) -> None:
        """Write `owner` into the held lock (the file itself stays: a flock belongs to it)."""
        if self._fd is None:
            raise RuntimeError("the lock is not held")
        text = msgspec.json.encode(owner) + b"\n"
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))
        os.fsync(self._fd)

    def is_there(self) -> bool:
        """Whether what is held is still the file at `path`. Raises OSError, but not for a file that is gone."""
        if self._fd is None:
            return False
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        held = os.fstat(self._fd)
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def drop(self) -> None:
        """Let go of a file that is nobody's any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def release(self) -> None:
        """Drop the lock; nothing happens when it is not held. The file stays, empty."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def lock_owner(path: Path) -> LockOwner | None:
    """Who holds the lock at `path` now; None when nobody does. An unreadable name gives pid 0."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_owner(path) or LockOwner(pid=0, start_ticks=0, boot_id="")
    finally:
        os.close(descriptor)
    return None


def _read_owner(path: Path) -> LockOwner | None:
    """The name in the lock file, if it is whole."""
    try:
        return msgspec.json.decode(read_regular(path), type=LockOwner)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
