"""The request journal: a JSON line a request: who, which model, tokens, times; never the text. I/O: a file."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import msgspec

from launcher.errors import HostError

_LOG = logging.getLogger("launch.route")


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. `at` is Unix time at its end, `seconds` from arrival to last byte, `decision` why for `auto`."""

    at: float
    request: str
    caller: str
    asked: str
    server: str
    path: str
    status: int
    seconds: float
    prompt_tokens: int
    generated_tokens: int
    decision: str = ""


class Journal:
    """Appends entries to a file, one write each, so that lines of two writers never mix.

    A disk that takes none, or a pipe that nobody reads, costs entries and no answer; the log says so once.
    """

    def __init__(self, path: str) -> None:
        """Make it readable by its owner only. Raises HostError."""
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            message = f"the journal {path} cannot be written: {error.strerror or error}"
            raise HostError.of("route/journal-unwritable", message, key="runtime.front.journal_file") from None
        self._lost = 0
        self._is_cut = False
        """The last line is not whole."""

    def add(self, **fields: Any) -> None:
        """One request; `at` is now."""
        line = b"\n" * self._is_cut + msgspec.json.encode(Entry(at=time.time(), **fields)) + b"\n"
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                _LOG.warning("the journal takes no entries: %s", error.strerror)
            return
        self._is_cut = written < len(line)
        if self._lost:
            _LOG.warning("the journal takes entries again; %d are lost", self._lost)
            self._lost = 0

    def close(self) -> None:
        """No more entries."""
        os.close(self._fd)


def open_journal(path: str | None) -> Journal | None:
    """The journal that a table asks for, if it does. Raises HostError."""
    return None if path is None else Journal(path)
