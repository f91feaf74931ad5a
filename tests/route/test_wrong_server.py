"""Nobody is answered by a stranger: who is behind a fresh connection is known before a request is sent on it."""

from __future__ import annotations

import asyncio
import json

import pytest

from launcher.base.claimed_name import wrong_server
from launcher.route import AskedUpstreams, Front
from tests.route.fleet import OK, RawClient, Upstream, ask, get, post, running, table, target


def named(name: str, status: str = "200 OK") -> Upstream:
    """A server that calls itself `name`, and answers everything."""
    said = json.dumps({"object": "list", "data": [{"id": name}]}).encode()
    models = b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status.encode(), len(said), said)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await up.read(reader)
            writer.write(models if request.line.startswith("GET /v1/models ") else OK)

    up = Upstream(script)
    return up


async def test_a_stranger_is_never_asked() -> None:
    """503 `wrong_server` and a count; the request itself never reaches the other process."""
    async with named("other") as up:
        front = Front(table(target("m", up.port)), AskedUpstreams())
        async with running(front) as port:
            answer = await ask(port, post({"model": "m"}))
            assert (answer.status, answer.json()["error"]["code"]) == (503, "wrong_server")
            assert "it calls itself 'other'" in answer.json()["error"]["message"]
            metrics = (await ask(port, get("/metrics"))).body.decode()
    assert 'launch_requests_refused_total{code="wrong_server"} 1' in metrics
    assert {seen.line for seen in up.requests} == {"GET /v1/models HTTP/1.1"}


async def test_the_server_itself_is_asked_once_a_connection() -> None:
    """Two requests on one connection: it is asked who it is once, and answers both."""
    async with named("m") as up:
        front = Front(table(target("m", up.port)), AskedUpstreams())
        async with running(front) as port, RawClient(port) as client:
            assert [(await client.ask(post({"model": "m"}))).status for _ in range(2)] == [200, 200]
    assert [seen.line.split()[0] for seen in up.requests] == ["GET", "POST", "POST"]


async def test_a_fallback_stands_in_for_a_stolen_port() -> None:
    """Where another server may answer, it does; one that still loads is not there yet."""
    async with named("thief") as stolen, named("n") as other, named("l", "503 Loading") as loading:
        routes = table(
            target("m", stolen.port), target("n", other.port), target("l", loading.port), fallback={"m": ("n",)}
        )
        async with running(Front(routes, AskedUpstreams())) as port:
            assert (await ask(port, post({"model": "m"}))).headers["x-launch-server"] == "n"
            answer = await ask(port, post({"model": "l"}))
            assert (answer.status, answer.json()["error"]["code"]) == (503, "upstream_unreachable")


async def test_a_stranger_who_never_ends_is_not_listened_to() -> None:
    """What it says of itself would fill the memory."""
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await up.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 40))
        while sent < 64 << 20:
            writer.write(b" " * 65536)
            sent += 65536
            await writer.drain()

    async with Upstream(script) as up:
        front = Front(table(target("m", up.port)), AskedUpstreams())
        async with running(front) as port:
            answer = await asyncio.wait_for(ask(port, post({"model": "m"})), 30)
    assert answer.status in (502, 503)
    assert sent < 16 << 20


@pytest.mark.parametrize(
    ("models", "who"),
    [
        (b'{"data":[{"id":"m"}]}', None),
        (b'{"data":[{"id":"x","aliases":["m"]}]}', None),
        (b'{"data":[{"id":"x"}]}', "it calls itself 'x'"),
        (b"", "it does not say who it is"),
        (b"<html>", "it does not say who it is"),
        (b'{"data":[]}', "it does not say who it is"),
        (b'{"data":[{"id":"\xff"}]}', "it does not say who it is"),
        (b"[" * 100_000, "it does not say who it is"),
    ],
)
def test_what_a_server_says_of_itself(models: bytes, who: str | None) -> None:
    """Its name or one of its aliases; anything else is a stranger."""
    assert wrong_server("m", models) == who
