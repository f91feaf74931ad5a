"""A small HTTP client for loopback and unix sockets, with limits of time and size.

httpx takes 0.2 s to import and a millisecond per request; a tiny model is ready in 30 ms.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import msgspec

from launcher.base.addresses import address_text, is_path
from launcher.base.decoding import UNREADABLE
from launcher.base.unix_socket import peer_pid

_MAX_BYTES = 4 * 1024**2
_REACHABLE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104
"""The address at which a listener is reached from this machine: wildcards become loopback."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Status and body of an answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is not JSON."""
        try:
            return msgspec.json.decode(self.body)
        except UNREADABLE:
            return None


class _Answer(msgspec.Struct):
    parser: Any = None
    body: bytearray = msgspec.field(default_factory=bytearray)
    done: bool = False
    reusable: bool = False

    def on_body(self, data: bytes) -> None:
        """Called by httptools for each piece of the body."""
        self.body += data

    def on_message_complete(self) -> None:
        """Called by httptools at the end; only now the parser knows whether the connection can be reused."""
        self.done = True
        self.reusable = self.parser.should_keep_alive()


class HttpConnection:
    """Requests to `host:port`, one after the other, on one connection, which is reopened when it was closed.

    `port` 0: `host` is the path of a unix socket.

    Polling a loading server every few milliseconds costs a tenth of what it does with a connection per request.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = _REACHABLE.get(host, host), port
        self._authority = "localhost" if is_path(host) else address_text(host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0
        """Number of connections made: while it stays the same, the same process answers."""
        self.peer = 0
        """Pid of the process at the other end of the last unix-socket connection; 0: none, or not visible from here."""

    async def request(
        self, path: str, *, timeout_s: float, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """GET `path`, or POST `body` as JSON.

        Raises OSError (TimeoutError and ConnectionError are such) when no complete HTTP answer comes within
        `timeout_s`.
        """
        content = b"" if body is None else msgspec.json.encode(body)
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        raw = "\r\n".join(lines).encode() + b"\r\n\r\n" + content
        async with asyncio.timeout(timeout_s):
            if self._streams is not None:
                try:
                    return await self._exchange(raw)
                except _StaleError:
                    pass  # it was closed for having been idle, or used often enough
            if is_path(self._host):
                self._streams = await asyncio.open_unix_connection(self._host)
                self.peer = peer_pid(self._streams[1].get_extra_info("socket"))
            else:
                self._streams = await asyncio.open_connection(self._host, self._port)
            self.opened += 1
            return await self._exchange(raw)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, raw: bytes) -> Reply:
        """Send `raw`, read one response; close the connection unless it can be reused. Raises _StaleError."""
        assert self._streams is not None  # noqa: S101 - the caller opened it
        reader, writer = self._streams
        answer = _Answer()
        answer.parser = httptools.HttpResponseParser(answer)
        try:
            writer.write(raw)
            while not answer.done and (data := await reader.read(65536)):
                answer.parser.feed_data(data)
                if len(answer.body) > _MAX_BYTES:
                    raise ConnectionError(f"the answer is longer than {_MAX_BYTES} bytes")
            status = answer.parser.get_status_code()
        except ConnectionResetError as error:
            raise _StaleError(str(error)) from error
        except httptools.HttpParserError as error:
            raise NotHttpError(f"not HTTP: {error}") from error
        finally:
            if not answer.reusable:
                self.close()
        if not status:
            raise _StaleError("closed without an answer")
        return Reply(status=status, body=bytes(answer.body))


class NotHttpError(ConnectionError):
    """The answer is not HTTP."""


class _StaleError(ConnectionError):
    """The server closed the connection before the first byte of an answer."""


async def request(
    host: str, port: int, path: str, *, timeout_s: float, body: Any = None, headers: dict[str, str] | None = None
) -> Reply:
    """One request on a connection of its own; see `HttpConnection.request`."""
    line = HttpConnection(host, port)
    try:
        return await line.request(path, timeout_s=timeout_s, body=body, headers=headers)
    finally:
        line.close()
