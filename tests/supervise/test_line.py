"""The small HTTP client on one connection, against servers that behave and that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from launcher.supervise.http import HttpConnection

Serve = Callable[..., Awaitable[int]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`serve(*replies)` → port: each request of each connection gets the next reply; b"" closes without one."""
    servers: list[asyncio.Server] = []

    async def start(*replies: bytes) -> int:
        left = list(replies)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readline():
                while (await reader.readline()).strip():
                    pass
                reply = left.pop(0)
                if not reply:
                    break
                writer.write(reply)
                if b"close" in reply.lower():
                    break
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_one_connection_serves_many_requests(serve: Serve) -> None:
    """Three answers, one connection; a POST too."""
    line = HttpConnection("127.0.0.1", await serve(OK, OK, OK))
    replies = [await line.request("/", timeout_s=5) for _ in range(2)]
    assert [(r.status, r.body) for r in replies] == [(200, b"ok")] * 2
    assert line.opened == 1
    line.close()


async def test_a_connection_that_was_closed_meanwhile_is_opened_again(serve: Serve) -> None:
    """Said (Connection: close) or unsaid: the next request goes through, on another connection."""
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    line = HttpConnection("127.0.0.1", await serve(closing, OK, b"", OK))
    assert [(await line.request("/", timeout_s=5)).status for _ in range(3)] == [200] * 3
    assert line.opened == 3
    line.close()


async def test_no_answer_is_no_answer(serve: Serve) -> None:
    """A fresh connection that is closed at once, no HTTP, nobody there: OSError, and the line can be used again."""
    line = HttpConnection("127.0.0.1", await serve(b"", b"220 mail close\r\n", OK))
    with pytest.raises(ConnectionError):
        await line.request("/", timeout_s=5)
    with pytest.raises(ConnectionError, match="not HTTP"):
        await line.request("/", timeout_s=5)
    assert (await line.request("/", timeout_s=5)).status == 200
    line.close()
