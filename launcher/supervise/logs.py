"""Log files of servers: written by the servers themselves, so they survive the runtime; read from their end.

The server has the file open for appending (no pipe: its reader would die with the runtime, and a grandchild could keep
it open). One file per run: `NAME.log` is moved to `NAME.log.1` and so on before a start. During a run, a file above its
limit is copied to `NAME.log.1` and truncated; lines written in that instant are lost, which is acceptable for a log.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

_LOG = logging.getLogger("launch.supervise")
TAIL_LINES = 200
_TAIL_BYTES = 64 * 1024
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def open_log(path: Path) -> int:
    """A descriptor of `path` for appending; the caller closes it.

    Where none can be had (a full disk, a pipe that nobody reads), the log goes nowhere: that is no reason not to serve.
    Raises OSError.
    """
    try:
        # at once, also where a pipe lies in its place
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        _LOG.warning("%s cannot be written: %s", path, error.strerror or error)
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    return descriptor


def shift(path: Path, files: int) -> None:
    """Make room for a new `path`: `.1` becomes `.2`, `path` becomes `.1`; at most `files` files remain in total.

    If the disk refuses, later output is appended to the old file.
    """
    try:
        if not path.exists() or path.stat().st_size == 0:
            return
        _shift_old(path, files)
        if files > 1:
            path.rename(_old(path, 1))
        else:
            path.unlink()
    except OSError as error:
        _LOG.warning("%s cannot be moved away: %s", path, error.strerror or error)


def cut(path: Path, files: int, max_bytes: int) -> bool:
    """Keep a file that is being written below `max_bytes`. Returns whether it was above. Blocks for the copy.

    If no copy can be kept (full disk), the file is truncated all the same, which makes room.
    """
    if not path.exists() or path.stat().st_size <= max_bytes:
        return False
    _shift_old(path, files)
    with path.open("rb+") as file:
        if files > 1:
            file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
            _copy(file.read(max_bytes), _old(path, 1))
        file.truncate(0)
    return True


def _copy(text: bytes, target: Path) -> None:
    try:
        target.write_bytes(text)
    except OSError as error:
        _LOG.warning("%s cannot be written: %s", target, error.strerror or error)
        target.unlink(missing_ok=True)


def tail(path: Path, lines: int = TAIL_LINES) -> tuple[str, ...]:
    """The last `lines` lines of `path` (of its last 64 KiB), without colours; empty when there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            raw = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):  # ValueError: no path can be this (NUL in it)
        return ()
    text = raw.decode(errors="replace")
    if size > _TAIL_BYTES:
        text = text.partition("\n")[2] or text
    return tuple(_ANSI.sub("", line).rstrip() for line in text.splitlines()[-lines or sys.maxsize :])


def size_bytes(path: Path) -> int:
    """Size of the log in bytes; 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _shift_old(path: Path, files: int) -> None:
    """Move `.1` to `.2` and so on, dropping the oldest."""
    for number in range(files - 1, 0, -1):
        old = _old(path, number)
        if not old.exists():
            continue
        if number + 1 >= files:
            old.unlink()
        else:
            old.rename(_old(path, number + 1))


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
