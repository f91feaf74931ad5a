"""A process that keeps files in RAM for the warm pool, and reports how much is there. I/O; standard library only.

Run as `python -I -S resident.py`; a line of JSON in is a command, a line out a report. It ends with its input, so a
runtime that is killed leaves nothing locked. It is a process of its own for two reasons: pages mapped and locked by the
runtime would make the runtime the OOM killer's first choice (this process asks to be that: its pages are the most
easily missed), and a read that waits for a disk must not block anything else.

In: `{"hold": KEY, "paths": […]}`, `{"drop": KEY, "paths": […]}`, `{"watch": KEY, "paths": […]}`. Out: `{"key": KEY,
"resident": bytes or null, "total": bytes, "locked": bytes, "loading": bool, "read": bytes}`, whenever one of them
changed. `resident` is null where the kernel does not tell (files of another user that we may not write: mincore then
reports every page as resident, which is worse than nothing).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import select
import sys
import time
from collections.abc import Iterable

CHUNK_BYTES = 8 * 1024**2
LOOK_S = 1.0
_PROT_READ, _MAP_SHARED, _MAP_FAILED = 1, 1, ctypes.c_void_p(-1).value
_IOPRIO_SET, _IOPRIO_IDLE = 251, 3 << 13
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = _LIBC.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class OpenFile:
    """One file: open, its size, and its mapping while it is locked."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        facts = os.fstat(self.fd)
        self.size = facts.st_size
        self.identity = identity_of(facts)
        self.honest = facts.st_uid == os.geteuid() or os.geteuid() == 0 or os.access(path, os.W_OK)
        self.locked_at = 0

    def mapped(self, start: int, length: int) -> int:
        """Address of a mapping of this part of the file. Raises OSError."""
        address = _LIBC.mmap(None, length, _PROT_READ, _MAP_SHARED, self.fd, start)
        if address is None or address == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        return int(address)

    def resident(self, start: int = 0, length: int | None = None) -> int:
        """Bytes of this part of the file that are in RAM: `mincore` reads the page cache and touches nothing."""
        length = self.size - start if length is None else min(length, self.size - start)
        if length <= 0:
            return 0
        pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        with contextlib.suppress(OSError):  # then no page is counted
            address = self.mapped(start, length)
            _LIBC.mincore(address, length, pages)
            _LIBC.munmap(address, length)
        here = bytes(pages).translate(_LOW_BIT).count(1)
        return min(length, here * mmap.PAGESIZE)

    def lock(self) -> None:
        """Lock the whole file, where the limit allows; else nothing is locked."""
        if not self.locked_at and self.size:
            with contextlib.suppress(OSError):
                address = self.mapped(0, self.size)
                if _LIBC.mlock(address, self.size):
                    _LIBC.munmap(address, self.size)
                else:
                    self.locked_at = address

    def unlock(self) -> None:
        """Give the lock back; the pages stay until somebody needs the room."""
        if self.locked_at:
            _LIBC.munmap(self.locked_at, self.size)
            self.locked_at = 0

    def close(self) -> None:
        """Unlock and close."""
        self.unlock()
        os.close(self.fd)


_LOW_BIT = bytes(byte & 1 for byte in range(256))


def identity_of(facts: os.stat_result) -> tuple[int, int, int]:
    """What tells a file from another, or another size, at the same path."""
    return facts.st_dev, facts.st_ino, facts.st_size


class Files:
    """The files of one model. `at`: how far they were read (file number, offset); None: nothing is to be read."""

    def __init__(self, paths: Iterable[str]) -> None:
        """A file that cannot be opened counts as empty, and is tried again."""
        self.paths = tuple(paths)
        self.identities: list[tuple[int, int, int] | None] = []
        self.parts: list[OpenFile] = []
        self.held = False
        for path in self.paths:
            seen = None  # one that cannot be opened is tried again
            with contextlib.suppress(OSError):
                part = OpenFile(path)
                self.parts.append(part)
                seen = part.identity
            self.identities.append(seen)
        self.at: tuple[int, int] | None = None
        self.read = 0
        self.facts_sent: dict[str, object] | None = None

    def hold(self) -> None:
        """Begin to read what is not in RAM; then lock it."""
        self.held = True
        self.at = (0, 0)

    def drop(self) -> None:
        """Unlock the files, and tell the kernel that they are not needed (pages that a process maps stay)."""
        self.at = None
        self.held = False
        for part in self.parts:
            part.unlock()
            with contextlib.suppress(OSError):
                os.posix_fadvise(part.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def is_stale(self) -> bool:
        """Whether a file at one of the paths was replaced, or has another size. One that is gone does not count."""
        for path, before in zip(self.paths, self.identities, strict=True):
            with contextlib.suppress(OSError):
                if identity_of(os.stat(path)) != before:  # noqa: PTH116 - no pathlib here: it starts in a third of the time
                    return True
        return False

    def reopened(self) -> Files:
        """The present files at the same paths, held as before; closes the old ones."""
        files = Files(self.paths)
        files.read, files.facts_sent = self.read, self.facts_sent
        if self.held:
            files.hold()
        self.close()
        return files

    def step(self) -> None:
        """Read the next chunk that is not in RAM, at most one."""
        if self.at is None:
            return
        number, offset = self.at
        if number >= len(self.parts):
            self.at = None
            for part in self.parts:
                part.lock()
            return
        part = self.parts[number]
        length = min(CHUNK_BYTES, part.size - offset)
        if length <= 0:
            self.at = (number + 1, 0)
            return
        if part.resident(offset, length) < length:
            try:
                self.read += len(os.pread(part.fd, length, offset))
            except OSError:  # a broken disk, a directory: no reading helps
                self.at = (number + 1, 0)
                return
        self.at = (number, offset + length)

    def facts(self, key: str) -> dict[str, object]:
        """The report about these files."""
        honest = all(part.honest for part in self.parts)
        return {
            "key": key,
            "resident": sum(part.resident() for part in self.parts) if honest else None,
            "total": sum(part.size for part in self.parts),
            "locked": sum(part.size for part in self.parts if part.locked_at),
            "loading": self.at is not None,
            "read": self.read,
        }

    def close(self) -> None:
        """Close every file."""
        for part in self.parts:
            part.close()


def lower_priority() -> None:
    """Take the lowest CPU and I/O priority, and be the OOM killer's first choice; raise the limit of locked memory."""
    with contextlib.suppress(OSError):
        os.nice(19)
    _LIBC.syscall(_IOPRIO_SET, 1, 0, _IOPRIO_IDLE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - no pathlib here
        file.write("1000")
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def obey(line: str, all_files: dict[str, Files]) -> None:
    """Carry out one command. Raises ValueError or KeyError for an invalid one."""
    command = json.loads(line)
    verb = next(word for word in ("hold", "drop", "watch") if word in command)
    key, paths = command[verb], command["paths"]
    if verb == "hold" and key in all_files:
        all_files.pop(key).close()  # the files may be others by now
    if key not in all_files:
        all_files[key] = Files(paths)
    files = all_files[key]
    if verb == "hold":
        files.hold()
    elif verb == "drop":
        files.drop()


def report_changes(all_files: dict[str, Files]) -> None:
    """Report what changed."""
    for key, known in all_files.items():
        files = all_files[key] = known.reopened() if known.is_stale() else known
        facts = files.facts(key)
        if facts != files.facts_sent:
            files.facts_sent = facts
            sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Carry out commands, read files and report, until the input ends."""
    lower_priority()
    all_files: dict[str, Files] = {}
    rest, look_at = b"", 0.0
    while True:
        reading = next((files for files in all_files.values() if files.at is not None), None)
        ready, _, _ = select.select([0], [], [], 0 if reading else LOOK_S)
        if ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                obey(line.decode(), all_files)
        elif reading:
            reading.step()
            if reading.at is not None and time.monotonic() < look_at:
                continue
        report_changes(all_files)
        look_at = time.monotonic() + LOOK_S


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
