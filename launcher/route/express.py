"""The fast path: a request handed from the client's protocol straight to an upstream connection, no task between. I/O.

It is taken where the server is ready, has a slot, and nothing is unusual. Whatever else it meets before a byte was
answered (no slot, a server that must be woken or cannot be reached) it hands over to the ASGI path, whole.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from launcher.ir.live import Lease
from launcher.route import breaker
from launcher.route.body import for_target
from launcher.route.client import ClientGoneError
from launcher.route.peek import peek, peek_json
from launcher.route.problem import HttpError, error_body, error_event, shape_of
from launcher.route.relay import answer_to
from launcher.route.target import Target, choose
from launcher.route.upstream import Connection, UpstreamError
from launcher.route.wire import response_headers

if TYPE_CHECKING:
    from launcher.route.asgi import RawHeaders
    from launcher.route.front import Front
    from launcher.route.passage import Passage
    from launcher.route.protocol import FrontProtocol

LEFT = 499
"""Counted for a client that left; never sent."""


class AnswerHead:
    """The head of an answer but for its length and request id, made once for all answers with the same lines."""

    __slots__ = ("came", "common", "framed", "is_events", "lines", "status")

    def __init__(self, status: int, came: RawHeaders, common: RawHeaders, server: bytes) -> None:
        """`came` are the upstream's lines, `common` those of every answer of this front (Date)."""
        kept, self.is_events = response_headers(came, server, "")
        self.status = status
        self.came = came
        self.common = common
        self.framed = status not in (204, 304)
        lines = b"".join(b"%b: %b\r\n" % line for line in (*common, *kept) if line[0] != b"x-request-id")
        self.lines = STATUS_LINE[status] + lines + b"x-request-id: "

    def matches(self, status: int, came: RawHeaders, common: RawHeaders) -> bool:
        """Whether it is the head of this answer too."""
        return self.status == status and self.common is common and self.came == came


def answer_head(target: Target, status: int, came: RawHeaders, protocol: FrontProtocol) -> AnswerHead:
    """The head of an answer of `target` with the lines that `came`, kept for the next."""
    common = protocol.server_state.default_headers
    known = target.answer_head
    if known is None or not known.matches(status, came, common):
        known = target.answer_head = AnswerHead(status, came, common, target.header)
    return known


class Express:
    """One exchange on the fast path. To uvicorn it looks like a request cycle that runs."""

    __slots__ = (
        "_asked",
        "_before",
        "_began",
        "_body",
        "_chunked",
        "_connecting",
        "_connection",
        "_fresh",
        "_front",
        "_is_events",
        "_last",
        "_lease",
        "_passage",
        "_protocol",
        "_status",
        "_target",
        "disconnected",
        "keep_alive",
        "message_event",
        "more_body",
        "request_id",
        "response_complete",
        "response_started",
    )

    def __init__(
        self,
        front: Front,
        protocol: FrontProtocol,
        passage: Passage,
        body: bytes,
        found: tuple[str, Target, Lease],
    ) -> None:
        """`body` is as the client sent it, `found` the name asked for and its server, with its slot and lease."""
        self._front = front
        self._protocol = protocol
        self._passage = passage
        self._body = body
        self._asked, self._target, self._lease = found
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._fresh = False
        self._began = time.monotonic()
        self._status = 0
        self._chunked = False
        self._is_events = False
        self._last = self._before = b""
        self.request_id = ""
        self.response_started = False
        self.response_complete = False
        self.keep_alive = True
        self.more_body = False
        self.disconnected = False
        self.message_event = _NO_EVENT

    # the beginning

    def start(self) -> None:
        """Send the request on an idle connection, or open one first."""
        target = self._target
        self.request_id = self._front.ids.accept(self._passage.request_id)
        target.begin()
        loop = self._protocol.loop
        timeout_s = self._passage.view.directory.timeout_s(self._asked, target.unit)
        self._front.deadlines.add(self, loop, loop.time() + timeout_s)
        connection = target.pool.take()
        if connection is not None:
            self._send(connection)
        else:
            self._connect()

    def go_on(self, connection: Connection, request_id: str, began: float) -> None:
        """Take over an exchange that was sent already; its slot is taken, its deadline known."""
        self._connection = connection
        connection.watcher = self.progress
        self.request_id = request_id
        self._began = began

    def _send(self, connection: Connection) -> None:
        """Send the whole request; `progress` is called from then on."""
        passage, target = self._passage, self._target
        body = for_target(self._body, target.unit) if passage.takes_slot else self._body
        head = b"%b%b%b%b\r\n%bcontent-length: %d\r\n\r\n" % (
            passage.start,
            target.authority,
            passage.lines,
            self.request_id.encode(),
            target.authorization,
            len(body),
        )
        self._connection = connection
        connection.watcher = self.progress
        connection.send(head, body, head_only=False)

    def _connect(self) -> None:
        """Open a connection, in a task of its own."""
        self._fresh = True
        tasks = self._protocol.tasks
        self._connecting = self._protocol.loop.create_task(self._connect_and_send())
        tasks.add(self._connecting)
        self._connecting.add_done_callback(tasks.discard)

    async def _connect_and_send(self) -> None:
        """Connect and go on; a server that cannot be reached is the ASGI path's affair."""
        try:
            connection = await self._target.pool.connect(self._passage.view.table.front.connect_timeout_s)
        except UpstreamError:
            if not self.response_complete:
                self._hand_over()
        else:
            if self.response_complete:
                connection.close()
            else:
                self._send(connection)
        finally:
            self._connecting = None

    def _hand_over(self) -> None:
        """Nothing was answered: let the ASGI path begin anew."""
        body = self._body
        self._leave(None)
        self._target.abandoned()
        self._protocol.begin_asgi(self._passage, body)

    # the answer

    def progress(self) -> None:  # noqa: C901  # the hot path: a call for each branch would cost a tenth of it
        """Pass on what has come."""
        connection = self._connection
        if connection is None or self.response_complete or self._protocol.flow.write_paused:
            return
        error = connection.error
        head = b""
        if not self.response_started:
            if not connection.head_done:
                if error is not None:
                    self._failed_early(error)
                return
            head = self._head(connection)
        data = connection.take() if connection.buffered else b""
        done = connection.complete
        if data:
            self._before, self._last = self._last, data
            if self._chunked:
                head += b"%x\r\n%b\r\n" % (len(data), data)
            else:
                head += data
        if done and self._chunked:
            head += b"0\r\n\r\n"
        if self._protocol.transport.is_closing():
            return  # the end of the connection follows, and ends this too
        if head:
            self._protocol.transport.write(head)
        if done:
            self._succeeded()
        elif error is not None:
            self._failed_late(error)

    def _head(self, connection: Connection) -> bytes:
        """The head of the answer, and how its body is framed."""
        self.response_started = True
        target, status = self._target, connection.status
        self._status = status
        known = answer_head(target, status, connection.headers, self._protocol)
        self._is_events = known.is_events
        close = b"" if self.keep_alive else b"\r\nconnection: close"
        if not known.framed:
            return b"%b%b%b\r\n\r\n" % (known.lines, self.request_id.encode(), close)
        if connection.length is None or known.is_events:
            self._chunked = True
            return b"%b%b\r\ntransfer-encoding: chunked%b\r\n\r\n" % (known.lines, self.request_id.encode(), close)
        return b"%b%b\r\ncontent-length: %b%b\r\n\r\n" % (
            known.lines,
            self.request_id.encode(),
            connection.length,
            close,
        )

    # the end

    def _succeeded(self) -> None:
        """The answer is complete."""
        self._target.succeeded()
        self._leave(self._status, tokens=self._target.tokens.read(self._before, self._last))
        self._close_or_go_on()

    def _failed_early(self, error: UpstreamError) -> None:
        """The upstream failed before a byte was answered: ask again where that is safe, else say so."""
        if error.reason == "stale" and not self._fresh:
            connection, self._connection = self._connection, None
            if connection is not None:
                self._target.pool.put_back(connection)
            self._connect()
            return
        try:
            problem = answer_to(error, self._target.name)
        except ClientGoneError:
            self._gone()
            return
        self._settle(error, problem)
        self._refuse(problem)

    def _failed_late(self, error: UpstreamError) -> None:
        """The upstream died within its answer: a stream says why it ends, another answer is cut."""
        problem = answer_to(error, self._target.name)
        tail = (self._before + self._last)[-4:]
        self._settle(error, problem)
        self._front.refused[problem.code] += 1
        if not self._is_events or self._protocol.flow.write_paused or self._protocol.transport.is_closing():
            self._protocol.transport.abort()
            return
        event = error_event(
            problem,
            self._passage.path,
            self.request_id,
            at_boundary=not tail or tail.endswith((b"\n\n", b"\r\n\r\n")),
        )
        self._protocol.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
        self._close_or_go_on()

    def _refuse(self, problem: HttpError) -> None:
        """Answer with an error of the front."""
        self._front.refused[problem.code] += 1
        if self._protocol.transport.is_closing():
            return
        data = error_body(problem, shape_of(self._passage.path), self.request_id)
        retry = b"" if problem.retry_after is None else b"retry-after: %b\r\n" % problem.retry_after
        self.response_started = True
        self._protocol.transport.write(
            b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b"
            % (
                STATUS_LINE[problem.status],
                b"".join(b"%b: %b\r\n" % line for line in self._protocol.server_state.default_headers),
                len(data),
                self.request_id.encode(),
                retry,
                b"" if self.keep_alive else b"connection: close\r\n",
                data,
            )
        )
        self._close_or_go_on()

    def _settle(self, error: UpstreamError, problem: HttpError) -> None:
        """Account for a failure: the server's, unless the front itself is stopping."""
        target = self._target
        if error.reason == "stopping":
            target.abandoned()
            self._leave(LEFT, code=problem.code)
            return
        target.failed(self._protocol.loop.time(), self._passage.view.table.breaker)
        self._leave(problem.status, ok=False, code=problem.code)

    def _gone(self) -> None:
        """Nobody waits for the answer."""
        self._target.abandoned()
        self._leave(LEFT)

    def _leave(self, status: int | None, *, ok: bool = True, tokens: tuple[int, int] = (0, 0), code: str = "-") -> None:
        """Give back what was taken, count the request unless another path goes on with it (None)."""
        self.response_complete = True
        self._body = self._last = self._before = b""  # uvicorn keeps the last exchange of a connection that rests
        front, target = self._front, self._target
        front.deadlines.remove(self)
        connection = self._connection
        if connection is not None:
            self._connection = None
            connection.watcher = None
            target.pool.put_back(connection)
        if self._passage.takes_slot:
            target.gate.release()
        self._lease.release(ok=ok)
        if status is not None:
            seconds = time.monotonic() - self._began
            target.tally.add(status, seconds)
            if front.records:
                asked = self._asked, target
                front.record(self._passage, self.request_id, asked, status, seconds, tokens, code=code)

    def _close_or_go_on(self) -> None:
        """The answer is written: keep the client's connection for the next request, or close it."""
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()

    # from outside

    def client_left(self) -> None:
        """The client closed its connection: closing the upstream's cancels the generation."""
        if not self.response_complete:
            self._abort(UpstreamError("client_gone", "the client left"))
            self._gone()

    def overdue(self) -> None:
        """The whole timeout is over."""
        self._cut(UpstreamError("timeout", "the server did not finish its answer in time"))

    def stop(self) -> None:
        """The front's drain is over."""
        self._cut(UpstreamError("stopping", "the front is stopping"))

    def _cut(self, error: UpstreamError) -> None:
        """End the exchange from here, and say so to the client."""
        if self.response_complete:
            return
        self._abort(error)
        if self.response_started:
            self._failed_late(error)
        else:
            self._failed_early(error)

    def _abort(self, error: UpstreamError) -> None:
        """Close the upstream connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.watcher = None
            self._connection.abort(error)


class _NoEvent:
    """Stands where uvicorn wakes a waiting request cycle; here none waits."""

    def set(self) -> None:
        """Nobody to wake."""


_NO_EVENT = _NoEvent()


def depart(front: Front, protocol: FrontProtocol, passage: Passage, body: bytes) -> Express | None:
    """Begin the exchange, or None where the ASGI path must decide. `HttpError`s are left to it too."""
    view = passage.view
    try:
        asked = peek_json(body).model if passage.is_json else None
        if not asked:
            asked = peek(body, passage.content_type, passage.query, passage.model).model
        target = view.only.get(asked) if asked else None
        if target is None:
            asked = view.directory.asked(asked)
            if asked in view.validated:
                return None
            targets = [view.targets[name] for name in view.directory.tiers(asked)[0]]
            beginnings = front.sticky.beginnings(body) if len(targets) > 1 else []
            preferred = front.sticky.server(beginnings)
            choice = choose(targets, front.upstreams.state, protocol.loop.time(), preferred)
            if choice is None or choice.asleep:
                return None
            target = choice.target
            front.grow(view, asked)
            front.sticky.remember(beginnings, target.name)
    except HttpError:
        return None
    assert asked is not None  # noqa: S101  # the directory gives the default's name
    if not passage.grant.may_ask(asked, target.name):
        return None
    if target.breaker is not breaker.CLOSED or target.unit.rungs:  # with rungs it may have to be asked again
        return None
    lease = front.upstreams.try_lease(target.name)
    if lease is None:
        return None
    if passage.takes_slot and not target.gate.try_acquire():
        lease.release(ok=False)
        return None
    return Express(front, protocol, passage, body, (asked, target, lease))
