"""Big bodies in unnamed files, when many arrive at once. I/O.

No other process can open these files, and they vanish however the process ends. A body that is answered soon is dropped
before the kernel writes it to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path
from time import monotonic
from typing import cast
from weakref import WeakSet

_FOLDER = Path("/var/tmp")  # noqa: S108 - what is made there has no name
"""On a disk, while /tmp often is memory."""
_WRITE_BYTES = 64 * 1024
_AGAIN_S = 10.0
"""Seconds without new files after a write failed."""
_MOST = 128
"""Limit of files: each takes one of the descriptors that are kept for others than clients
(`launcher.route.sockets`)."""


class Spool:
    """An arriving body, in a file."""

    def __init__(self, spools: Spools) -> None:
        """Open an unnamed file. Raises OSError."""
        self._spools = spools
        self._rest = bytearray()
        self._fd = _unnamed_file(spools.folder)

    def add(self, data: bytes | bytearray) -> None:
        """Append `data`. Raises OSError where the file takes no more; the body has `data` all the same."""
        if self._rest or len(data) < _WRITE_BYTES:  # of tiny chunks each would be a call of the system
            self._rest += data
            if len(self._rest) < _WRITE_BYTES:
                return
            data, self._rest = self._rest, bytearray()
        self._write(data)

    def whole(self) -> bytes:
        """The whole body, mapped: a buffer where `bytes` are expected. Raises OSError."""
        rest, self._rest = self._rest, bytearray()
        self._write(rest)
        mapped = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        self._spools.open.add(mapped)
        return cast("bytes", mapped)

    def content(self) -> bytearray:
        """The whole body in memory, for when the file takes no more."""
        content = bytearray(os.fstat(self._fd).st_size)
        done = 0
        while done < len(content):
            done += os.preadv(self._fd, [memoryview(content)[done:]], done)
        return content + self._rest

    def _write(self, data: bytes | bytearray) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            self._rest = bytearray(left)
            self._spools.not_before = monotonic() + _AGAIN_S
            raise

    def __del__(self) -> None:
        """Close the file, which removes it."""
        with contextlib.suppress(AttributeError, OSError):  # it was never had
            os.close(self._fd)


class Spools:
    """All unnamed files of one front."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self.folder = folder
        self.open: WeakSet[object] = WeakSet()
        """Objects that hold a descriptor."""
        self.not_before = 0.0

    def begin(self, data: bytes | bytearray) -> Spool | None:
        """A file that begins with `data`; None where no file can be had, so that memory has to do."""
        if len(self.open) >= _MOST or monotonic() < self.not_before:
            return None
        try:
            spool = Spool(self)
            spool.add(data)
        except OSError:
            self.not_before = monotonic() + _AGAIN_S
            return None
        self.open.add(spool)
        return spool


def _unnamed_file(folder: Path) -> int:
    """A descriptor of an unnamed file. Raises OSError."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    import tempfile  # noqa: PLC0415  # late: 0.5 MiB with its compressors

    fd, path = tempfile.mkstemp(prefix="launch-", dir=folder)  # a file system without nameless ones
    Path(path).unlink()
    return fd
