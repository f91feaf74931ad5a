"""The shortest way through the front, for a request like the last one of its connection and an ordinary answer. I/O.

Nothing is allocated for such an exchange but its bytes: it is a few fields here. Whatever else happens to it (another
kind of answer, a failure, a client that leaves, a deadline) turns it into an `Express`, which knows the rest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from launcher.route import breaker
from launcher.route.express import Express, answer_head
from launcher.route.peek import peek_json
from launcher.route.problem import HttpError
from launcher.route.target import SERVING, Target

if TYPE_CHECKING:
    from launcher.route.front import Front
    from launcher.route.passage import Passage
    from launcher.route.protocol import FrontProtocol
    from launcher.route.repeat import RepeatedHead
    from launcher.route.upstream import Connection


class Lane:
    """One client connection's requests with the head that came before; at most one is on its way."""

    __slots__ = (
        "_answer_bytes",
        "_answer_length",
        "_asked",
        "_began",
        "_body",
        "_connection",
        "_front",
        "_id",
        "_length",
        "_length_bytes",
        "_protocol",
        "_repeat",
        "_start",
        "_target",
        "_timeout_s",
        "passage",
    )

    def __init__(self, front: Front, protocol: FrontProtocol, passage: Passage, repeat: RepeatedHead) -> None:
        """`repeat` is the head that `passage` was made of."""
        self._front = front
        self._protocol = protocol
        self.passage = passage
        self._repeat = repeat
        self._asked = ""
        self._target: Target | None = None
        self._start = self._body = self._id = b""
        self._timeout_s = self._began = 0.0
        self._length_bytes = self._answer_bytes = -1
        self._length = self._answer_length = b""
        """The last request's and answer's Content-Length: the next are often as long, and formatting costs as much as
        all the joining."""
        self._connection: Connection | None = None

    def body_of(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole request with the known head, under the same table."""
        start = self._repeat.body_start(data)
        return data[start:] if start and self.passage.view is self._front.view else None

    def depart(self, body: bytes) -> bool:
        """Send the request on. False: it is not ordinary, or a server is not at hand, and nothing was done."""
        front, protocol = self._front, self._protocol
        try:
            asked = peek_json(body).model
        except HttpError:
            return False
        target = self._target
        if target is None or asked != self._asked:
            target = self._aim(asked)
            if target is None:
                return False
        gate = target.gate
        if (
            target.breaker is not breaker.CLOSED
            or gate.in_flight >= gate.slots
            or gate.waiters
            or protocol.flow.write_paused
            or front.upstreams.state(target.name) not in SERVING
        ):
            return False
        connection = target.pool.take_repeating()
        if connection is None:
            return False
        gate.in_flight += 1
        front.upstreams.enter(target.name)
        self._id = request_id = front.ids.fresh()
        self._body = body
        self._connection = connection
        self._began = began = time.monotonic()  # the loop's clock
        deadlines, at = front.deadlines, began + self._timeout_s
        deadlines.entries[self] = at
        if at < deadlines.armed_at:
            deadlines.arm(protocol.loop, at)
        size = len(body)
        if size != self._length_bytes:
            self._length_bytes = size
            self._length = b"\r\n%bcontent-length: %d\r\n\r\n" % (target.authorization, size)
        connection.carry(self, b"".join((self._start, request_id, self._length, body)))
        return True

    def arrive(self, body: bytes) -> bool:
        """The whole answer came, with a head that came before: pass it on. False: it is not ordinary."""
        front, protocol, target, connection = self._front, self._protocol, self._target, self._connection
        assert target is not None  # noqa: S101  # depart saw to both
        assert connection is not None  # noqa: S101
        known = target.answer_head
        common = protocol.server_state.default_headers
        if known is None or known.came is not connection.repeated or known.common is not common:
            known = answer_head(target, 200, connection.repeated, protocol)
            connection.repeated = known.came
        if known.is_events or protocol.transport.is_closing():
            return False
        request_id = self._id
        size = len(body)
        if size != self._answer_bytes:
            self._answer_bytes = size
            self._answer_length = b"\r\ncontent-length: %d\r\n\r\n" % size
        protocol.transport.write(b"".join((known.lines, request_id, self._answer_length, body)))
        self._connection = None
        target.pool.put_back_whole(connection)
        gate = target.gate
        if gate.waiters:
            gate.release()
        else:
            gate.in_flight -= 1
        front.deadlines.entries.pop(self, None)
        front.upstreams.leave(target.name, ok=True)
        if target.breaker is not breaker.CLOSED:
            target.succeeded()
        tokens = target.tokens.read(b"", body)
        seconds = time.monotonic() - self._began
        target.tally.add(200, seconds)
        if front.records:
            front.record(self.passage, request_id.decode(), (self._asked, target), 200, seconds, tokens)
        protocol.on_response_complete()
        return True

    def leave(self) -> Express | None:
        """Turn the exchange that is on its way, if one is, into one that knows what else can happen."""
        connection, target = self._connection, self._target
        if connection is None or target is None:
            return None
        self._connection = None
        express = Express(self._front, self._protocol, self.passage, self._body, (self._asked, target))
        express.go_on(connection, self._id.decode(), self._began)
        self._front.deadlines.hand_over(self, express)
        connection.uncarry()
        self._protocol.under_way(express)
        return express

    def _aim(self, asked: str | None) -> Target | None:
        """The one server that answers to `asked`, if this caller may ask for it; remembered for the next request."""
        view, passage = self.passage.view, self.passage
        target = view.only.get(asked) if asked else None
        if asked is None or target is None or not passage.grant.may_ask(asked, target.name):
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
