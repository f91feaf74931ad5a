"""Upstreams that misbehave: every request still gets a typed error or an honest end, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from launcher.route import Front
from launcher.route.problem import HttpError
from launcher.route.upstream import Connection
from tests.ports import free_port
from tests.route.fleet import (
    OK,
    SSE_HEAD,
    FakeFleet,
    RawClient,
    Script,
    Upstream,
    answering,
    ask,
    chunked,
    get,
    post,
    running,
    table,
    target,
    until,
)

pytestmark = pytest.mark.timeout(300)


def after_request(*writes: bytes, reset: bool = False) -> Script:
    """A script that reads a request, writes, and closes (or resets) the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            await reader.readuntil(b"}")
        for data in writes:
            writer.write(data)
            await writer.drain()
        if reset:
            await asyncio.sleep(0.02)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    return script


@contextlib.asynccontextmanager
async def fleet_of(script: Script, **changes: object) -> AsyncIterator[tuple[int, Upstream, FakeFleet]]:
    """A front over one scripted upstream `m`."""
    fleet = FakeFleet()
    async with Upstream(script) as up, running(Front(table(target("m", up.port, **changes)), fleet)) as port:
        yield port, up, fleet


GARBAGE = [
    b"hello\r\n\r\n",
    b"\x00" * 100,
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX-A: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * (1 << 20),
    b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 100_000,
]


@pytest.mark.parametrize("answer", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage(answer: bytes) -> None:
    """What is not HTTP becomes 502 `upstream_garbage`, and counts as a failure of the server."""
    async with fleet_of(after_request(answer)) as (port, up, fleet):
        got = await ask(port, post({"model": "m"}))
        assert (got.status, got.code) == (502, "upstream_garbage")
        assert fleet.left == [("m", False)]
        assert up.connections <= 2  # with the one that asked how it is


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("partial", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_death_before_the_answer(partial: bytes, *, reset: bool) -> None:
    """A fresh connection that dies before a whole head is 502, and the request is not sent again."""
    async with fleet_of(after_request(partial, reset=reset)) as (port, up, _):
        got = await ask(port, post({"model": "m"}))
        assert (got.status, got.code) == (502, "upstream_died")
        assert up.connections <= 2  # with the one that asked how it is


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "partial",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    ],
)
async def test_truncated_answer_is_never_a_clean_end(partial: bytes, *, reset: bool) -> None:
    """A body that breaks off reaches the client as a broken transfer."""
    async with fleet_of(after_request(partial, reset=reset)) as (port, _, fleet):
        async with RawClient(port) as client:
            client.send(post({"model": "m"}))
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                answer = await client.answer()
                assert not answer.clean
        await until(lambda: fleet.left == [("m", False)])


@pytest.mark.parametrize(
    ("path", "starts"),
    [
        ("/v1/chat/completions", b'data: {"error":{'),
        ("/v1/responses", b'event: error\ndata: {"error":{'),
        ("/v1/messages", b'event: error\ndata: {"type":"error"'),
    ],
)
async def test_death_of_a_stream_is_an_error_event(path: str, starts: bytes) -> None:
    """A stream whose server dies ends with an error event in the API's shape, without [DONE]."""
    script = after_request(SSE_HEAD + chunked(b"data: 1\n\n"), reset=True)
    async with fleet_of(script) as (port, _, _fleet):
        answer = await ask(port, post({"model": "m", "stream": True}, path))
    first, _, rest = answer.body.partition(b"\n\n")
    assert (answer.status, first, answer.clean) == (200, b"data: 1", True)
    assert rest.startswith(starts)
    assert b"upstream_died" in rest
    assert b"[DONE]" not in rest
    assert rest.endswith(b"\n\n")


async def test_death_inside_an_event() -> None:
    """A cut event is ended before the error event, so that the latter is parsed on its own."""
    script = after_request(SSE_HEAD + chunked(b'data: {"half'), reset=True)
    async with fleet_of(script) as (port, _, _fleet):
        answer = await ask(port, post({"model": "m"}))
    half, error = answer.body.strip().split(b"\n\n")
    assert half == b'data: {"half'
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_died"


async def test_bad_chunk_in_a_stream() -> None:
    """Garbage in the framing of a stream ends it with an error event."""
    async with fleet_of(after_request(SSE_HEAD + chunked(b"data: 1\n\n") + b"zz\r\n")) as (port, _, _fleet):
        answer = await ask(port, post({"model": "m"}))
    assert answer.body.startswith(b"data: 1\n\n")
    assert b"upstream_garbage" in answer.body


async def test_more_than_the_answer() -> None:
    """Bytes after a complete answer do not reach anybody, and the connection is not used again."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await up.read(reader)
            writer.write(OK + OK.replace(b"true", b"evil"))

    async with Upstream(script) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        async with RawClient(port) as client:
            for _ in range(3):
                assert (await client.ask(post({"model": "m"}))).json() == {"ok": True}
        assert up.connections == 3


async def test_unasked_bytes_on_an_idle_connection() -> None:
    """What an upstream says between requests is no answer to the next one."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(OK.replace(b"true", b"evil"))
        await reader.read()

    async with Upstream(script) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        assert (await ask(port, post({"model": "m"}))).json() == {"ok": True}
        await up.closed.wait()
        assert (await ask(port, post({"model": "m"}))).json() == {"ok": True}


class ClosesWhileAsked:
    """A server on plain sockets that answers once, and closes that connection at a stated moment."""

    def __init__(self) -> None:
        """Listens."""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.requests = 0

    def answer_one(self) -> socket.socket:
        """Accept, read one request, answer it."""
        sock, _ = self.listener.accept()
        while not sock.recv(1 << 16).endswith(b"}"):
            pass
        self.requests += 1
        sock.sendall(OK)
        return sock


@pytest.mark.parametrize("again", [True, False])
async def test_a_request_that_met_a_closed_connection_is_sent_once_more(*, again: bool) -> None:
    """The server's kernel took no byte of it: a fresh connection gets it, or else it is 503."""
    server = ClosesWhileAsked()
    front = Front(table(target("m", server.port)), FakeFleet())
    with server.listener:
        async with running(front) as port, RawClient(port) as client:
            answered = asyncio.create_task(asyncio.to_thread(server.answer_one))
            assert (await client.ask(post({"model": "m"}))).status == 200
            with await answered as kept:
                # both happen before the front's loop looks: it reads the request first, and then that the server left
                os.write(client.writer.get_extra_info("socket").fileno(), post({"model": "m"}))
            assert kept.fileno() < 0
            if not again:
                server.listener.close()
                answer = await client.answer()
                assert (answer.status, answer.code) == (503, "upstream_unreachable")
                return
            with await asyncio.to_thread(server.answer_one):
                assert (await client.answer()).status == 200
            assert server.requests == 2


async def test_a_request_that_reached_the_server_is_never_sent_again() -> None:
    """A kept connection closed after the request was read: it may have been executed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        writer.write(OK)
        await up.read(reader)

    async with Upstream(script) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        async with RawClient(port) as client:
            assert (await client.ask(post({"model": "m"}))).status == 200
            assert (await client.ask(post({"model": "m"}))).code == "upstream_died"
        assert [seen.line[:4] for seen in up.requests if seen.line.startswith("POST")] == ["POST"] * 2


async def test_no_retry_after_a_byte_was_received() -> None:
    """On a kept connection, too, an answer that has begun is not asked for again."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        writer.write(OK)
        await up.read(reader)
        writer.write(b"H")
        await writer.drain()

    async with Upstream(script) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        async with RawClient(port) as client:
            assert (await client.ask(post({"model": "m"}))).status == 200
            assert (await client.ask(post({"model": "m"}))).code == "upstream_died"
        assert len([seen for seen in up.requests if seen.line.startswith("POST")]) == 2


async def test_nobody_listens() -> None:
    """A refused connection is 503 with Retry-After: nothing was executed."""
    async with running(Front(table(target("m", free_port())), FakeFleet())) as port:
        got = await ask(port, post({"model": "m"}))
    assert (got.status, got.code, got.headers["retry-after"]) == (503, "upstream_unreachable", "1")


async def test_a_server_that_dies_between_the_connection_and_the_request() -> None:
    """A fresh connection may be closed before it is used: nothing was sent, so the server is unreachable."""

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def closed(connection: Connection) -> None:
        await until(connection.is_closed)

    async with Upstream(reset) as up:
        front = Front(table(target("m", up.port)), FakeFleet())
        async with running(front) as port:
            front.view.targets["m"].pool.check = closed
            got = await ask(port, post({"model": "m"}))
    assert (got.status, got.code, got.headers["retry-after"]) == (503, "upstream_unreachable", "1")


async def test_silent_server_times_out() -> None:
    """A server that never answers is given up after the request timeout, and its connection closed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        while await reader.read(65536):
            pass

    async with fleet_of(script, request_timeout_s=0.2) as (port, up, fleet):
        got = await ask(port, post({"model": "m"}))
        assert (got.status, got.code) == (504, "upstream_timeout")
        assert fleet.left == [("m", False)]
        await up.closed.wait()


async def test_stream_that_stalls_times_out() -> None:
    """A stream beyond the timeout ends with an error event."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunked(b"data: 1\n\n"))
        await reader.read(1)
        while await reader.read(65536):
            pass

    async with fleet_of(script, request_timeout_s=0.2) as (port, up, _):
        answer = await ask(port, post({"model": "m"}))
        assert b"upstream_timeout" in answer.body
        await up.closed.wait()


@pytest.mark.parametrize(("total_s", "cut"), [(None, False), (0.3, True)])
async def test_only_a_total_ends_a_stream_that_flows(total_s: float | None, *, cut: bool) -> None:
    """Time between bytes is what counts; a total cuts where one is set, and says so."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(SSE_HEAD)
        for i in range(16):
            writer.write(chunked(b"data: %d\n\n" % i))
            await asyncio.sleep(0.05)
        writer.write(b"0\r\n\r\n")

    async with fleet_of(script, request_timeout_s=0.4, total_timeout_s=total_s) as (port, _, __):
        answer = await ask(port, post({"model": "m"}))
    assert (b"data: 15" in answer.body, b"did not finish its answer in time" in answer.body) == (not cut, cut)


async def test_timeout_by_role() -> None:
    """`timeouts_s` of the role that was asked for comes before the server's own."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        while await reader.read(65536):
            pass

    async with Upstream(script) as up:
        front_table = table(target("m", up.port, roles=("slow", "fast")), timeouts_s={"fast": 0.1, "slow": 50.0})
        async with running(Front(front_table, FakeFleet())) as port:
            assert (await ask(port, post({"model": "fast"}))).code == "upstream_timeout"


async def test_client_that_stops_reading_cannot_hold_a_slot() -> None:
    """When the timeout comes while the client does not read, its connection is cut and the slot freed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        while True:
            writer.write(chunked(b"x" * 65536))
            await writer.drain()

    async with fleet_of(script, request_timeout_s=0.3) as (port, up, fleet), RawClient(port) as client:
        client.send(post({"model": "m"}))
        await client.head()
        await up.closed.wait()
        await until(lambda: fleet.left == [("m", False)])


@pytest.mark.parametrize("answered", [False, True])
async def test_client_that_leaves_closes_the_upstream(*, answered: bool) -> None:
    """A client that goes away, before or during its stream, ends the upstream connection: generation stops."""
    seen = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        seen.set()
        if answered:
            writer.write(SSE_HEAD + chunked(b"data: 1\n\n"))
        assert await reader.read() == b""

    fleet = FakeFleet()
    async with Upstream(script) as up, running(Front(table(target("m", up.port)), fleet)) as port:
        async with RawClient(port) as client:
            client.send(post({"model": "m"}))
            await seen.wait()
            if answered:
                await client.head()
        await asyncio.wait_for(up.closed.wait(), 5)
        await until(lambda: fleet.left == [("m", True)])


async def test_breaker_opens_and_the_fallback_answers() -> None:
    """After three failures the server is left alone; its fallback answers, without one 503."""
    async with answering(OK) as good, Upstream(after_request(b"garbage\r\n\r\n")) as bad:
        front_table = table(target("bad", bad.port), target("good", good.port), fallback={"bad": ("good",)})
        front = Front(front_table, FakeFleet())
        async with running(front) as port:
            codes = []
            for n in range(6):
                codes.append((await ask(port, post({"model": "bad"}))).status)
                failures = min(n + 1, 3)  # it was asked how it is, each time
                await until(lambda: front.view.targets["bad"].breaker.failures >= failures)  # noqa: B023
            metrics = (await ask(port, get("/metrics"))).body.decode()
    assert codes == [502, 502, 502, 200, 200, 200]
    assert 'launch_breaker_open{server="bad"} 1' in metrics
    assert 'launch_requests_total{server="bad",status="502"} 3' in metrics
    assert 'launch_requests_total{server="good",status="200"} 3' in metrics


async def test_open_breaker_without_fallback() -> None:
    """An open breaker is 503 with the time until the probe."""
    async with Upstream(after_request(b"garbage\r\n\r\n")) as up:
        front = Front(table(target("m", up.port)), FakeFleet())
        async with running(front) as port:
            for n in range(3):
                await ask(port, post({"model": "m"}))
                await until(lambda: front.view.targets["m"].breaker.failures > n)  # noqa: B023
            got = await ask(port, post({"model": "m"}))
    assert (got.status, got.code) == (503, "breaker_open")
    assert 0 < int(got.headers["retry-after"]) <= 30


@pytest.mark.parametrize(("seconds", "told"), [(None, None), (0.0, b"1"), (1.0, b"1"), (2.4, b"3"), (30.0, b"30")])
def test_retry_after_is_not_too_early(seconds: float | None, told: bytes | None) -> None:
    """Part of a second is rounded up: who comes when told is not refused for coming early."""
    assert HttpError(503, "c", "m", retry_after_s=seconds).retry_after == told


async def test_unreachable_server_fails_over_at_once() -> None:
    """A refused connection lets the next replica, or the fallback, answer the same request."""
    async with answering(OK) as good:
        front_table = table(target("dead", free_port()), target("good", good.port), fallback={"dead": ("good",)})
        async with running(Front(front_table, FakeFleet())) as port:
            got = await ask(port, post({"model": "dead"}))
    assert (got.status, got.headers["x-launch-server"]) == (200, "good")
