"""Small files of our own, read so that nothing that lies in their place (a pipe, a device) holds us up. I/O."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TypeVar

from launcher.base.decoding import decoded

T = TypeVar("T")

_MOST_BYTES = 64 * 1024**2
"""More than any manifest has; more is none."""


def read_regular(path: Path) -> bytes:
    """The content of the regular file at `path`. Raises OSError, also for what is none, or has more than 64 MiB."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if facts.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {_MOST_BYTES >> 20} MiB", str(path))
        return file.read(_MOST_BYTES + 1)


def read_json(path: Path, kind: type[T]) -> T | None:
    """The JSON of a regular file as a `kind`; None where it is not there, or cannot be read as one."""
    try:
        return decoded(read_regular(path), kind)
    except OSError:
        return None
