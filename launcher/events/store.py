"""Events as lines of JSON in two files: when the newer one is full, it replaces the older one. I/O.

Events of a fleet's orchestration, which come with requests, are in two files of their own beside them. A problem with
the files costs events, never the fleet: unreadable lines are skipped, and a disk that cannot be written is reported
once and tried again with the next event.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from launcher.base.decoding import decoded
from launcher.base.regular import read_regular
from launcher.ir.events import Record

_LOG = logging.getLogger("launch.events")
MAX_BYTES = 2 * 1024**2
"""Limit of each of the two files."""
MAX_LINE_BYTES = 16 * 1024
_MAX_ID = 2**52
"""Numbers of events that are read are below: from twice that on, which none may reach, a browser takes two for one."""
_MAX_TIME_S = 250_000_000_000.0
"""A Unix time beyond what calendars can write."""


class Store:
    """Appends events to `path`. Never raises OSError."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor = -1
        self._size = 0
        self._failing = False
        self._torn = False

    def append(self, record: Record) -> None:
        """Add an event; its details are left out if they are too long."""
        line = msgspec.json.encode(record) + b"\n"
        if len(line) > MAX_LINE_BYTES:
            short = msgspec.structs.replace(
                record, message=record.message[:1000], cause=record.cause[:1000], details={}
            )
            line = msgspec.json.encode(short) + b"\n"
        try:
            self._write(line)
        except OSError as error:
            self.close()
            self._torn = True
            if not self._failing:
                _LOG.warning("events are not kept on disk: %s: %s", self._path, error.strerror or error)
            self._failing = True
        else:
            self._failing = False

    def _write(self, line: bytes) -> None:
        """Append a line; a full file becomes the older one first. Raises OSError."""
        if self._descriptor < 0:
            # never blocks, not even on a pipe that lies there
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._descriptor).st_size
            self._torn = self._torn or self._size > 0  # whoever wrote before may have died within a line
        if self._size + len(line) > self._max_bytes and self._size:
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.replace(older(self._path))
            self._torn = False
            self._write(line)
            return
        data = b"\n" + line if self._torn else line
        if os.write(self._descriptor, data) != len(data):
            raise OSError(28, "the disk is full")
        self._torn = False
        self._size += len(data)

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def older(path: Path) -> Path:
    """Path of the file with the lines before those of `path`."""
    return path.with_suffix(".1.jsonl")


def orchestration_file(path: Path) -> Path:
    """Path of the events of the orchestration, beside those in `path`."""
    return path.with_name(f"{path.stem}-requests{path.suffix}")


def store_files(path: Path) -> tuple[Path, ...]:
    """Every file of the store at `path`."""
    return tuple(file for whole in (path, orchestration_file(path)) for file in (older(whole), whole))


def read_records(path: Path) -> list[Record]:
    """All readable events of the store at `path`, oldest first; none where there is no store."""
    records = (record for file in store_files(path) for record in _read(file))
    return sorted(records, key=lambda record: record.id)


def _read(path: Path) -> Iterator[Record]:
    """The events of one file; other lines are skipped."""
    try:
        data = read_regular(path)[: 2 * MAX_BYTES]
    except OSError:
        return
    for line in data.splitlines():
        record = decoded(line, Record)
        if record is not None and 0 < record.id < _MAX_ID and 0 <= record.at < _MAX_TIME_S:
            yield record
