"""A file that a person may edit at any time, replaced by an edit of what was read. I/O."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from launcher.files.atomic import write_atomic


class ChangedMeanwhileError(Exception):
    """The file no longer says what the edit was made from."""


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the folder of `path`, so that commands that edit it follow each other; where locks are unknown, nothing."""
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_as_read(path: Path, before: bytes, after: bytes) -> None:
    """Replace what `path` says; a link stays one, mode and owner stay.

    Raises OSError, and ChangedMeanwhileError where it no longer says `before`; then it is as it was.
    """
    place = path.resolve()
    was = place.stat()
    if not os.access(place, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(place))
    if place.read_bytes() != before:
        raise ChangedMeanwhileError
    write_atomic(place, after, mode=was.st_mode & 0o777)
    if os.geteuid() != was.st_uid:
        with contextlib.suppress(OSError):
            os.chown(place, was.st_uid, was.st_gid)
