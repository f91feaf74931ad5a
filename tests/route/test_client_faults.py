"""Clients that misbehave: typed refusals, nothing hangs, nothing crosses from one request to another."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from launcher.route import Front
from tests.route.fleet import (
    OK,
    SSE_HEAD,
    FakeFleet,
    RawClient,
    Upstream,
    answering,
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

H = b"POST /x HTTP/1.1\r\nHost: localhost\r\n"
BAD_HTTP = {
    "not http": b"hello there\r\n\r\n",
    "nul": b"\x00\x01\x02\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "two lengths": H + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "same length twice": H + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "length list": H + b"Content-Length: 2, 2\r\n\r\n{}",
    "length and chunked": H + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "chunked and length": H + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
    "signed length": H + b"Content-Length: +2\r\n\r\n{}",
    "negative length": H + b"Content-Length: -2\r\n\r\n{}",
    "hex length": H + b"Content-Length: 0x2\r\n\r\n{}",
    "huge length": H + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    "space before colon": H + b"Content-Length : 2\r\n\r\n{}",
    "folded header": H + b"X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "chunked not last": H + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two codings": H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "bad chunk size": H + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk too long": H + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n",
    "bare lf": b"POST /x HTTP/1.1\nHost: localhost\nContent-Length: 2\n\n{}",
    "bare cr": b"POST /x HTTP/1.1\rHost: localhost\r\r",
    "no version": b"GET /x\r\n\r\n",
    "bad version": b"GET /x HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "raw utf-8 target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nul in header": H + b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "bad header name": H + b"X A: b\r\nContent-Length: 2\r\n\r\n{}",
    "connect": b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n",
}


@pytest.mark.parametrize("raw", BAD_HTTP.values(), ids=BAD_HTTP)
async def test_bad_http_is_refused(raw: bytes) -> None:
    """Ambiguous or invalid framing is 400 and a closed connection; no upstream hears of it."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        async with RawClient(port) as client:
            answer = await client.ask(raw + get("/evil") if not raw.startswith(b"\x16") else raw)
            assert answer.status == 400
            assert answer.code in ("invalid_http", "invalid_target", "host_required")
            assert await client.closed()
        assert up.requests == []


REFUSED = {
    "an unknown coding": (H + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, "unknown_coding"),
    "a coding beside chunked": (
        H + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        501,
        "unknown_coding",
    ),
    "no json": (post(b"hello"), 400, "invalid_json"),
    "half json": (post(b'{"model":"m"'), 400, "invalid_json"),
    "more than json": (post(b'{"model":"m"} {}'), 400, "invalid_json"),
    "bare number": (post(b"1"), 400, "invalid_json"),
    "string": (post(b'"m"'), 400, "invalid_json"),
    "invalid utf-8 model": (post(b'{"model":"\xff"}'), 400, "invalid_json"),
    "deep": (post(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, "invalid_json"),
    "number": (post({"model": 5}), 400, "invalid_model"),
    "object": (post({"model": {"a": 1}}), 400, "invalid_model"),
    "two models": (post(b'{"model":"m","model":"n"}'), 400, "duplicate_model"),
    "two spellings": (post(b'{"model":"m","mod\\u0065l":"n"}'), 400, "duplicate_model"),
    "two in query": (get("/props?model=m&model=n"), 400, "duplicate_model"),
    "unknown": (post({"model": "nn"}), 404, "model_not_found"),
    "unknown in header": (post(b"", "/x", "X-Model: nn"), 404, "model_not_found"),
    "form without boundary": (post(b"x", "/x", "Content-Type: multipart/form-data"), 400, "invalid_form"),
    "foreign form": (post(b"x", "/x", "Content-Type: multipart/form-data; boundary=B"), 400, "invalid_form"),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "host_required"),
    "two hosts": (get("/v1/models", "Host: localhost"), 400, "duplicate_header"),
    "two keys": (get("/v1/models", "X-Api-Key: a", "X-Api-Key: b"), 400, "duplicate_header"),
    "asterisk": (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid_target"),
    "an escape of one server only": (post({"model": "m"}, "/%u0073lots/0?action=erase"), 400, "invalid_target"),
    "half an escape": (get("/v1/models/%4"), 400, "invalid_target"),
    "trace": (get("/x", method="TRACE"), 405, "method_not_allowed"),
    "announced too long": (H + b"Content-Length: 99999999\r\n\r\n", 413, "body_too_large"),
    "too long": (post(b'{"a":"' + b"x" * (1 << 20) + b'"}'), 413, "body_too_large"),
}


@pytest.mark.parametrize(("raw", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_bad_requests_are_refused(raw: bytes, status: int, code: str) -> None:
    """A request that cannot be routed gets a typed error; no upstream hears of it."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        answer = await ask(port, raw)
        assert (answer.status, answer.code) == (status, code)
        assert up.requests == []


async def test_chunked_beyond_the_limit() -> None:
    """An upload that announces no length is refused where it exceeds the limit, while it still comes."""
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port)), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        client.send(H + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*[b"x" * 65536] * 40) + b"0\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert await client.closed()


async def test_too_large_with_expect() -> None:
    """A client that asks first is refused without 100, and the connection closed: its body may or may not come."""
    raw = H + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port)), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        assert (await client.ask(raw)).status == 413
        assert await client.closed()


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("header", [b"X-A: %s", b"%s: a", b"X-A: a\r\n" * 2000 + b"X-B: %s"])
async def test_oversized_headers(header: bytes, *, complete: bool) -> None:
    """A head beyond the limit is 431, whether its end comes or not."""
    lines = header.replace(b"%s", b"a" * 20_000)
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        async with RawClient(port) as client:
            answer = await client.ask(b"GET /x HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n\r\n" * complete)
            assert (answer.status, answer.code) == (431, "headers_too_large")
            assert await client.closed()
        assert up.requests == []


async def test_long_target() -> None:
    """A target beyond the limit counts as head."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        assert (await ask(port, get("/" + "a" * 20_000))).status == 431


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /x HT", H, H + b"Content-Length: 20\r\n\r\n{"])
async def test_slow_clients_are_cut(sent: bytes) -> None:
    """Whoever does not finish a head or a body in time is told so, if a request had begun, and cut."""
    unit = front_unit(header_timeout_s=0.15, idle_timeout_s=0.15)
    async with answering(OK) as up, running(Front(table(target("m", up.port), front=unit), FakeFleet())) as port:
        async with RawClient(port) as client:
            client.send(sent)
            if len(sent) > 2:
                answer = await client.answer()
                assert (answer.status, answer.code) == (408, "request_timeout")
            assert await client.closed()
        assert up.requests == []


async def test_dripping_head_is_cut() -> None:
    """One byte now and then does not extend the head's deadline, on a kept connection either."""
    unit = front_unit(header_timeout_s=0.2)
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port), front=unit), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        assert (await client.ask(post({"model": "m"}))).status == 200
        with contextlib.suppress(ConnectionError):
            for byte in H * 10:
                client.send(bytes([byte]))
                await asyncio.sleep(0.02)
                if client.reader.at_eof() or client.writer.is_closing():
                    break
        assert client.reader.at_eof() or client.writer.is_closing()


async def test_slow_body_that_moves_is_no_slow_client() -> None:
    """A body may take longer than the limit on its silence."""
    unit = front_unit(idle_timeout_s=1.0)
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port), front=unit), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        for byte in post({"model": "m"})[:-8]:
            client.send(bytes([byte]))
        for byte in post({"model": "m"})[-8:]:
            await asyncio.sleep(0.15)
            client.send(bytes([byte]))
        assert (await client.answer()).status == 200


async def test_garbage_after_a_request_does_not_enter_its_answer() -> None:
    """What follows a request on its connection cannot write into the answer that is under way."""
    step = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nstart")
        await step.wait()
        writer.write(b"x" * 95)

    async with (
        Upstream(script) as up,
        running(Front(table(target("m", up.port)), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        client.send(post({"model": "m"}))
        await client.head()
        assert await client.reader.readexactly(5) == b"start"
        for _ in range(2):
            client.send(b"garbage\r\n\r\n" + post({"model": "m"}))
            await asyncio.sleep(0.02)
        step.set()
        assert await client.reader.readexactly(95) == b"x" * 95
        assert await client.closed()
    assert len(up.requests) == 1


async def test_connection_close_is_honoured() -> None:
    """A client that wants no more than one answer gets one, and requests after it are not served."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        async with RawClient(port) as client:
            answer = await client.ask(post({"model": "m"}, "/x", "Connection: close") + post({"model": "m"}))
            assert answer.headers["connection"] == "close"
            assert await client.closed()
        assert len(up.requests) == 1


async def test_chunks_of_http_1_0_end_the_connection() -> None:
    """It knows none: somebody between may have taken what follows for the body."""
    head = b"POST /x HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        async with RawClient(port) as client:
            answer = await client.ask(head + b"2\r\n{}\r\n0\r\n\r\n" + post({"model": "m"}))
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await client.closed()
        assert len(up.requests) == 1


async def test_smuggled_request_is_a_body() -> None:
    """A request inside a body stays a body."""
    body = b'{"model":"m","x":"' + b"\\r\\nGET /evil HTTP/1.1" + b'"}'
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        assert (await ask(port, post(body))).status == 200
    assert [r.body for r in up.requests] == [body]


async def test_header_injection_is_impossible() -> None:
    """Encoded line breaks in target and id stay what they are."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        answer = await ask(port, get("/a%0d%0aX-Evil:%201?model=m&x=%0d%0a", "X-Request-Id: a%0d%0ab c"))
    assert up.requests[0].line == "GET /a%0d%0aX-Evil:%201?model=m&x=%0d%0a HTTP/1.1"
    assert up.requests[0].header("x-evil") is None
    assert answer.headers["x-request-id"].startswith("req-")


async def test_early_refusal_of_an_expectation_closes() -> None:
    """A refused `Expect` request leaves no doubt about where the next one begins."""
    raw = post({"model": "m"}, "/x", "Expect: 100-continue", "Origin: https://evil.example").partition(b"\r\n\r\n")[0]
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port)), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        assert (await client.ask(raw + b"\r\n\r\n")).status == 403
        assert await client.closed()


async def test_half_closed_client_counts_as_gone() -> None:
    """A client that closes its side has left: its request is cancelled upstream."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        await reader.read()

    async with (
        Upstream(script) as up,
        running(Front(table(target("m", up.port)), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        client.send(post({"model": "m"}))
        client.writer.write_eof()
        await asyncio.wait_for(up.closed.wait(), 5)


@pytest.mark.parametrize("count", [1, 300])
async def test_who_only_ends_its_side_is_answered_where_nothing_is_generated(count: int) -> None:
    """One request that a server answers late, or hundreds at once whose last bytes come with the end."""
    ended = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        await ended.wait()
        writer.write(OK)

    async with (
        Upstream(script) as up,
        running(Front(table(target("m", up.port)), FakeFleet())) as port,
        RawClient(port) as client,
    ):
        client.send(get("/props") if count == 1 else get("/health") * count)
        client.writer.write_eof()
        if count == 1:
            await until(lambda: bool(up.requests))
        ended.set()
        for _ in range(count):
            assert (await client.answer()).status == 200
        assert await client.closed()


async def test_who_ends_its_side_within_a_body_has_left() -> None:
    """The rest will never come: nothing of it stays."""
    front = Front(table(target("m", 1)), FakeFleet())
    async with running(front) as port, RawClient(port) as client:
        client.send(post(b"a" * 100_000)[:-1])
        await until(lambda: front.clients.held.arriving > 0)
        client.writer.write_eof()
        assert await client.closed()
        assert front.clients.held.arriving == 0


async def test_clients_that_leave_early_leak_nothing() -> None:
    """Two hundred clients that leave at any point of their request leave no slot taken (checked by `running`)."""
    raw = post({"model": "m", "x": "y" * 50})
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        for i in range(200):
            async with RawClient(port) as client:
                client.send(raw[: i % (len(raw) + 1)])
                await asyncio.sleep(0)
        assert (await ask(port, raw)).status == 200


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
async def test_a_client_that_leaves_its_answer_is_no_fault_of_ours(
    kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged or counted as an error, though its socket is closed when it is to be reset."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await upstream.read(reader)
        writer.write(SSE_HEAD.replace(b"text/event-stream", kind))
        while not writer.transport.is_closing():
            writer.write(chunked(b"data: 1\n\n"))
            await asyncio.sleep(0.01)

    upstream = Upstream(endless)
    async with upstream:
        front = Front(table(target("m", upstream.port)), FakeFleet())
        async with running(front) as port:
            for _ in range(3):
                async with RawClient(port) as client:
                    client.send(post({"model": "m"}))
                    await client.head()
                    await asyncio.sleep(0.05)
                    client.writer.transport.abort()
            await asyncio.sleep(0.2)
        assert dict(front.refused) == {}
        assert [record.getMessage() for record in caplog.records] == []
