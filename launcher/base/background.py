"""Run calls that may block, such as output to a terminal that nobody reads, in a thread beside an event loop. I/O.

Otherwise a user who types ^S, or looks at a pager, would stop every request of the fleet with the next line of text.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable

_LOG = logging.getLogger("launch.background")
_LAST_LINES_S = 1.0
_MOST = 10_000
"""Calls that wait at most; further ones are dropped, because nobody needs news that late."""


class Background:
    """Makes calls in their order, in a thread of its own. An exception in a call is logged and ends nothing."""

    def __init__(self) -> None:
        """The thread is started by the first call."""
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue(_MOST)
        self._thread: threading.Thread | None = None

    def put(self, call: Callable[[], object]) -> None:
        """Queue `call`; it is dropped if too many wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="background")
            self._thread.start()
        with contextlib.suppress(queue.Full):
            self._calls.put_nowait(call)

    def close(self, wait_s: float) -> bool:
        """Wait until all queued calls are done. Returns False if that takes longer than `wait_s` seconds."""
        if self._thread is None:
            return True
        done = threading.Event()
        try:
            self._calls.put(done.set, timeout=wait_s)
        except queue.Full:
            return False
        return done.wait(wait_s)

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            try:
                call()
            except Exception:  # noqa: BLE001 - whatever it is, it is logged
                _LOG.exception("a call in the background failed")


class BackgroundHandler(logging.Handler):
    """Logs to standard error without ever waiting for its reader, not even at the end of the process.

    Lines are written to the file descriptor: a thread that waits within `sys.stderr` would hold its lock, and the
    interpreter flushes `sys.stderr` at its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._background = Background()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record to be written."""
        record.msg, record.args = record.getMessage(), None  # its arguments may change until it is written
        self._background.put(lambda: self._write(record))

    def close(self) -> None:
        """Wait until the last lines are written, for _LAST_LINES_S seconds at most."""
        self._background.close(_LAST_LINES_S)
        super().close()

    def _write(self, record: logging.LogRecord) -> None:
        data = f"{self.format(record)}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # a full disk, a reader that is gone
            while data:
                data = data[os.write(2, data) :]
