"""One client connection: its requests answered in order, the framing of answers, the client's deadlines. I/O."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import cast

from launcher.route.clients import FULL, Clients, Member
from launcher.route.deadlines import Deadlines
from launcher.route.framing import PLAIN, STATUS_LINES, Framing, error_lines, framing_of
from launcher.route.handler import Handler
from launcher.route.head import Head
from launcher.route.problem import HttpError, error_body, shape_of
from launcher.route.reader import UNCOUNTED_BYTES, RequestReader
from launcher.route.sockets import client_of, reset_on_close

_UNREAD_BYTES = 16 * 1024
_UNREAD_TLS_BYTES = 64 * 1024
"""Bytes buffered for a client that does not read, before writing pauses; the loop's default for TLS is 512 KiB."""
_DISCARD_S = 1.0
"""How long a refused upload is still read, so that its sender sees the refusal and not a reset."""


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class ClientConnection(Deadlines, asyncio.BufferedProtocol):
    """One connection. Its requests are answered in order, each by its handler, with `begin` and `write`."""

    _clients: Clients
    _instead_of: Member | None = None
    """The TLS handshake whose place among the connections it takes."""
    transport: asyncio.Transport = dataclasses.field(init=False)
    peer: str = ""
    """The client's IP address."""
    client: str = ""
    """Address whose connections are limited: the peer's, for IPv6 its /64 network."""
    scheme: str = "http"
    write_paused: bool = False
    _reader: RequestReader = dataclasses.field(init=False)
    _reading: Handler | None = None  # whose body comes; None: it is dropped
    _active: Handler | None = None  # who answers now
    _waiting: list[Handler] = dataclasses.field(default_factory=list)  # a deque takes 600 bytes while it is empty
    _taking_turns: bool = False
    _paused: bool = False  # nothing is read: others wait already
    _last: bool = False  # the connection ends when all that came is answered
    _close_after_answer: bool = False  # it ends with the present answer
    _discards_upload: bool = False  # it ends when a body has come that nobody reads
    _pending: bytes = b""  # the answer's head, which is not written yet
    _framing: Framing = PLAIN
    _unread: int = -1
    """Bytes unread by the client when its last idle time was over; -1: it was not over yet."""

    def __post_init__(self) -> None:
        self._reader = RequestReader(self, self._clients)

    def handlers(self) -> tuple[Handler, ...]:
        """The handler that answers now, then those that wait for their turn."""
        return (*(() if self._active is None else (self._active,)), *self._waiting)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection; the first head is due."""
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.client = client_of(self.peer)
        if transport.get_extra_info("sslcontext"):
            self.scheme = "https"
        self.transport.set_write_buffer_limits(_UNREAD_TLS_BYTES if self.scheme == "https" else _UNREAD_BYTES)
        if self._instead_of is not None:
            self._clients.ended(self._instead_of)
            self._instead_of = None
        if not self._clients.admit(self):
            self._reader.failed = True
            self.error(FULL)
            transport.close()
            return
        self.set_client_deadline(self._clients.unit.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's
        """Tell the handlers that the client disconnected."""
        self.cancel_deadlines()
        self._drop_waiting()
        self._reader.close()
        self._reading = None
        active, self._active = self._active, None
        if active is not None:
            active.client_left()
        self._clients.ended(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the protocol's
        """The buffer for the next bytes; `buffer_updated` copies them out at once."""
        return self._clients.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Read requests; a deadline is set for what is missing: fixed for a head, moving for a body."""
        if not self._reader.feed(bytes(self._clients.buffer[:nbytes])):
            self._after_read(nbytes)

    def eof_received(self) -> bool:
        """Whether to keep the connection, now that the client sends no more.

        A client that closes and one that only shuts down its sending side look alike until something is written. A
        generation would hold its slot for a client that is gone: it ends. Requests that take no slot are still
        answered. (With TLS the connection ends as a whole.)
        """
        if self.scheme == "https" or any(handler.head.takes_slot for handler in self.handlers()):
            return False
        self._last = True
        return self._reader.place != "body" and (bool(self._reader.unread) or self._active is not None)

    def _after_read(self, count: int = 0) -> None:
        """Set deadlines, pause, or queue what was read too much of. `count`: bytes that arrived."""
        reader = self._reader
        if reader.failed or self._discards_upload:
            return
        unit = self._clients.unit
        if reader.unread:
            self._pause()
            if self._can_go_on():
                self._clients.take_turns_with_others(self)
        elif reader.counted and reader.place == "body" and not self._clients.held.admits(self):
            if not self._reader.discards:
                self._pause()
                self.client_due = math.inf
            return
        elif count and reader.place == "body" and self._clients.has_read_enough(self, count):
            self._pause()
        if reader.place == "body" or (self.write_paused and self._active is None):
            self.set_client_deadline(unit.idle_timeout_s)
        elif reader.place == "head" and reader.head_is_new:
            reader.head_is_new = False
            self.set_client_deadline(unit.header_timeout_s)

    def pause_writing(self) -> None:
        """The client does not read: give it until its idle time is over."""
        self.write_paused = True
        self._clients.stopped_reading(self)
        if self._reader.place != "body":
            self._unread = -1
            self.set_client_deadline(self._clients.unit.idle_timeout_s)

    def resume_writing(self) -> None:
        """The client reads again: go on writing, or with the next request."""
        self.write_paused = False
        self._clients.reads_again(self)
        if self._reader.place != "body":
            self.client_due = math.inf
        if self._active is not None:
            self._active.progress()
        else:
            self._next()

    # --- what the reader tells --------------------------------------------------------------------------------

    def on_request(self, head: Head, length: bytes | None) -> None:
        """A head has arrived: begin to answer, or queue the request."""
        if self.transport.is_closing():
            return
        handler = self._reading = self._clients.handle(self, head)
        handler.length = length
        if self._active is None and not self._waiting and not self.write_paused:
            self._begin(handler)
        else:
            self._queue(handler)

    def on_whole_request(self, head: Head, body: bytes) -> bool:
        """Head and body have arrived at once. Returns whether the request had its turn, not queued."""
        self.client_due = math.inf
        handler = self._clients.handle(self, head, body)
        if len(body) > UNCOUNTED_BYTES:
            handler.held = len(body)
            self._clients.held.add_whole(handler.held)
        if not (self._active or self._waiting or self.write_paused):
            self._active = handler
            handler.opened()  # it is a plain one: nothing else to do
            return True
        self._queue(handler)
        return False

    def on_request_complete(self, body: bytes | None) -> None:
        """The body has arrived; None where it was discarded."""
        self.client_due = math.inf
        handler, self._reading = self._reading, None
        if self._reader.counted:
            self._uploaded(handler)
        if handler is not None and body is not None:
            handler.body = body
            handler.complete = True
            if handler is self._active:
                handler.received()
        elif self._discards_upload:
            self._close()
        elif self._active is None and not self._waiting:
            self._wait_for_next()

    def on_unacceptable(self, error: HttpError) -> None:
        """Refuse what cannot be read; whole requests before it are answered first."""
        if self.transport.is_closing():
            return
        reading, self._reading = self._reading, None
        self._last = self._last or self._reader.failed
        if reading is not None and (reading is self._active or not self._last):
            reading.refuse(error)
        elif reading is not None:
            self._waiting.remove(reading)
            reading.drop_body()
        elif self._active is None and not self._waiting:
            if not (self._reader.discards and self._reader.place == "body"):
                self.error(error)  # what is wrong with its body, a request that has its answer need not know
            self._close()

    # --- answers ----------------------------------------------------------------------------------------------

    def begin(self, status: int, lines: bytes, length: bytes | None, *, close: bool = False) -> None:
        """Set the answer's status, whole header `lines` and body length (None: unknown).

        The head is sent with the first `write`. `close` ends the connection after the answer.
        """
        active, known = self._active, length is not None
        if active is None:  # what could not be read
            framing = framing_of(status, "", "1.1", known_length=known, close=True)
        elif status != 200 or close or self._last or self._clients.stopping:
            head = active.head
            last = (self._last or self._clients.stopping) and not (self._waiting or self._reader.unread)
            close = close or last or not head.keep_alive
            framing = framing_of(status, head.method, head.version, known_length=known, close=close)
        else:
            framing = active.head.with_length if known else active.head.in_parts
        self._framing = framing
        if framing.close:
            self._close_after_answer = True
        if framing.has_length and length is not None:
            lines = b"".join((lines, b"content-length: ", length, b"\r\n"))
        self._pending = b"".join((STATUS_LINES[status], self._clients.date, lines, framing.lines))

    def write(self, data: bytes, done: bool) -> None:
        """Send a part of the answer's body; `done` marks the last one."""
        framing, out = self._framing, self._pending
        if framing.chunked:
            if data:
                out = b"%b%x\r\n%b\r\n" % (out, len(data), data)
            if done:
                out += b"0\r\n\r\n"
        elif framing.has_body:
            out += data
        self._pending = b""
        if out and not self.transport.is_closing():
            self.transport.write(out)

    def error(self, error: HttpError, path: str = "", request_id: bytes = b"", more: bytes = b"") -> None:
        """Send a whole answer for an error, in the format of `path`'s API; `more`: further header lines."""
        data = error_body(error, shape_of(path), request_id.decode("ascii"))
        lines = error_lines(error, request_id, more)
        self.begin(error.status, lines, b"%d" % len(data), close=error.close)
        self.write(data, True)

    def answered(self) -> None:
        """The answer is complete: go on with the next request, wait for one, or close."""
        handler, self._active = self._active, None
        self.answer_due = math.inf
        if self.transport.is_closing():
            return
        if self._reading is handler:
            self._reading = None
            self._reader.discard()
        if self._close_after_answer:
            self._end()
        elif self._waiting:
            self._next()
        else:
            self._wait_for_next()

    def abort(self) -> None:
        """Reset the connection: the client sees a broken transfer."""
        reset_on_close(self.transport.get_extra_info("socket"))
        self.transport.abort()

    def _queue(self, handler: Handler) -> None:
        handler.has_turn = False
        self._waiting.append(handler)
        self._pause()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _begin(self, handler: Handler) -> None:
        self._active = handler
        if handler.refusal is not None:
            handler.refuse(handler.refusal)
            return
        handler.opened()
        if handler.head.expects_continue and self._active is handler and not handler.complete:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _next(self) -> None:
        """Begin the queued requests. A loop, no recursion: thousands may be answered at once."""
        if self._taking_turns:
            return
        self._taking_turns = True
        while self._waiting and self._active is None and not (self.write_paused or self.transport.is_closing()):
            handler = self._waiting.pop(0)
            handler.has_turn = True
            self._begin(handler)
        self._taking_turns = False
        if not self._waiting:
            self._read_on()
        if self._active is None:
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        """Everything is answered: wait for the next request."""
        reader, clients = self._reader, self._clients
        if self._taking_turns or self.transport.is_closing():
            return
        if self._waiting or (reader.unread and self.write_paused):  # for a client that does not read
            self.set_client_deadline(clients.unit.idle_timeout_s)
        elif reader.unread:
            clients.take_turns_with_others(self)
        elif self._last or (clients.stopping and reader.place != "body"):
            self._end()
        elif reader.place == "between":
            self._unread = -1
            self.set_client_deadline(clients.unit.idle_timeout_s)

    def _read_on(self) -> None:
        """Resume reading, once nothing is queued and everything that came was read."""
        if not self._paused or self in self._clients.held.waiting or self.transport.is_closing():
            return
        if self._reader.unread:
            if self._can_go_on():
                self._clients.take_turns_with_others(self)
        else:
            self._paused = False
            self.transport.resume_reading()
            if self._reader.place == "body":
                self.set_client_deadline(self._clients.unit.idle_timeout_s)

    def _end(self) -> None:
        """Close, after the rest of a refused upload if it comes soon."""
        self._drop_waiting()
        if self._reader.place != "body" or self._reader.failed:
            self._close()
            return
        self._discards_upload = True
        self._read_on()
        self.set_client_deadline(_DISCARD_S)

    def _close(self) -> None:
        """Close once everything is written, or when the client does not read it."""
        self.transport.close()
        self.set_client_deadline(self._clients.unit.idle_timeout_s)

    def drain(self) -> None:
        """Close if no request is under way; one whose body is still arriving is."""
        if not (self._active or self._waiting or self._reader.unread) and self._reader.place != "body":
            self._close()

    def stop_requests(self) -> None:
        """The drain is over: stop what is under way."""
        self._drop_waiting()
        if self._active is not None:
            self._active.stop()

    # --- room for all: see `Member` ---------------------------------------------------------------------------

    @property
    def idle_since(self) -> float | None:
        """When the client's deadline passes (loop time); None: it has a request."""
        busy = self._active or self._waiting or self._reader.unread or self._reader.place == "body"
        return None if busy or self.write_paused else self.client_due

    @property
    def uploaded(self) -> int:
        """Counted bytes of the body that is arriving."""
        return self._reader.counted

    def read_on(self) -> None:
        """Resume an upload that had to wait for memory."""
        if not self._waiting:
            self._read_on()

    def refuse_upload(self, error: HttpError) -> None:
        """Refuse the request whose body is arriving."""
        self._reader.discard()
        self._clients.held.ended(self)
        self.on_unacceptable(error)
        self.read_on()

    def take_turn(self) -> bool:
        """Answer one more pipelined request; returns whether another can be answered now."""
        if not self._reader.unread or not self._can_go_on():
            return False
        self._reader.go_on()
        if self._reader.unread:
            return self._can_go_on()
        if not self._waiting:
            self._read_on()
        self._after_read()
        return False

    def _can_go_on(self) -> bool:
        """Whether pipelined bytes can be read now: the present request's body, or the next request."""
        if self._waiting or self.transport.is_closing():
            return False
        return self._reader.place == "body" or not (self._active or self.write_paused)

    def _uploaded(self, handler: Handler | None) -> None:
        """Hand the count of a whole body over to its handler."""
        reader, held = self._reader, self._clients.held
        count, reader.counted = reader.counted, 0
        if handler is None:
            held.drop_arriving(count)
        else:
            handler.held = count
            held.add_whole(count, arrived=count)
        held.ended(self)

    def _drop_waiting(self) -> None:
        for handler in self._waiting:
            handler.drop_body()
        self._waiting.clear()

    def on_answer_deadline(self) -> None:
        """The answer's deadline has passed."""
        if self._active is not None:
            self._active.overdue()

    def on_client_deadline(self) -> None:
        """The client's deadline has passed: refuse what is incomplete, or close."""
        place, closing = self._reader.place, self.transport.is_closing()
        if self._discards_upload and not closing:
            self._close()
        elif closing or place == "between" or self.write_paused or (self._waiting and self._active is None):
            unread = self.transport.get_write_buffer_size()
            if not unread:
                self._close()
            elif unread == self._unread:
                self.abort()  # a close would wait for who does not read
            else:
                self._unread = unread
                self.set_client_deadline(self._clients.unit.idle_timeout_s)
        elif self._paused:
            self.set_client_deadline(self._clients.unit.idle_timeout_s)
        else:
            self._reader.failed = True
            message = f"the rest of the request's {place} did not come in time"
            self.on_unacceptable(HttpError(408, "request_timeout", message, close=True))
