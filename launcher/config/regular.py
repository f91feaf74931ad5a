"""The bytes of a config file, which is a regular file of a sensible size. I/O: reads it."""

from __future__ import annotations

import errno
import os
import stat

MAX_BYTES = 8 * 1024**2
"""More than a fleet file of ten thousand servers has: /dev/zero under another name must not fill the memory."""


def read_regular(file: str) -> bytes:
    """All of `file`. Raises OSError, also where it is a FIFO, a device or the like, or is larger than `MAX_BYTES`.

    A FIFO without a writer would block for ever when opened plainly, a terminal would become ours.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", file)
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES // 1024**2} MiB", file)
    return data
