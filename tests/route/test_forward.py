"""Requests that go well: what reaches the upstream, what comes back."""

from __future__ import annotations

import asyncio
import json

import pytest

from launcher.route import Front, StaticUpstreams
from tests.route.fleet import (
    OK,
    SSE_HEAD,
    RawClient,
    Upstream,
    answering,
    ask,
    chunked,
    get,
    post,
    running,
    table,
    target,
)


async def test_body_is_forwarded_unchanged_and_answer_comes_back() -> None:
    """Path, query and the exact bytes of the body arrive; hop-by-hop headers and keys do not."""
    body = b'{ "model" : "m",\n "n": 1.50, "s":"\\u00e9" }'
    headers = ("X-Custom: 1", "Connection: keep-alive, x-hop", "X-Hop: a", "Authorization: Bearer k", "TE: trailers")
    async with answering(OK) as up, running(Front(table(target("m", up.port)), StaticUpstreams())) as port:
        answer = await ask(port, post(body, "/v1/chat/completions?a=b%20c", *headers))
    assert (answer.status, answer.json()) == (200, {"ok": True})
    assert answer.headers["x-launch-server"] == "m"
    seen = up.requests[0]
    assert seen.line == "POST /v1/chat/completions?a=b%20c HTTP/1.1"
    assert seen.body == body
    assert seen.header("host") == f"127.0.0.1:{up.port}"
    assert seen.header("x-custom") == "1"
    assert seen.header("x-request-id") == answer.headers["x-request-id"]
    for name in ("authorization", "x-hop", "te", "connection"):
        assert seen.header(name) is None


async def test_upstream_connection_is_reused() -> None:
    """Ten requests one after another need one upstream connection."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), StaticUpstreams())) as port:
        async with RawClient(port) as client:
            for _ in range(10):
                assert (await client.ask(post({"model": "m"}))).status == 200
        assert up.connections == 1


async def test_stream_is_passed_on_unbuffered() -> None:
    """Each event reaches the client before the upstream sends the next one."""
    step = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        writer.write(SSE_HEAD)
        for i in range(3):
            writer.write(chunked(b"data: %d\n\n" % i))
            await step.wait()
            step.clear()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with (
        Upstream(script) as up,
        running(Front(table(target("m", up.port)), StaticUpstreams())) as port,
        RawClient(port) as client,
    ):
        client.send(post({"model": "m", "stream": True}))
        status, headers = await client.head()
        assert (status, headers["x-accel-buffering"]) == (200, "no")
        for i in range(3):
            assert await client.chunk() == b"data: %d\n\n" % i
            step.set()
        assert await client.chunk() == b""


async def test_chunked_request_gets_a_length() -> None:
    """A chunked upload is collected and forwarded with its exact length; a trailer is no header."""
    body = b'{"model":"m"}'
    head = b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: x-model\r\n\r\n"
    async with answering(OK) as up, running(Front(table(target("m", up.port)), StaticUpstreams())) as port:
        raw = head + chunked(body[:5], body[5:]) + b"0\r\nX-Model: other\r\nHost: evil\r\n\r\n"
        assert (await ask(port, raw)).status == 200
    assert up.requests[0].body == body
    assert up.requests[0].header("content-length") == str(len(body))


async def test_byte_by_byte() -> None:
    """A request that comes one byte at a time is a request."""
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port)), StaticUpstreams())) as port,
        RawClient(port) as client,
    ):
        for byte in post({"model": "m"}):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200


async def test_answer_byte_by_byte() -> None:
    """An answer that comes one byte at a time is an answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        for byte in b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + SSE_HEAD + chunked(b"a", b"bc") + b"0\r\nT: 1\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0.0005)
        await reader.read()

    async with Upstream(script) as up, running(Front(table(target("m", up.port)), StaticUpstreams())) as port:
        answer = await ask(port, post({"model": "m"}))
    assert (answer.status, answer.body, answer.clean) == (200, b"abc", True)
    assert "link" not in answer.headers


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Five requests in one segment give five answers in their order."""
    answers = [f"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{i}".encode() for i in range(5)]
    async with (
        answering(*answers) as up,
        running(Front(table(target("m", up.port)), StaticUpstreams())) as port,
        RawClient(port) as client,
    ):
        client.send(post({"model": "m"}) * 5)
        assert [(await client.answer()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_expect_continue() -> None:
    """A client that asks first is told to go on, and then answered."""
    raw = post({"model": "m"}, "/x", "Expect: 100-continue")
    head, _, body = raw.partition(b"\r\n\r\n")
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port)), StaticUpstreams())) as port,
        RawClient(port) as client,
    ):
        client.send(head + b"\r\n\r\n")
        assert (await client.head())[0] == 100
        assert (await client.ask(body)).status == 200
    assert up.requests[0].header("expect") is None


async def test_upgrade_offer_does_not_lose_the_body() -> None:
    """Java's client offers h2c with its body; the offer is ignored, the connection goes on."""
    raw = post({"model": "m", "x": 1}, "/x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: a")
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port)), StaticUpstreams())) as port,
        RawClient(port) as client,
    ):
        assert (await client.ask(raw)).status == 200
        client.send(raw[:-4])
        await asyncio.sleep(0.01)
        assert (await client.ask(raw[-4:])).status == 200
        assert (await client.ask(post({"model": "m"}))).status == 200
    assert [json.loads(r.body).get("x") for r in up.requests] == [1, 1, None]
    assert up.requests[0].header("upgrade") is None
    assert up.requests[0].header("http2-settings") is None


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_get_goes_to_the_model_of_the_query(method: str) -> None:
    """`/props?model=b` asks server b, without a slot; HEAD's answer has no body though it names a length."""
    answer_bytes = OK if method == "GET" else OK.partition(b"{")[0]
    async with answering(OK) as a, answering(answer_bytes) as b:
        front = Front(table(target("a", a.port), target("b", b.port)), StaticUpstreams())
        async with running(front) as port:
            for _ in range(2):
                answer = await ask(port, get("/props?model=b", method=method))
                assert (answer.status, answer.headers["content-length"]) == (200, "11")
    assert (len(a.requests), len(b.requests)) == (0, 2)


async def test_answer_without_length_ends_with_the_connection() -> None:
    """An HTTP/1.0 style answer is complete when the upstream closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello")
        await writer.drain()

    async with Upstream(script) as up, running(Front(table(target("m", up.port)), StaticUpstreams())) as port:
        for _ in range(2):
            answer = await ask(port, post({"model": "m"}))
            assert (answer.status, answer.body, answer.clean) == (200, b"hello", True)
    assert up.connections == 2


@pytest.mark.parametrize("kept", [True, False], ids=["keep-alive", "close"])
@pytest.mark.parametrize("length", [True, False], ids=["a length", "a stream"])
async def test_http_1_0_gets_no_chunks(*, kept: bool, length: bool) -> None:
    """An answer without a length ends with the connection, whatever the client asked for."""
    given = OK if length else SSE_HEAD + chunked(b"data: 1\n\n") + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    raw = post({"model": "m"}, "/x", *(["Connection: keep-alive"] if kept else [])).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with (
        answering(given) as up,
        running(Front(table(target("m", up.port)), StaticUpstreams())) as port,
        RawClient(port) as client,
    ):
        client.send(raw)
        status, headers = await client.head()
        assert (status, "transfer-encoding" in headers) == (200, False)
        if length:
            assert await client.reader.readexactly(int(headers["content-length"])) == b'{"ok":true}'
            assert kept or await client.closed()
        else:
            assert await asyncio.wait_for(client.reader.read(), 5) == b"data: 1\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body(status: str) -> None:
    """204 and 304 end with their head."""
    async with answering(f"HTTP/1.1 {status}\r\n\r\n".encode()) as up:
        async with running(Front(table(target("m", up.port)), StaticUpstreams())) as port, RawClient(port) as client:
            for _ in range(2):
                assert (await client.ask(post({"model": "m"}))).status == int(status[:3])
        assert up.connections == 1


async def test_early_error_of_the_upstream() -> None:
    """An answer given before the body was read reaches the client; the connection is not used again."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(0.1)
        while await reader.read(65536):
            pass

    front_table = table(target("m", 0))
    async with Upstream(script) as up:
        front_table = table(target("m", up.port))
        async with running(Front(front_table, StaticUpstreams())) as port:
            body = b'{"model":"m","x":"' + b"a" * 900_000 + b'"}'
            answer = await ask(port, post(body))
    assert (answer.status, answer.body) == (401, b"no")


async def test_request_defaults_fill_only_what_is_absent() -> None:
    """Configured defaults are added; what the client wrote stays verbatim."""
    unit = {"request_defaults": {"temperature": 0.2, "top_k": 5}}
    async with answering(OK) as up, running(Front(table(target("m", up.port, **unit)), StaticUpstreams())) as port:
        await ask(port, post(b'{"model":"m","temperature":1.50,"big":123456789012345678901234567890}'))
        await ask(port, post(b'{"model":"m","top_k":1,"temperature":0}'))
    assert up.requests[0].body == b'{"model":"m","temperature":1.50,"big":123456789012345678901234567890,"top_k":5}'
    assert up.requests[1].body == b'{"model":"m","top_k":1,"temperature":0}'


async def test_multipart_names_the_model() -> None:
    """An audio upload goes to the server that its form names, byte for byte."""
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n\x00\xff"model"\r\n'
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nb\r\n--B--\r\n'
    )
    async with answering(OK) as a, answering(OK) as b:
        front = Front(table(target("a", a.port), target("b", b.port)), StaticUpstreams())
        async with running(front) as port:
            raw = post(form, "/v1/audio/transcriptions", "Content-Type: multipart/form-data; boundary=B")
            assert (await ask(port, raw)).headers["x-launch-server"] == "b"
    assert b.requests[0].body == form


async def test_backpressure_on_a_slow_client() -> None:
    """While the client does not read, the upstream is not read without bound, and nothing is lost after."""
    total = 64 << 20
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await up.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        block = b"x" * 65536
        while sent < total:
            writer.write(block)
            await writer.drain()
            sent += len(block)
        await reader.read()

    async with (
        Upstream(script) as up,
        running(Front(table(target("m", up.port)), StaticUpstreams())) as port,
        RawClient(port) as client,
    ):
        client.send(post({"model": "m"}))
        await client.head()
        last = -1
        while last != sent:
            last = sent
            await asyncio.sleep(0.1)
        assert sent < total // 2
        assert len(await client.reader.readexactly(total)) == total
