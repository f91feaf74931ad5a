"""A front that waits for its turn: clients get to who leads as if it were that one, or are told that nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from launcher.runtime.relay import Relay

FreePort = Callable[[], int]
ASK = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"


class Waiting:
    """A relay, and who leads."""

    def __init__(self, port: int, *, encrypted: bool) -> None:
        self.port = port
        self.leader: tuple[str, int] | None = None
        self.relay = Relay(lambda: self.leader, encrypted=encrypted)

    async def said(self, raw: bytes) -> bytes:
        """All that comes back until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            async with asyncio.timeout(60):
                return await reader.read(-1)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def waiting(request: pytest.FixtureRequest, free_port: FreePort) -> AsyncIterator[Waiting]:
    """One that listens."""
    made = Waiting(free_port(), encrypted=request.param)
    await made.relay.open(socket.create_server(("127.0.0.1", made.port)))
    yield made
    made.relay.hand_over().close()
    await made.relay.end()


async def test_nobody_is_refused_while_it_is_handed_over(waiting: Waiting) -> None:
    """Who connects after the relay and before the front is accepted by the front."""
    async with contextlib.AsyncExitStack() as stack:
        left = stack.enter_context(waiting.relay.hand_over())
        _, writer = await asyncio.open_connection("127.0.0.1", waiting.port)
        stack.callback(writer.close)
        came = asyncio.Event()

        async def serve(_: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
            came.set()
            there.close()

        server = await asyncio.start_server(serve, sock=left)
        async with asyncio.timeout(60):
            await came.wait()
        server.close()
    again = socket.create_server(("127.0.0.1", waiting.port))  # nobody listens there any more
    await waiting.relay.open(again)


async def test_nobody_leads(waiting: Waiting, free_port: FreePort) -> None:
    """A typed error that says when to ask again; to a client that begins with TLS, a closed connection."""
    for leader in (None, ("127.0.0.1", free_port())):
        waiting.leader = leader
        answer = await waiting.said(ASK)
        if waiting.relay._encrypted:
            assert answer == b""
            continue
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert json.loads(body)["error"]["code"] == "front_waiting"


async def test_the_leader_ends_before_it_answers(waiting: Waiting) -> None:
    """Who asked is told so, with a type; who was answered something gets no more than that."""
    says = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    waiting.leader = ("127.0.0.1", server.sockets[0].getsockname()[1])
    answer = await waiting.said(ASK)
    assert (b'"code":"front_ended"' in answer) != waiting.relay._encrypted
    assert waiting.relay._encrypted or answer.startswith(b"HTTP/1.1 502 ")
    says = b"HTTP/1.1 200 OK\r\n"
    assert await waiting.said(b"x") in (says, b"")  # a reset may take what came
    server.close()


async def test_we_end_before_the_leader_answers(waiting: Waiting) -> None:
    """Who still waits is told so, with a type."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    waiting.leader = ("127.0.0.1", server.sockets[0].getsockname()[1])
    asking = asyncio.create_task(waiting.said(ASK))
    async with asyncio.timeout(60):
        await asked.wait()
    await waiting.relay.end()
    assert (b'"code":"front_ended"' in await asking) != waiting.relay._encrypted
    server.close()


async def test_all_bytes_go_through(waiting: Waiting) -> None:
    """Both ways and whole, however many; when the leader ends a connection, the client's ends; it may change."""
    answers = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = await reader.readexactly(1_000_000)
        answers[writer.get_extra_info("sockname")[1]] = raw
        writer.write(raw[::-1])
        await writer.drain()
        writer.close()

    for number in range(2):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        waiting.leader = ("127.0.0.1", port)
        sent = bytes([number, 1, 2, 3]) * 250_000
        assert await waiting.said(sent) == sent[::-1]
        assert answers[port] == sent
        server.close()


async def test_a_client_that_leaves(waiting: Waiting) -> None:
    """Its connection to the leader ends, so that nobody computes for nobody; and at the end none is left."""
    left = asyncio.Event()
    there = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.set()
        await reader.read(-1)
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    waiting.leader = ("127.0.0.1", server.sockets[0].getsockname()[1])
    _, writer = await asyncio.open_connection("127.0.0.1", waiting.port)
    writer.write(b"x")
    await there.wait()
    writer.close()
    async with asyncio.timeout(60):
        await left.wait()
    server.close()
