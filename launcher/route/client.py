"""Who gets an answer: a client's connection, or a question of our own. Types only. Pure."""

from __future__ import annotations

from typing import Protocol

from launcher.route.problem import HttpError


class Client(Protocol):
    """One at a time is answered."""

    peer: str
    """Its IP address, "" for none."""
    write_paused: bool
    """What is written now is kept in memory: wait for `progress`."""

    def begin(self, status: int, lines: bytes, length: bytes | None) -> None:
        """Status, whole header lines, and the body's length; None: it is not known. Sent with the first `write`."""

    def write(self, data: bytes, done: bool) -> None:
        """A part of the body, the last one when `done`."""

    def error(self, error: HttpError, path: str, request_id: bytes, more: bytes) -> None:
        """A whole answer that is an error of the front; `more` header lines go with it."""

    def answered(self) -> None:
        """The answer is complete."""

    def answer_by(self, at: float) -> None:
        """Call the handler's `overdue` at `at`, a time of the loop, unless it has answered before."""

    def abort(self) -> None:
        """Cut the answer short, so that nobody takes it for a whole one."""
