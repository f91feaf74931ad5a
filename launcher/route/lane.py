"""The shortest way through the front, for a request like the last one of its connection and an ordinary answer. I/O.

While a client's connection rests, its lane stands in for its protocol: bytes that are such a request come here first.
Nothing is allocated for the exchange but its bytes, it is a few fields here. Whatever else comes goes to the protocol,
and whatever else happens to the exchange (another kind of answer, a failure, a client that leaves, a deadline) turns it
into an `Express`, which knows the rest. Calls that a method of few lines would cost are written out: each is a
hundredth of what the front adds.
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from launcher.ir.live import Lease
from launcher.route import breaker
from launcher.route.express import Express, answer_head
from launcher.route.peek import JsonPeek
from launcher.route.target import Target

if TYPE_CHECKING:
    from launcher.route.front import Front
    from launcher.route.passage import Passage
    from launcher.route.protocol import FrontProtocol
    from launcher.route.repeat import RepeatedHead
    from launcher.route.upstream import Connection

_CLOSED = breaker.CLOSED
_PEEK = JsonPeek()
_decode, _seen = _PEEK.decode, _PEEK.seen


class Lane(asyncio.Protocol):
    """One client connection's requests with the head that came before; at most one is on its way."""

    __slots__ = (
        "_answer_bytes",
        "_answer_length",
        "_asked",
        "_began",
        "_body",
        "_connection",
        "_fresh_id",
        "_front",
        "_id",
        "_lease",
        "_length",
        "_length_bytes",
        "_most_bytes",
        "_passage",
        "_protocol",
        "_repeat",
        "_start",
        "_state",
        "_target",
        "_timeout_s",
        "_transport",
        "_view",
        "due",
    )

    def __init__(self, front: Front, protocol: FrontProtocol, passage: Passage, repeat: RepeatedHead) -> None:
        """`repeat` is the head that `passage` was made of."""
        self._front = front
        self._fresh_id = front.ids.fresh
        self._protocol = protocol
        self._state = protocol.server_state
        self._transport = protocol.transport
        self._passage = passage
        self._view = passage.view
        self._most_bytes = passage.view.table.front.max_body_bytes
        self._repeat = repeat
        self._asked = ""
        self._target: Target | None = None
        self._lease = Lease("")
        self._start = self._body = self._id = b""
        self._timeout_s = self._began = 0.0
        self.due = math.inf
        """When the exchange is overdue, in seconds of the loop's clock."""
        self._length_bytes = self._answer_bytes = -1
        self._length = self._answer_length = b""
        """The last request's and answer's Content-Length: the next are often as long, and formatting costs as much as
        all the joining."""
        self._connection: Connection | None = None
        front.deadlines.lanes.add(self)

    def close(self) -> None:
        """Another lane, or none, takes its place."""
        self._front.deadlines.lanes.discard(self)

    # asyncio's callbacks

    def data_received(self, data: bytes) -> None:
        """Send a request on, if `data` is one, whole and with the known head; the protocol takes anything else."""
        repeat = self._repeat
        start = repeat.start if len(data) == repeat.size and data.startswith(repeat.head) else repeat.body_start(data)
        if not start or self._connection is not None:
            self._step_aside(data)
            return
        body = data[start:]
        front, target = self._front, self._target
        try:
            _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            _seen.clear()  # the protocol says what is wrong
        asked = _seen.pop() if _seen else None
        if _seen or target is None or asked != self._asked:
            target = self._aim(asked)
            if target is None:
                self._step_aside(data)
                return
        gate, idle, size = target.gate, target.pool.idle, len(body)
        if (
            self._view is not front.view
            or target.breaker is not _CLOSED
            or gate.in_flight >= gate.slots
            or gate.waiters
            or not idle
            or size > self._most_bytes
        ):
            self._step_aside(data)
            return
        connection = idle[-1]
        transport = connection.transport
        if connection.repeat is None or transport is None or transport.is_closing():
            self._step_aside(data)
            return
        lease = front.upstreams.try_lease(target.name)
        if lease is None:
            self._step_aside(data)
            return
        idle.pop()
        gate.in_flight += 1
        self._lease = lease
        self._id = request_id = self._fresh_id()
        self._body = body
        self._connection = connection
        self._began = began = monotonic()  # the loop's clock
        self.due = due = began + self._timeout_s
        if due < front.deadlines.armed_at:
            front.deadlines.arm(self._protocol.loop, due)
        self._protocol.idle_since = 0.0
        if size != self._length_bytes:
            self._length_bytes = size
            self._length = b"\r\n%bcontent-length: %d\r\n\r\n" % (target.authorization, size)
        request = b"".join((self._start, request_id, self._length, body))
        connection.busy = True
        connection.lane = self
        connection.written_before = written = connection.written
        connection.written = written + len(request)
        transport.write(request)

    def _step_aside(self, data: bytes) -> None:
        """Let the protocol hear what came."""
        self.leave()
        self._protocol.data_received(data)

    def eof_received(self) -> None:
        """The client sends no more: the connection is closed."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        self.leave()
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._protocol.resume_writing()

    # an exchange

    def arrive(self, connection: Connection, body: bytes) -> bool:
        """The whole answer came, with a head that came before: pass it on. False: it is not ordinary."""
        front, protocol, target, transport = self._front, self._protocol, self._target, self._transport
        assert target is not None  # noqa: S101  # data_received saw to it
        known, common = target.answer_head, self._state.default_headers
        if known is None or known.came is not connection.repeated or known.common is not common:
            known = answer_head(target, 200, connection.repeated, protocol)
            connection.repeated = known.came
        if known.is_events or transport.is_closing():
            return False
        request_id = self._id
        self._body = b""
        size = len(body)
        if size != self._answer_bytes:
            self._answer_bytes = size
            self._answer_length = b"\r\ncontent-length: %d\r\n\r\n" % size
        self._connection = None
        now = monotonic()
        protocol.idle_since = now
        transport.write(b"".join((known.lines, request_id, self._answer_length, body)))
        connection.lane = None
        connection.busy = False
        gate, pool, came_from = target.gate, target.pool, connection.transport
        if came_from is None or came_from.get_write_buffer_size() or len(pool.idle) >= pool.max_idle:
            connection.close()
        else:
            pool.idle.append(connection)  # one that closes now is found closed by who takes it
        if gate.waiters:
            gate.release()
        else:
            gate.in_flight -= 1
        self.due = math.inf
        self._lease.release(ok=True)
        if target.breaker is not _CLOSED:
            target.succeeded()
        tokens = target.tokens.read(b"", body)
        seconds = now - self._began
        tally = target.tally
        tally.ok += 1
        tally.seconds += seconds
        if front.records:
            front.record(self._passage, request_id.decode(), (self._asked, target), 200, seconds, tokens)
        return True

    def leave(self) -> Express | None:
        """Let the protocol hear again; an exchange on its way turns into one that knows what else can happen."""
        self._protocol.come_back()
        connection, target = self._connection, self._target
        if connection is None or target is None:
            return None
        body, self._body, self._connection = self._body, b"", None
        express = Express(self._front, self._protocol, self._passage, body, (self._asked, target, self._lease))
        express.go_on(connection, self._id.decode(), self._began)
        self._front.deadlines.add(express, self._protocol.loop, self.due)
        self.due = math.inf
        connection.uncarry()
        self._protocol.under_way(express)
        return express

    def _aim(self, asked: object) -> Target | None:
        """The one server that answers to `asked`, if this caller may ask for it; remembered for the next request."""
        view, passage = self._view, self._passage
        if _seen or not isinstance(asked, str):
            _seen.clear()  # a second model
            return None
        target = view.only.get(asked)
        if target is None or not passage.grant.may_ask(asked, target.name):
            return None
        if target.changes_bodies or target.unit.rungs:
            return None
        self._asked, self._target = asked, target
        self._length_bytes = -1  # it has the target's key
        self._start = passage.start + target.authority + passage.lines
        self._timeout_s = view.directory.timeout_s(asked, target.unit)
        return target

    def overdue(self) -> None:
        """The whole timeout is over."""
        express = self.leave()
        if express is not None:
            express.overdue()
