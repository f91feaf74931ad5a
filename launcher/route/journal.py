"""The request journal, a JSON line per request: caller, model, tokens, times; never the text. I/O: a file."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Any

import msgspec

from launcher.errors import HostError

_LOG = logging.getLogger("launch.route")
_LOOK_S = 1.0
"""Between two looks at whether the file was moved away, as logrotate does."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. `at`: Unix time at its end; `seconds`: from arrival to last byte; `decision`: reason for `auto`."""

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
        self._path = path
        try:
            self._fd = self._opened()
        except OSError as error:
            message = f"the journal {path} cannot be written: {error.strerror or error}"
            raise HostError.of("route/journal-unwritable", message, key="runtime.front.journal_file") from None
        self._look_at = 0.0
        self._lost = 0
        self._is_cut = False
        """The last line is not whole."""

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._path, flags, 0o600)

    def _follow(self) -> None:
        """Go on in a new file where there is another one, or none, at the path; as before where that fails."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):  # noqa: PTH116 - a descriptor's, too
                    return
            fd = self._opened()
            os.close(self._fd)
            self._fd, self._is_cut = fd, False

    def add(self, **fields: Any) -> None:
        """Write the entry of one request; `at` is now."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            self._follow()
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
        """Close the file."""
        os.close(self._fd)


def open_journal(path: str | None) -> Journal | None:
    """The journal that a routing table names; None if it names none. Raises HostError."""
    return None if path is None else Journal(path)
