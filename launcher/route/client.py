"""The receiver of one answer: a client's connection, or a question of the front's own. Types only. Pure."""

from __future__ import annotations

from typing import Protocol

from launcher.route.problem import HttpError


class Client(Protocol):
    """Receives one answer at a time."""

    peer: str
    """IP address; "" for a question of the front's own."""
    write_paused: bool
    """Writing more now would pile up in memory: wait for the handler's `progress`."""

    def begin(self, status: int, lines: bytes, length: bytes | None) -> None:
        """Set the status, whole header lines and the body's length (None: unknown). Sent with the first `write`."""

    def write(self, data: bytes, done: bool) -> None:
        """Send a part of the body; `done` marks the last one."""

    def error(self, error: HttpError, path: str, request_id: bytes, more: bytes) -> None:
        """Send a whole answer for an error of the front; `more` are further header lines."""

    def answered(self) -> None:
        """Report that the answer is complete."""

    def set_answer_deadline(self, at: float) -> None:
        """Call the handler's `overdue` at `at` (loop time), unless it has answered by then."""

    def abort(self) -> None:
        """Cut the answer short in a way that no client takes for a complete one."""
