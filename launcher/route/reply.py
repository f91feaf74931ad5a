"""The answer to one request, as far as the front writes it itself: whole, in parts, or an error. I/O."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from launcher.route.client import Client
from launcher.route.clients import Clients
from launcher.route.head import Head
from launcher.route.problem import HttpError, error_event
from launcher.route.view import View

_LOG = logging.getLogger("launch.route")


class Notes(Protocol):
    """Keeps account of answers."""

    view: View
    clients: Clients
    has_access_log: bool

    def note_answer(self, reply: Reply, status: int, code: str) -> None:
        """Write the access log. `code`: of an error of the front, "-" for none."""


class Reply:
    """One request and its answer. `_finish` ends it, exactly once.

    What every request sets is a slot; the rest are class attributes with the usual value, which cost nothing while
    unchanged.
    """

    __slots__ = (
        "__dict__",
        "began",
        "body",
        "client",
        "complete",
        "ended",
        "extra_lines",
        "head",
        "held",
        "id",
        "services",
        "started",
        "status",
        "view",
    )
    services: Notes
    client: Client
    head: Head
    view: View
    """The routing view of when the request came; a reload does not change it."""
    id: bytes
    began: float
    """When the request came (monotonic clock)."""
    body: bytes
    complete: bool
    """The request's body has arrived."""
    held: int
    """Bytes of the body that count against `max_held_bytes`."""
    extra_lines: bytes
    """Header lines added to any answer."""
    started: bool
    """The answer's head is out."""
    ended: bool
    """The answer is complete, or given up."""
    status: int
    length: bytes | None = None
    """The request's Content-Length, where its body came later."""
    gone = False
    """The client has disconnected."""
    is_question = False
    """It is a question of the front's own: not in the access log."""
    has_turn = True
    """All earlier requests of the connection are answered."""
    refusal: HttpError | None = None
    """The refusal to answer with once it has its turn."""
    on_end: Callable[[], object] | None = None
    _drained: asyncio.Future[None] | None = None
    _task: asyncio.Task[None] | None = None
    """The task that the request waits for."""

    def answer(self, status: int, content_type: bytes, data: bytes, more: bytes = b"") -> None:
        """Send a complete answer; `more` are further header lines."""
        lines = b"content-type: %b\r\nx-request-id: %b\r\n%b" % (content_type, self.id, more)
        self.begin(status, lines, b"%d" % len(data))
        self.client.write(data, True)
        self._finish(status)

    def begin(self, status: int, lines: bytes, length: bytes | None) -> None:
        """Begin an answer with whole header `lines`; `length` None: unknown."""
        self.started = True
        self.status = status
        self.client.begin(status, b"".join((lines, self.head.cors, self.extra_lines)), length)

    async def write(self, data: bytes, *, done: bool) -> None:
        """Send a part of an answer that has begun; returns when the client can take more."""
        if self.ended:
            return
        self.client.write(data, done)
        if done:
            self._finish(self.status)
        elif self.client.write_paused:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def drained(self) -> None:
        """Wake `write`: the client can take more."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def end_events(self, problem: HttpError, *, at_boundary: bool) -> None:
        """End an event stream with an error event."""
        event = error_event(problem, self.head.path, self.id.decode("ascii"), at_boundary=at_boundary)
        self.client.write(event, True)
        self._finish(self.status, problem.code)

    def refuse(self, problem: HttpError) -> None:
        """Answer with an error of the front; an answer that has begun is cut."""
        if not self.has_turn:
            self.refusal = problem  # others are answered first
        elif self.started and not self.ended:
            self._cut(problem)
        elif not self.ended:
            if not self.complete and b"expect" in self.head.seen:
                problem.close = True  # whether the body follows is the client's choice now: the framing is lost
            self.client.error(problem, self.head.path, self.id, self.head.cors + self.extra_lines)
            self._finish(problem.status, problem.code)

    def _cut(self, problem: HttpError) -> None:
        self.client.abort()
        self._finish(self.status, problem.code)

    def finish(self, code: str = "-") -> None:
        """End an answer whose last part was written. `code`: as for `note_answer`."""
        if not self.ended:
            self._finish(self.status, code)

    def drop_body(self) -> None:
        """Free the request's body."""
        self.body = b""
        if self.held:
            count, self.held = self.held, 0
            self.services.clients.held.drop_whole(count)

    def _finish(self, status: int, code: str = "-") -> None:
        """End the exchange: nothing more is written. `code`: of an error of the front."""
        raise NotImplementedError

    def failed(self, error: BaseException) -> None:
        """Answer an exception: a refusal of the front, or a bug (500)."""
        if isinstance(error, HttpError):
            self.refuse(error)
            return
        _LOG.error("request %s failed", self.id.decode("ascii"), exc_info=error)
        self.refuse(HttpError(500, "internal_error", "an internal error; see the log"))

    def run(self, waiting: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Run `waiting(*args)` as a task; an exception becomes the answer."""
        self._task = asyncio.get_running_loop().create_task(self._wait(waiting, *args))

    async def _wait(self, waiting: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        try:
            await waiting(*args)
        except Exception as error:  # noqa: BLE001  # a bug of ours must not leave a client without an answer
            self.failed(error)
        finally:
            if self._task is asyncio.current_task():
                self._task = None
