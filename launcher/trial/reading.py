"""How fast a disk gives model files, measured: read past the page cache, as a first load does. I/O."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

BLOCK_BYTES = 8 * 1024**2
READ_BYTES = 4 * 1024**3
READ_S = 3.0
"""Reading ends at so many bytes, or seconds."""
LEAST_BYTES = 32 * 1024**2
"""Less says more of seeks and of caches within the disk than of its speed."""


def read_speed(files: Iterable[Path]) -> tuple[int, int] | None:
    """Bytes a second, and bytes that were read for it, of `files` one after another for READ_S at most.

    None where they are not here, or too small to say anything. Pages that the cache holds are not counted on: the
    file is read directly, or its pages are dropped before where the file system cannot do that.
    """
    read, began = 0, time.monotonic()
    with mmap.mmap(-1, BLOCK_BYTES) as buffer:
        for file in files:
            try:
                read += _read(file, buffer, began + READ_S, READ_BYTES - read)
            except OSError:
                continue
    took = time.monotonic() - began
    return (int(read / took), read) if read >= LEAST_BYTES and took > 0 else None


def _read(file: Path, buffer: mmap.mmap, until: float, most: int) -> int:
    """Bytes read of `file` before `until`, whole blocks. Raises OSError."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # tmpfs and some others
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    done = 0
    try:
        while done < most and time.monotonic() < until:
            count = os.preadv(descriptor, [buffer], done)
            done += count
            if count < BLOCK_BYTES:
                break
    finally:
        os.close(descriptor)
    return done
