"""A small HTTP client for loopback: one request, one connection, a bound on time and size.

httpx takes 0.2 s to import and a millisecond a request; a tiny model is ready in 30 ms.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import msgspec

_MAX_BYTES = 4 * 1024**2


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Status and body of an answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON, or None when it is something else."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None


class _Collector:
    """Receives httptools' callbacks for one response."""

    def __init__(self) -> None:
        """Nothing was received yet."""
        self.body = bytearray()
        self.done = False

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self.body += data

    def on_message_complete(self) -> None:
        """The response is whole."""
        self.done = True


async def request(
    host: str, port: int, path: str, *, timeout_s: float, body: Any = None, headers: dict[str, str] | None = None
) -> Reply:
    """GET `path`, or POST `body` as JSON, to `host:port`.

    Raises OSError (TimeoutError and ConnectionError are such) when there is no whole HTTP answer in `timeout_s`.
    """
    raw = b"" if body is None else msgspec.json.encode(body)
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Connection: close",
        *(f"{k}: {v}" for k, v in (headers or {}).items()),
    ]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"]
    async with asyncio.timeout(timeout_s):
        return await _exchange(reachable(host), port, "\r\n".join(lines).encode() + b"\r\n\r\n" + raw)


def reachable(host: str) -> str:
    """The address at which a listener on `host` is reached from here: wildcards become loopback."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104


async def _exchange(host: str, port: int, raw: bytes) -> Reply:
    """Send `raw`, read one response."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(raw)
        collector = _Collector()
        parser = httptools.HttpResponseParser(collector)
        while not collector.done and (data := await reader.read(65536)):
            parser.feed_data(data)
            if len(collector.body) > _MAX_BYTES:
                raise ConnectionError(f"the answer is longer than {_MAX_BYTES} bytes")
        status = parser.get_status_code()
    except httptools.HttpParserError as error:
        raise ConnectionError(f"not HTTP: {error}") from error
    finally:
        writer.close()
    if not status:
        raise ConnectionError("closed without an answer")
    return Reply(status=status, body=bytes(collector.body))
