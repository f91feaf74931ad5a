"""uvicorn's HTTP/1.1 protocol, with the limits that it leaves to a proxy in front. I/O.

Added: a limit on the head's bytes and time, a limit on a body's silence, errors as JSON, trailers that do not pass as
headers, an Upgrade that is ignored without losing the body (Java's client offers h2c on every POST), and an `abort`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from launcher.route.client import ABORT_EXTENSION
from launcher.route.express import Express, depart
from launcher.route.lane import Lane
from launcher.route.passage import Passage, passage
from launcher.route.problem import HttpError, error_body
from launcher.route.repeat import repeated_head
from launcher.route.unchunked import without_chunks

if TYPE_CHECKING:
    from launcher.route.front import Front


_MAX_UPGRADES = 16
"""Requests with an Upgrade in one read: each is read from within the last."""
_RESET = struct.pack("ii", 1, 0)
_EXPRESS_DIGITS = 6
"""A body of a million bytes or more is read by the ASGI path, which holds its sender back."""


class FrontProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, front: Front, **kwargs: Any) -> None:
        """`front` gives the limits; the rest is uvicorn's."""
        super().__init__(**kwargs)
        self._front = front
        self._in_head = False
        self._between = True
        """The parser stands between two messages: the last one's body, too, is over."""
        self._ended_here = False
        self._head_shares = False
        """The head began behind the end of another message, in the same read."""
        self._head_bytes = 0
        self._silent_bytes = 0
        self._upgrades = 0
        self._deaf = False
        """What comes after the request that is being answered is lost: the connection ends with the answer."""
        self._read_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_is_for = ""
        self._replaying = False
        self._length: bytes | None = None
        self._passage: Passage | None = None
        self._parts: list[bytes] | None = None
        self._express: Express | None = None
        self._lane: Lane | None = None
        self._in_lane = False
        """`_lane` hears what comes on the connection, not this object."""
        self._running: RequestResponseCycle | None = None
        self.idle_since = 0.0
        """When the last answer ended, in seconds of the loop's clock; 0 while a request comes or is answered."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unread = -1
        """Bytes that the client had not read when its idle time was over, a whole idle time ago; -1: it was not."""

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; its first head is due."""
        super().connection_made(transport)  # type: ignore[arg-type]  # TCP gives a Transport
        self._arm("head", self._front.unit.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._disarm()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._leave_lane()
        self._close_lane()
        express, self._express = self._express, None
        if express is not None:
            express.client_left()
        self._tell_running()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._express is not None:
            self._express.progress()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests; what is still missing afterwards gets a deadline."""
        if self._deaf:
            return
        before = self.cycle
        fresh = not self._in_head and self._parts is None and (before is None or before.response_complete)
        self.idle_since = 0.0
        self._parse(data)
        if self.parser is not None and not self.transport.is_closing():
            cycle = self.cycle
            if self._in_head or self._timer is not None or cycle is None or cycle.response_complete or cycle.more_body:
                self._set_deadline(len(data))
            known = self._passage
            if fresh and self._lane is None and self._express is not None and known is not None and known.is_ordinary:
                head = repeated_head(data)
                if head is not None:
                    self._lane = Lane(self._front, self, known, head)

    def _parse(self, data: bytes) -> None:
        """Have llhttp read `data`, and call back."""
        self._read_bytes = len(data)
        self._ended_here = False
        self._silent_bytes += 0 if self._in_head or self._between else len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(HttpError(400, "invalid_http", "the request is not valid HTTP"))

    def under_way(self, express: Express) -> None:
        """The exchange on its way is `express` from now on."""
        self._express = express
        self.cycle = express  # type: ignore[assignment]  # it has what uvicorn asks a cycle for

    def _enter_lane(self) -> None:
        """Let the lane hear what comes next, if the connection rests between two messages and has one."""
        if self._lane is not None and self._between and not self._deaf and not self.flow.write_paused:
            self._disarm()
            self._in_lane = True
            self.transport.set_protocol(self._lane)

    def come_back(self) -> None:
        """Hear again what comes on the connection."""
        if self._in_lane:
            self._in_lane = False
            self.transport.set_protocol(self)

    def _leave_lane(self) -> None:
        """Hear again what comes, and what becomes of the exchange on its way."""
        if self._in_lane and self._lane is not None:
            self._lane.leave()

    def _close_lane(self) -> None:
        """Have no lane: another head came, or the connection ended."""
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def _set_deadline(self, received_bytes: int) -> None:
        """Give what is missing after these bytes a deadline: a head's is fixed, a body's moves with each part."""
        cycle = self.cycle
        if self._silent_bytes > self._front.unit.max_header_bytes:  # trailers, or extensions of chunks
            self._refuse_head()
        elif self._in_head:
            self._head_bytes += 0 if self._head_shares else received_bytes
            self._head_shares = False
            if self._head_bytes > self._front.unit.max_header_bytes:
                self._refuse_head()
            elif self._timer_is_for != "head":
                self._arm("head", self._front.unit.header_timeout_s)
        elif self._parts is not None:
            self._arm("body", self._front.unit.idle_timeout_s)
        elif cycle is None or cycle.response_complete:
            if self._timer is None and not self.idle_since:
                self._arm("head", self._front.unit.header_timeout_s)
        elif cycle.more_body:
            self._arm("body", self._front.unit.idle_timeout_s)
        elif self._timer is not None:
            self._disarm()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._replaying:
            return
        self._in_head = True
        self._between = False
        self._head_shares = self._ended_here
        self._head_bytes = self._silent_bytes = 0
        self.url = b""
        self.headers = []
        self._length = None

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        if not self._replaying:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; trailers are dropped, so that none passes as a header."""
        if self._in_head and not self._replaying:
            name = name.lower()
            if name == b"content-length":
                self._length = value
            else:
                self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is known: the request begins, unless its head is too big."""
        if self._replaying or self.transport.is_closing():
            return
        self._in_head = False
        limit = self._front.view.table.front.max_header_bytes
        self._silent_bytes = 0
        if self._head_bytes + self._read_bytes > limit and self._head_size() > limit:
            self._refuse_head()
        elif self._may_be_express():
            self._parts = []
        else:
            self._begin_cycle()

    def on_body(self, body: bytes) -> None:
        """A part of the body, unless the request was refused."""
        self._silent_bytes = 0
        if self._parts is not None:
            self._parts.append(body)
        elif not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request ends; one that asks for an upgrade only seems to, its body is still to come."""
        parts = self._parts
        if parts is not None:
            self._parts = None
            self._between = self._ended_here = True
            if not self.transport.is_closing() and self._passage is not None:
                self._depart(self._passage, parts[0] if len(parts) == 1 else b"".join(parts))
            return
        if self.transport.is_closing() or (self.parser.should_upgrade() and not self._replaying):
            return
        self._replaying = False
        self._between = self._ended_here = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is complete: the next pipelined request, or rest. One timer for all rests: it is not moved."""
        self.server_state.total_requests += 1
        self._express = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self.idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._rested)
        self._enter_lane()

    def _rested(self) -> None:
        """Close the connection if it was idle all the time, else look again when that may be so."""
        self._idle_timer = None
        before, self._unread = self._unread, -1
        if not self.idle_since and not self._in_lane:
            return
        since = self.idle_since or self.loop.time()
        left = since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._rested)
            return
        unread = self.transport.get_write_buffer_size()
        if not unread:
            self.timeout_keep_alive_handler()
        elif unread == before:
            self.abort()  # a close would wait for who does not read
        else:
            self._unread = unread
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._rested)

    # the two paths

    def _may_be_express(self) -> bool:
        """Whether the head, known now, allows the fast path."""
        parser, front, cycle = self.parser, self._front, self.cycle
        if self._length is None or not front.express or len(self._length) > _EXPRESS_DIGITS:
            return False
        if parser.get_method() != b"POST" or not parser.should_keep_alive() or parser.get_http_version() != "1.1":
            return False
        if cycle is not None and not cycle.response_complete:
            return False
        view = front.view
        if int(self._length) > view.table.front.max_body_bytes:
            return False
        known = self._passage
        if known is None or not known.matches(view, self.url, self.headers):
            known = self._passage = passage(view, self.url, self.headers)
            self._close_lane()
        return known is not None

    def _depart(self, head: Passage, body: bytes) -> None:
        """The whole request is here: send it on its way."""
        express = depart(self._front, self, head, body)
        if express is None:
            self.begin_asgi(head, body)
            return
        self.under_way(express)
        express.start()

    def begin_asgi(self, head: Passage, body: bytes) -> None:
        """Give a request that came whole to the ASGI path; the parser may be at a later one already."""
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": [*head.headers, (b"content-length", b"%d" % len(body))],
            "state": {},
            "method": "POST",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "extensions": {ABORT_EXTENSION: {"call": self.abort}},
        }
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self._express is None or self._express.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += body
        cycle.more_body = False
        cycle.message_event.set()
        if self._express is None or cast("object", self.cycle) is self._express:
            self.cycle = cycle
        self._express = None
        self._start_asgi_task(cycle, self.app)

    def shutdown(self) -> None:
        """No further request after those that began; one whose body still comes has begun."""
        self._leave_lane()
        parts = self._parts
        if parts is not None:
            self._parts = None
            self._begin_cycle()
            self.cycle.body += b"".join(parts)
        super().shutdown()

    def _begin_cycle(self) -> None:
        """Start uvicorn's cycle for the head that was read."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        headers = headers if self._length is None else [*headers, (b"content-length", self._length)]
        self.headers = self.scope["headers"] = headers
        expects = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers)
        self.expect_100_continue = expects and self.parser.get_http_version() == "1.1"
        self.scope["extensions"] = {ABORT_EXTENSION: {"call": self.abort}}
        super().on_headers_complete()

    def cut_short(self) -> None:
        """The front's drain is over: end what the fast path has in flight."""
        self._leave_lane()
        if self._express is not None:
            self._express.stop()

    # ours

    def abort(self) -> None:
        """Reset the connection: the client sees a broken transfer, also where its end would have ended the answer."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):  # it is closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def refuse(self, error: HttpError) -> None:
        """Answer what never became a request, and close. Where an answer has begun, only close.

        A whole request that is still being answered is answered first: the error is not its own.
        """
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not (cycle.response_complete or cycle.more_body):
            cycle.keep_alive = False
            self._deaf = True
            return
        resting = self._between or self._in_head or self._parts is not None
        if cycle is not None and cycle.response_complete and not resting:
            self.transport.close()  # what is wrong with its body, a request that has its answer need not know
            return
        if cycle is None or cycle.response_complete or not (cycle.response_started or self.pipeline):
            body = error_body(error, "openai", "")
            self.transport.write(
                b"".join(
                    (
                        STATUS_LINE[error.status],
                        b"content-type: application/json\r\ncontent-length: ",
                        str(len(body)).encode(),
                        b"\r\nconnection: close\r\n\r\n",
                        body,
                    )
                )
            )
        self._tell_running()
        self.transport.close()

    def _tell_running(self) -> None:
        """Whoever answers now writes no more: uvicorn tells the last request of the connection only."""
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """A request begins on the ASGI path."""
        self._running = cycle
        old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, without_chunks(app, cycle) if old else app)

    def _head_size(self) -> int:
        """Bytes of the head's target and lines."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_head(self) -> None:
        """The head is beyond the limit."""
        limit = self._front.unit.max_header_bytes
        self.refuse(HttpError(431, "headers_too_large", f"the headers exceed {limit} bytes (max_header_bytes)"))

    def _without_upgrade(self, rest: bytes) -> None:
        """Go on as if no Upgrade had been asked for: `rest` is the body that llhttp left unread, and what follows."""
        if self._upgrades > _MAX_UPGRADES:
            self.refuse(HttpError(400, "invalid_http", "too many requests at once ask for an upgrade"))
            return
        framing = [n + b": " + v for n, v in self.headers if n in (b"content-length", b"transfer-encoding")]
        self._replaying = True
        self.parser = httptools.HttpRequestParser(self)
        self._upgrades += 1
        self.data_received(b"\r\n".join((b"POST / HTTP/1.1", *framing, b"", b"")) + rest)
        self._upgrades -= 1

    def _arm(self, what: str, timeout_s: float) -> None:
        """Give the client `timeout_s` for the rest of its head, or for the next bytes of its body."""
        self._disarm()
        self._timer_is_for = what
        self._timer = self.loop.call_later(timeout_s, self._late)

    def _disarm(self) -> None:
        """Nothing is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_is_for = ""

    def _late(self) -> None:
        """The client let its deadline pass."""
        what = self._timer_is_for
        self._timer = None
        self._timer_is_for = ""
        if what == "body" and self.flow.read_paused:
            self._arm(what, self._front.unit.idle_timeout_s)
            return
        answered = what == "body" and self._parts is None and self.cycle is not None and self.cycle.response_complete
        if answered or (what == "head" and not self._in_head):
            self.transport.close()
            return
        self.refuse(HttpError(408, "request_timeout", f"the rest of the request's {what} did not come in time"))
