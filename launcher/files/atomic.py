"""Writing a file so that a reader sees the old one or the new one, never half, whatever dies when."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from pathlib import Path

_LEFT = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
_WRITES_S = 60


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` (str as UTF-8) with permission bits `mode`.

    Temporary file in the same directory, fsync, rename, fsync of the directory. Raises OSError; then `path` is
    as it was and no temporary file is left (only a crash leaves one, named `.NAME.*.tmp`, until `drop_leftovers`).
    """
    temporary = stage(path, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        discard(temporary)
        raise
    sync_dir(path.parent)


def stage(path: Path, data: bytes | str, mode: int) -> Path:
    """A temporary file beside `path` with all of `data` on disk, ready to be renamed. Raises OSError, leaving none."""
    raw = data.encode() if isinstance(data, str) else data
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except BaseException:
        discard(temporary)
        raise
    return temporary


def drop_leftovers(directory: Path) -> None:
    """Remove what writers left below `directory` that were killed; one that still writes takes no minute."""
    with contextlib.suppress(OSError):
        for path in (*directory.glob(".*.tmp"), *directory.glob("*/.*.tmp")):
            if _LEFT.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _WRITES_S and not path.is_dir():
                path.unlink()


def discard(temporary: Path) -> None:
    """Remove what `stage` made, if it is still there."""
    with contextlib.suppress(OSError):
        temporary.unlink()


def sync_dir(directory: Path) -> None:
    """Make renames and removals in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
