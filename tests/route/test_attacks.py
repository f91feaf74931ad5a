"""Hostile clients and servers: no answer crosses to another, no slot is lost, no work is without a limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.route import Front, StaticUpstreams
from launcher.route.peek import peek_json
from launcher.route.problem import HttpError
from tests.route.fleet import (
    OK,
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
JSON = "Content-Type: application/json"
CHAT = "/v1/chat/completions"


def slow(pause_s: float) -> Upstream:
    """An upstream that takes its time for each answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await up.read(reader)
            await asyncio.sleep(pause_s)
            writer.write(OK)

    up = Upstream(script)
    return up


@asynccontextmanager
async def fronted(up: Upstream, **limits: Any) -> AsyncIterator[tuple[Front, RawClient]]:
    """A front before `up`, and a client of it."""
    front = Front(table(target("m", up.port, slots=2), front=front_unit(**limits)), StaticUpstreams())
    async with running(front) as port, RawClient(port) as client:
        yield front, client


async def flood(client: RawClient, times: int) -> int:
    """How many parts of 64 KiB, of at most so many, the front took before it closed."""
    for taken in range(times):
        try:
            client.send(b"a" * 65536)
            await client.writer.drain()
        except (ConnectionError, RuntimeError):  # uvloop 0.21 calls writing to what is closed the latter
            return taken
        await asyncio.sleep(0.001)
    return times


async def test_a_body_is_never_a_request() -> None:
    """A request that is answered before its body came: the body, though it looks like the last request, is a body."""
    evil = post({"model": "m", "evil": 1}, CHAT, JSON)
    async with answering(OK) as up, fronted(up) as (_, client):
        assert (await client.ask(evil)).status == 200
        assert (await client.ask(get("/health", f"Content-Length: {len(evil)}"))).json() == {"status": "ok"}
        client.send(evil)
        await asyncio.sleep(0.05)
        assert (await client.ask(get("/ready"))).json() == {"ready": True, "waiting": []}
        assert len(up.requests) == 1


async def test_what_takes_no_slot_gives_none_back() -> None:
    """Clients that leave a kept connection's `/tokenize` leave every slot free."""
    async with slow(0.3) as up:
        front = Front(table(target("m", up.port, slots=2)), StaticUpstreams())
        async with running(front) as port:
            for _ in range(2):
                async with RawClient(port) as client:
                    await client.ask(post({"model": "m"}, "/tokenize", JSON))
                    client.send(post({"model": "m"}, "/tokenize", JSON))
                    await until(lambda: bool(up.requests))
            gate = front.view.targets["m"].gate
            assert (gate.in_flight, (await ask(port, post({"model": "m"}, CHAT, JSON))).status) == (0, 200)


@pytest.mark.parametrize("key", [True, False], ids=["refused", "allowed"])
async def test_trailers_have_a_limit(tmp_path: Path, *, key: bool) -> None:
    """A trailer without an end is cut off, and so is a chunk's extension; nobody else waits."""
    (tmp_path / "keys").write_text("secret-key\n")
    keys = {"api_key_file": str(tmp_path / "keys")} if key else {}
    for endless in (b"0\r\nX: ", b"1;"):
        async with answering(OK) as up, fronted(up, **keys) as (_, client):
            head = post(b"", CHAT, JSON, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
            client.send(head + b"2\r\n{}\r\n" + endless)
            assert await flood(client, 64) < 64


async def test_only_probes_are_open(tmp_path: Path) -> None:
    """A POST to a probe's path is no probe: without a key nothing of it reaches a server."""
    (tmp_path / "keys").write_text("secret-key\n")
    async with answering(OK) as up, fronted(up, api_key_file=str(tmp_path / "keys")) as (_, client):
        for path in ("/health", "/ready", "/v1/health"):
            assert (await client.ask(get(path))).status == 200
            assert (await client.ask(post({"model": "m"}, path, JSON))).code == "api_key_required"
        assert up.requests == []


def test_counting_models_is_reading_once() -> None:
    """Brackets without end cost what reading them costs; a scan of each in Python takes longer than a test may."""
    with pytest.raises(HttpError, match="more than once"):
        peek_json(b'{"model":"a","x":[' + b"{}," * 10_000_000 + b'{"model":1}],"model":"b"}')


def test_a_model_that_is_no_name_is_not_built() -> None:
    """A `model` of ten million objects is refused at its first bracket: as Python objects it would take gigabytes."""
    body = b'{"model":[' + b"{}," * 10_000_000 + b"{}]}"
    tracemalloc.start()
    try:
        with pytest.raises(HttpError, match="model must be a string"):
            peek_json(body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


async def test_a_head_is_not_charged_for_the_body_before() -> None:
    """The end of a big body and the beginning of the next head in one read: both are answered."""
    data = post({"model": "m", "p": "x" * 20_000}, CHAT, JSON)
    async with slow(0.1) as up, fronted(up) as (_, client):
        client.send(data + data[:30])
        await asyncio.sleep(0.05)
        client.send(data[30:])
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("tail", [b"POST /v1", b"\x00"], ids=["half a head", "garbage"])
async def test_an_error_is_not_the_answer_to_another_request(tail: bytes) -> None:
    """What comes behind a whole request may be wrong: the request is answered, then the connection ends."""
    async with slow(0.4) as up, fronted(up, header_timeout_s=0.2) as (_, client):
        client.send(post({"model": "m"}, CHAT, JSON))
        await until(lambda: bool(up.requests))
        client.send(tail)
        assert (await client.answer()).status == 200
        assert await client.closed()


async def test_silence_behind_a_slow_answer_ends() -> None:
    """A second request's body that never comes, while the first is answered, has its deadline too."""
    first, second = post({"model": "m"}, CHAT, JSON), post({"model": "m", "p": "x" * 100}, CHAT, JSON)
    async with slow(0.3) as up, fronted(up, idle_timeout_s=0.5) as (_, client):
        client.send(first + second[:-50])
        assert (await client.answer()).status == 200
        assert (await client.answer()).code == "request_timeout"


async def test_one_answer_a_request(tmp_path: Path) -> None:
    """A body that comes after its request was refused is not answered again, however long it takes."""
    (tmp_path / "keys").write_text("secret-key\n")
    data = post({"model": "m"}, CHAT)
    async with answering(OK) as up, fronted(up, api_key_file=str(tmp_path / "keys"), idle_timeout_s=0.3) as (_, client):
        client.send(data[:-3])
        assert (await client.answer()).status == 401
        client.send(data[-3:-1])
        assert await client.closed()


async def test_who_is_asked_again() -> None:
    """A server that may be started with less is asked again, whichever model the connection asked before."""
    said = b'{"error":{"message":"decode() failed: std::bad_alloc"}}'
    refused = b"HTTP/1.1 500 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(said) + said

    class Fleet(FakeFleet):
        async def retry_after_oom(self, name: str, since: float, said: str = "") -> bool:
            return name == "b"

    async with answering(OK) as a, answering(OK, refused, OK) as b:
        front = Front(table(target("a", a.port), target("b", b.port, rungs=1)), Fleet())
        async with running(front) as port, RawClient(port) as client:
            for model in ("b", "a", "a", "b"):
                assert (await client.ask(post({"model": model}, CHAT, JSON))).status == 200


@pytest.mark.parametrize("changed", ["Content-Type: text/plain", "X-Request-Id: mine"])
async def test_later_requests_are_as_the_first(changed: str) -> None:
    """A body that is declared as text, and the client's own id, on every request of a connection."""
    async with answering(OK) as a, answering(OK) as b:
        front = Front(table(target("a", a.port), target("b", b.port), default="a"), StaticUpstreams())
        async with running(front) as port, RawClient(port) as client:
            model = "b" if changed.startswith("Content") else "a"
            answers = [await client.ask(post({"model": model}, CHAT, changed)) for _ in range(4)]
    assert len((a if model == "a" else b).requests) == 4
    if model == "a":
        assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}


@pytest.mark.parametrize("status", [b"099", b"600", b"999"])
async def test_a_status_that_is_none(status: bytes) -> None:
    """Garbage, at once, and the slot is free."""
    async with answering(OK.replace(b"200", status)) as up:
        front = Front(table(target("m", up.port)), StaticUpstreams())
        async with running(front) as port:
            assert (await ask(port, post({"model": "m"}, CHAT, JSON))).code == "upstream_garbage"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_a_length_without_a_body(status: bytes) -> None:
    """A 304 may say how long the answer would have been."""
    async with answering(b"HTTP/1.1 " + status + b"\r\nContent-Length: 11\r\n\r\n") as up, fronted(up) as (_, client):
        for _ in range(2):
            assert (await client.ask(get("/x"))).status == int(status[:3])


async def test_half_an_answer_to_http_1_0_is_no_whole_one() -> None:
    """Its end would be the connection's: the connection is reset."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + chunked(b'{"half":'))
        await writer.drain()
        await asyncio.sleep(0.1)

    async with Upstream(script) as up, fronted(up) as (_, client):
        client.send(post({"model": "m"}, CHAT, JSON).replace(b"HTTP/1.1", b"HTTP/1.0"))
        await client.head()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(), 5)


async def test_a_path_does_not_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """The access log has the target as it came."""
    caplog.set_level(logging.INFO, "launch.access")
    async with answering(OK) as up, fronted(up, access_log=True) as (_, client):
        await client.ask(get("/x%0areq-1%20GET%20/forged"))
    (line,) = [r.getMessage() for r in caplog.records if r.name == "launch.access"]
    assert "GET /x%0areq-1%20GET%20/forged 200" in line


async def test_upgrades_at_once_have_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    """Each is read in its turn, not from within the last, and answered; without a Host the first is the last."""
    raw = post({"model": "m"}, CHAT, JSON, "Connection: Upgrade", "Upgrade: h2c")
    dense = b"POST / HTTP/1.1\r\nHost: localhost\r\nUpgrade: b\r\nConnection: upgrade\r\n"
    dense += b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with answering(OK) as up, fronted(up) as (front, client):
        for _ in range(40):
            assert (await client.ask(raw)).status == 200
        client.send(raw * 50)
        assert [(await client.answer()).status for _ in range(50)] == [200] * 50
        client.send(dense * 200)
        assert [(await client.answer()).status for _ in range(200)] == [200] * 200
        client.send(b"POST / HTTP/1.1\r\nUpgrade:b\r\nConnection:upgrade\r\n\r\n" * 1000)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(client.reader.read(), 5)
        assert (await ask(client.port, raw)).status == 200
        assert front.view.targets["m"].gate.in_flight == 0
        assert "Error" not in caplog.text


async def test_thousands_behind_a_slow_answer() -> None:
    """Requests that came in one read wait their turn, and are answered one after the other, not from within another."""
    async with slow(0.2) as up, fronted(up) as (_, client):
        client.send(post({"model": "m"}, CHAT, JSON) + get("/health") * 4000)
        assert (await client.answer()).status == 200
        assert {(await client.answer()).status for _ in range(4000)} == {200}


async def test_pages_for_a_client_that_does_not_read_are_not_made() -> None:
    """Whoever asks for pages without end and reads none gets a few: the front reads no more requests meanwhile."""
    async with answering(OK) as up, fronted(up, idle_timeout_s=0.5) as (front, client):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(get("/metrics") * 20_000)
        await until(lambda: bool(front.clients.connections))
        (connection,) = front.clients.connections
        await until(lambda: connection.write_paused)
        assert connection.transport.get_write_buffer_size() < 1 << 20
        await until(lambda: not front.clients.connections)


async def test_a_body_that_grows_too_long_behind_a_slow_answer() -> None:
    """The request that was whole is answered first, then the other is refused, and the connection closed."""
    head = post(b"", CHAT, JSON, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    async with slow(0.3) as up, fronted(up, max_body_bytes=1000) as (_, client):
        client.send(post({"model": "m"}, CHAT, JSON) + head + chunked(b"x" * 2000))
        assert (await client.answer()).status == 200
        assert (await client.answer()).code == "body_too_large"
        assert await client.closed()
        assert len(up.requests) == 1
