"""Measure how fast a disk reads model files: past the page cache, as at a first load. I/O."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

BLOCK_BYTES = 8 * 1024**2
READ_BYTES = 4 * 1024**3
READ_S = 3.0
"""Reading ends after READ_BYTES or READ_S seconds."""
MIN_READ_BYTES = 32 * 1024**2
"""Fewer bytes tell more of seeks, and of caches within the disk, than of its speed."""


def read_speed(files: Iterable[Path]) -> tuple[int, int] | None:
    """Bytes per second, and bytes read, from `files` one after another for READ_S seconds at most.

    None if they are not here, or too small to say anything. The page cache is avoided: the file is read directly, or
    its pages are dropped first if the file system cannot do that.
    """
    read, began = 0, time.monotonic()
    with mmap.mmap(-1, BLOCK_BYTES) as buffer:
        for file in files:
            try:
                read += _read(file, buffer, began + READ_S, READ_BYTES - read)
            except OSError:
                continue
    took = time.monotonic() - began
    return (int(read / took), read) if read >= MIN_READ_BYTES and took > 0 else None


def _read(file: Path, buffer: mmap.mmap, until: float, most: int) -> int:
    """Read up to `most` bytes of `file` until `until` (monotonic clock); returns how many it was. Raises OSError."""
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
