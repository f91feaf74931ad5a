"""A connection's later requests, whose heads are known, against its first: no client can tell them apart."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
from collections.abc import AsyncIterator

import pytest

from launcher.route import Front
from launcher.route.exchange import Exchange
from tests.route.fleet import (
    OK,
    SSE_HEAD,
    FakeFleet,
    RawClient,
    Upstream,
    ask,
    chunked,
    front_unit,
    get,
    post,
    running,
    table,
    target,
    until,
)

pytestmark = pytest.mark.timeout(300)
JSON = "Content-Type: application/json"
PRIMING = 2
"""After so many exchanges a connection of the client, and one to the server, have had the same heads before."""


class Primed(Upstream):
    """An upstream that answers the first requests of a connection plainly, and then writes what a test says."""

    def __init__(self, *writes: bytes, pause_s: float = 0.0, then_close: bool = True, priming: int = PRIMING) -> None:
        """`writes` are sent one by one, `pause_s` between them, after `priming` plain answers."""
        self.asked = 0
        self.priming = priming
        self._writes, self._pause_s, self._then_close = writes, pause_s, then_close
        super().__init__(self._answer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Plain answers, then the test's."""
        for _ in range(self.priming):
            await self.read(reader)
            writer.write(OK)
        seen = await self.read(reader)
        self.asked += seen.line.startswith("POST")  # and not that it is asked how it is
        for data in self._writes:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(self._pause_s)
        if not self._then_close:
            while True:
                await self.read(reader)
                writer.write(OK)


@contextlib.asynccontextmanager
async def primed(upstream: Upstream, **changes: object) -> AsyncIterator[RawClient]:
    """A client that has had its plain answers."""
    front = Front(table(target("m", upstream.port, **changes)), FakeFleet())
    async with running(front) as port, RawClient(port) as client:
        for _ in range(getattr(upstream, "priming", PRIMING)):
            answer = await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
            assert answer.json() == {"ok": True}
        yield client


async def seen_by_client(upstream: Primed) -> tuple[object, ...]:
    """What the client gets for the request after the priming, but for the request's id and the time."""
    async with upstream, primed(upstream) as client:
        client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
        try:
            answer = await client.answer()
        except (asyncio.IncompleteReadError, ConnectionError):
            return ("cut",)
        headers = {n: v for n, v in answer.headers.items() if n not in {"date", "x-request-id"}}
        if not answer.clean:
            return answer.status, "cut"
        body = re.sub(rb"req-[0-9a-f]+-[0-9a-f]+", b"req", answer.body)
        headers["content-length"] = str(len(body)) if "content-length" in headers else ""
        return answer.status, headers, body, await after(client)


async def after(client: RawClient) -> object:
    """What the connection is good for afterwards."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        return (await client.ask(get("/health"))).status
    return "closed"


ANSWERS = {
    "the same head": (OK,),
    "another length": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",),
    "an empty body": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",),
    "in two parts": (OK[:-4], OK[-4:]),
    "head and body apart": (OK[: OK.index(b"{")], OK[OK.index(b"{") :]),
    "byte by byte": tuple(bytes([b]) for b in OK),
    "another header": (OK.replace(b"Content-Type", b"X-More: 1\r\nContent-Type"),),
    "an error": (b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",),
    "without a body": (b"HTTP/1.1 204 No Content\r\n\r\n",),
    "interim first": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK,),
    "a stream": (SSE_HEAD + chunked(b"data: 1\n\n"), chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"),
    "a stream cut": (SSE_HEAD + chunked(b"data: 1\n\n"),),
    "chunked at once": (SSE_HEAD.replace(b"text/event-stream", b"application/json") + b"2\r\n{}\r\n0\r\n\r\n",),
    "until it closes": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}",),
    "too little": (OK.replace(b"11", b"99"),),
    "too much": (OK.replace(b"11", b"9"),),
    "two answers": (OK + OK,),
    "one and a half": (OK + b"HTTP/1.1 200 OK\r\nCont",),
    "a padded length": (OK.replace(b"11", b"0011"),),
    "a signed length": (OK.replace(b"11", b"+11"),),
    "two lengths": (OK.replace(b"Content-Type", b"Content-Length: 3\r\nContent-Type"),),
    "garbage": (b"hello\r\n\r\n",),
    "an upgrade": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",),
    "connection: close": (OK.replace(b"Content-Type", b"Connection: close\r\nContent-Type"),),
}


@pytest.mark.parametrize("writes", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_the_same_whenever_it_comes(writes: tuple[bytes, ...]) -> None:
    """Ordinary or not, whole or in parts, right or wrong: to the first request of a connection and to the third."""
    first, third = Primed(*writes, pause_s=0.002, priming=0), Primed(*writes, pause_s=0.002)
    assert await seen_by_client(third) == await seen_by_client(first)
    assert (first.asked, third.asked) == (1, 1)


async def test_a_server_that_goes_without_a_word() -> None:
    """A request that reached a server which then closes is not sent again."""
    first, third = Primed(priming=0), Primed()
    assert await seen_by_client(third) == await seen_by_client(first)
    assert (first.asked, third.asked) == (1, 1)


async def test_hundreds_of_requests_get_their_own_answers() -> None:
    """Bodies of many lengths, on a few connections at once."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = (await upstream.read(reader)).body
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)

    async def one_client(port: int, number: int) -> None:
        async with RawClient(port) as client:
            for turn in range(60):
                sent = {"model": "m", "text": "x" * (turn * 7 + number), "who": [number, turn]}
                assert (await client.ask(post(sent, "/v1/chat/completions", JSON))).json() == sent

    upstream = Upstream(echo)
    async with upstream, running(Front(table(target("m", upstream.port, slots=3)), FakeFleet())) as port:
        await asyncio.gather(*(one_client(port, n) for n in range(6)))
    assert len(upstream.requests) == 6 * 60


async def test_a_client_that_leaves_ends_the_exchange() -> None:
    """The upstream's connection is closed, which cancels the generation."""
    upstream = Primed(then_close=False)
    async with upstream:
        async with primed(upstream) as client:
            client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
            await until(lambda: upstream.asked == 1)
            client.writer.transport.abort()
        await asyncio.wait_for(upstream.closed.wait(), 10)


async def test_a_deadline_ends_the_exchange() -> None:
    """504 after the server's request_timeout_s, and the connection goes on."""
    upstream = Primed(then_close=False)
    async with upstream, primed(upstream, request_timeout_s=0.3) as client:
        answer = await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
        assert (answer.status, answer.code) == (504, "upstream_timeout")
        assert await after(client) == 200


async def test_a_second_request_behind_the_first() -> None:
    """A pipelined request waits its turn."""
    upstream = Primed(b"", OK, pause_s=0.1, then_close=False)
    async with upstream, primed(upstream) as client:
        client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
        await until(lambda: upstream.asked == 1)
        client.send(post({"model": "unknown"}, "/v1/chat/completions", JSON))
        assert [(await client.answer()).status for _ in range(2)] == [200, 404]


async def test_a_stop_lets_the_exchange_end() -> None:
    """The drain waits for what is in flight, and closes the connection afterwards."""
    upstream = Primed(b"", OK, pause_s=0.1, then_close=False)
    async with upstream:
        front = Front(table(target("m", upstream.port)), FakeFleet())
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(running(front, drain_timeout_s=5))
            async with RawClient(port) as client:
                for _ in range(PRIMING):
                    await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
                client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
                await until(lambda: upstream.asked == 1)
                stopping = asyncio.create_task(stack.pop_all().aclose())
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
            await stopping


async def test_requests_that_need_another_way() -> None:
    """No slot, another model, a name that is unknown, two models, a body that is no JSON: as ever."""
    upstream = Primed(OK, then_close=False)
    async with upstream, primed(upstream) as client:
        for body, status in [
            (b'{"model":"x"}', 404),
            (b'{"model":"m","model":"m"}', 400),
            (b"{", 400),
            (b'{"model":1}', 400),
            (b'{"mod\\u0065l":"m"}', 200),
            (b"{}", 200),
        ]:
            assert (await client.ask(post(body, "/v1/chat/completions", JSON))).status == status, body


async def test_a_new_table_holds_at_once() -> None:
    """The next request goes by the new table."""
    upstream = Primed(OK, then_close=False)
    async with upstream, Upstream(upstream._answer) as other:
        front = Front(table(target("m", upstream.port)), FakeFleet())
        async with running(front) as port, RawClient(port) as client:
            for _ in range(PRIMING):
                await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
            front.replace_table(table(target("other", other.port)))
            assert (await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))).status == 404
            assert (await client.ask(post({"model": "other"}, "/v1/chat/completions", JSON))).status == 200


async def test_keys_hold_for_every_request(tmp_path: object) -> None:
    """A key that may ask for one model asks for no other on the same connection."""
    keys = f"{tmp_path}/keys"
    with open(keys, "w", encoding="utf-8") as file:  # noqa: ASYNC230, PTH123  # a test's own file
        file.write("secret-key models=m\n")
    async with Primed(OK, then_close=False) as upstream:
        unit = front_unit(api_key_file=keys)
        front = Front(table(target("m", upstream.port), target("n", upstream.port), front=unit), FakeFleet())
        key = "Authorization: Bearer secret-key"
        async with running(front) as port, RawClient(port) as client:
            for model, status in [("m", 200), ("m", 200), ("m", 200), ("n", 403), ("m", 200)]:
                answer = await client.ask(post({"model": model}, "/v1/chat/completions", JSON, key))
                assert answer.status == status
            assert (await ask(port, post({"model": "m"}, "/v1/chat/completions", JSON))).status == 401


async def test_every_request_is_counted() -> None:
    """Metrics know all of a connection."""
    async with Primed(OK, then_close=False) as upstream, primed(upstream) as client:
        for _ in range(3):
            await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
        text = (await client.ask(get("/metrics"))).body.decode()
    assert re.search(r'^launch_requests_total\{[^}]*status="200"[^}]*\} 5$', text, re.MULTILINE), text


async def test_a_second_request_while_a_stream_is_answered() -> None:
    """What comes meanwhile waits for its end, and the connection goes on after both."""
    parts = (SSE_HEAD + chunked(b"data: 1\n\n"), chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    upstream = Primed(*parts, pause_s=0.1, then_close=False)
    async with upstream, primed(upstream) as client:
        client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
        await until(lambda: upstream.asked == 1)
        client.send(post({"model": "m"}, "/v1/chat/completions", JSON) * 2)
        stream, *others = [await client.answer() for _ in range(3)]
        assert stream.body == b"data: 1\n\ndata: [DONE]\n\n"
        assert [other.json() for other in others] == [{"ok": True}] * 2
        client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
        assert (await client.answer()).json() == {"ok": True}


async def test_a_resting_connection_is_closed_in_time() -> None:
    """`idle_timeout_s` holds for a connection that rests, and not for one that waits for its answer."""
    upstream = Primed(b"", OK, pause_s=1.2, then_close=False)
    async with upstream:
        front = Front(table(target("m", upstream.port), front=front_unit(idle_timeout_s=0.5)), FakeFleet())
        async with running(front) as port, RawClient(port) as client:
            for _ in range(PRIMING):
                await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
            assert (await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))).json() == {"ok": True}
            began = asyncio.get_running_loop().time()
            assert await client.closed()
            assert 0.3 < asyncio.get_running_loop().time() - began < 5


class Big(Upstream):
    """An upstream that answers two requests plainly, and then with 60 kB each."""

    def __init__(self) -> None:
        """Answers without end."""
        super().__init__(self._answer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Plain answers, then big ones."""
        while True:
            await self.read(reader)
            body = OK[-11:] if len(self.requests) <= PRIMING else b" " * (60_000 + len(self.requests))
            writer.write(OK[:-11].replace(b"11", b"%d" % len(body)) + body)

    async def fill(self, client: RawClient) -> int:
        """Have `client` ask and not read until the front does not even ask any more; how often it asked."""
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        while len(self.requests) == PRIMING + sent:
            client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
            sent += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while len(self.requests) < PRIMING + sent:  # noqa: ASYNC110  # a list has no event
                        await asyncio.sleep(0.001)
        return sent


async def test_a_client_that_does_not_read() -> None:
    """Its next requests wait; when it reads at last all answers are there, in order."""
    upstream = Big()
    async with upstream, primed(upstream) as client:
        sent = await upstream.fill(client)
        client.send(post({"model": "m"}, "/v1/chat/completions", JSON))
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        sizes = [len((await client.answer()).body) for _ in range(sent + 1)]
        assert sizes == [60_000 + PRIMING + n for n in range(1, sent + 2)]
        assert await after(client) == 200


async def test_answers_that_nobody_reads_are_dropped() -> None:
    """The tail of a finished answer is not kept for a client that reads nothing for twice `idle_timeout_s`."""
    upstream = Big()
    async with upstream:
        front = Front(table(target("m", upstream.port), front=front_unit(idle_timeout_s=0.3)), FakeFleet())
        async with running(front) as port, RawClient(port) as client:
            for _ in range(PRIMING):
                await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
            sent = await upstream.fill(client)
            await until(lambda: not front.clients.connections)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                _ = [await client.answer() for _ in range(sent)]  # the last that comes is cut


@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_that_rests_holds_no_body(*, stream: bool) -> None:
    """Nothing is left of an exchange that has ended: a thousand such connections may rest."""
    answer = SSE_HEAD + chunked(b"data: 1\n\n") + b"0\r\n\r\n" if stream else OK
    async with Primed(answer, then_close=False, priming=0) as upstream, primed(upstream) as client:
        await client.ask(post({"model": "m", "prompt": "x" * 50_000}, "/v1/chat/completions", JSON))
        gc.collect()
        assert [x for x in gc.get_objects() if isinstance(x, Exchange)] == []


async def test_the_limit_of_a_body_holds_for_every_request() -> None:
    """413 beyond `max_body_bytes`, and the server hears nothing of it."""
    async with Primed(OK, then_close=False) as upstream:
        front = Front(table(target("m", upstream.port), front=front_unit(max_body_bytes=1000)), FakeFleet())
        async with running(front) as port, RawClient(port) as client:
            for _ in range(PRIMING):
                await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
            answer = await client.ask(post({"model": "m", "p": "x" * 5000}, "/v1/chat/completions", JSON))
            assert (answer.status, answer.code) == (413, "body_too_large")
            assert len(upstream.requests) == PRIMING


@pytest.mark.parametrize("before", [0, 1, PRIMING])
async def test_a_body_that_stops_is_told_so(before: int) -> None:
    """408, whichever request of the connection it is."""
    async with Primed(OK, then_close=False) as upstream:
        front = Front(table(target("m", upstream.port), front=front_unit(idle_timeout_s=0.4)), FakeFleet())
        async with running(front) as port, RawClient(port) as client:
            for _ in range(before):
                await client.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
            client.send(post({"model": "m"}, "/v1/chat/completions", JSON)[:-3])
            answer = await client.answer()
            assert (answer.status, answer.code) == (408, "request_timeout")


async def test_a_client_that_reads_slowly_gets_all() -> None:
    """It reads a part every 0.3 s, so it is never idle for `idle_timeout_s` (0.6), though its answer waits longer."""
    upstream = Big()
    loop = asyncio.get_running_loop()
    request = post({"model": "m"}, "/v1/chat/completions", JSON)
    async with upstream:
        front = Front(table(target("m", upstream.port), front=front_unit(idle_timeout_s=0.6)), FakeFleet())
        async with running(front) as port:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", port))
                for _ in range(PRIMING):
                    await loop.sock_sendall(client, request)
                    await loop.sock_recv(client, 65536)
                (connection,) = front.clients.connections
                connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                await asyncio.sleep(0.05)
                await loop.sock_sendall(client, request)
                got = 0
                while got < 60_000:
                    await asyncio.sleep(0.3)
                    part = await asyncio.wait_for(loop.sock_recv(client, 5000), 5)
                    assert part
                    got += len(part)


async def test_loopback_is_spared_congestion_control() -> None:
    """The front's sockets to clients and servers of this machine are not paced, whatever the machine's default is."""
    async with Primed(OK, then_close=False) as upstream:
        front = Front(table(target("m", upstream.port)), FakeFleet())
        async with running(front) as port:
            await ask(port, get("/health"))  # it listened before it served
            async with RawClient(port) as raw:
                for _ in range(PRIMING):
                    await raw.ask(post({"model": "m"}, "/v1/chat/completions", JSON))
                (connection,) = front.view.targets["m"].pool.idle
                for side in (connection.transport, *(client.transport for client in front.clients.connections)):
                    assert side is not None
                    sock = side.get_extra_info("socket")
                    name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                    assert name.rstrip(b"\0") == b"reno"
