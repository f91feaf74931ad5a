"""uvicorn's HTTP/1.1 protocol, with the limits that it leaves to a proxy in front. I/O.

Added: a limit on the head's bytes and time, a limit on a body's silence, errors as JSON, trailers that do not pass as
headers, an Upgrade that is ignored without losing the body (Java's client offers h2c on every POST), and an `abort`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from launcher.route.client import ABORT_EXTENSION
from launcher.route.problem import HttpError, error_body

if TYPE_CHECKING:
    from launcher.route.front import Front


class FrontProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(self, front: Front, **kwargs: Any) -> None:
        """`front` gives the limits; the rest is uvicorn's."""
        super().__init__(**kwargs)
        self._front = front
        self._in_head = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_is_for = ""
        self._replaying = False

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; its first head is due."""
        super().connection_made(transport)  # type: ignore[arg-type]  # TCP gives a Transport
        self._arm("head", self._front.unit.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of requests; what is still missing afterwards gets a deadline."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(HttpError(400, "invalid_http", "the request is not valid HTTP"))
        if self.parser is not None and not self.transport.is_closing():
            self._set_deadline(len(data))

    def _set_deadline(self, received_bytes: int) -> None:
        """Give what is missing after these bytes a deadline: a head's is fixed, a body's moves with each part."""
        cycle = self.cycle
        if self._in_head:
            self._head_bytes += received_bytes
            if self._head_bytes > self._front.unit.max_header_bytes:
                self._refuse_head()
            elif self._timer_is_for != "head":
                self._arm("head", self._front.unit.header_timeout_s)
        elif cycle is None or cycle.response_complete:
            if self._timer is None and self.timeout_keep_alive_task is None:
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
        self._head_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: {"call": self.abort}}

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        if not self._replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; trailers are dropped, so that none passes as a header."""
        if self._in_head and not self._replaying:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is known: the request begins, unless its head is too big."""
        if self._replaying or self.transport.is_closing():
            return
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._front.unit.max_header_bytes:
            self._refuse_head()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body, unless the request was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request ends; one that asks for an upgrade only seems to, its body is still to come."""
        if self.transport.is_closing() or (self.parser.should_upgrade() and not self._replaying):
            return
        self._replaying = False
        super().on_message_complete()

    # ours

    def abort(self) -> None:
        """Cut the connection at once: the client sees a broken transfer."""
        self.transport.abort()

    def refuse(self, error: HttpError) -> None:
        """Answer what never became a request, and close. Where an answer is under way, only close."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
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
        self.transport.close()

    def _refuse_head(self) -> None:
        """The head is beyond the limit."""
        limit = self._front.unit.max_header_bytes
        self.refuse(HttpError(431, "headers_too_large", f"the headers exceed {limit} bytes (max_header_bytes)"))

    def _without_upgrade(self, rest: bytes) -> None:
        """Go on as if no Upgrade had been asked for: `rest` is the body that llhttp left unread, and what follows."""
        framing = [n + b": " + v for n, v in self.headers if n in (b"content-length", b"transfer-encoding")]
        self._replaying = True
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join((b"POST / HTTP/1.1", *framing, b"", b"")) + rest)

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
            return
        if what == "head" and not self._in_head:
            self.transport.close()
            return
        self.refuse(HttpError(408, "request_timeout", f"the rest of the request's {what} did not come in time"))
