"""Questions of our own: answered like a client's, refused like a client's, given up without a trace."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from launcher.ir.exchange import Refusal
from launcher.route import Front
from launcher.route.keys import Grant
from launcher.route.question import Question, ask
from tests.route.fleet import OK, FakeFleet, Script, Upstream, answering, running, table, target, until

QUESTION = Question(path="/v1/chat/completions", body=b"{}", request_id=b"mine")


def silent(seen: asyncio.Event) -> Script:
    """A server that reads and never answers."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        seen.set()
        await reader.read()

    return script


async def test_a_question_is_answered() -> None:
    """By the name's server, counted with the others, with the id it was given, on a connection that is kept."""
    async with answering(OK) as up:
        front = Front(table(target("m", up.port)), FakeFleet())
        async with running(front):
            for _ in range(2):
                answered = await ask(front, "m", QUESTION, timeout_s=5)
                assert (answered.status, answered.body, answered.server) == (200, b'{"ok":true}', "m")
        assert [r.header("x-request-id") for r in up.requests] == ["mine"] * 2
        assert up.connections == 1
        assert front.view.targets["m"].by_status[200] == 2


@pytest.mark.parametrize(
    ("name", "grant", "code"),
    [("nobody", Grant(), "model_not_found"), ("m", Grant(models=frozenset({"n"})), "model_not_allowed")],
)
async def test_a_question_is_refused(name: str, grant: Grant, code: str) -> None:
    """With the code that a client would get; it is no request that the front refused."""
    async with answering(OK) as up, running(front := Front(table(target("m", up.port)), FakeFleet())):
        question = Question(path="/x", body=b"{}", request_id=b"mine", grant=grant, granted="auto")
        with pytest.raises(Refusal) as refused:
            await ask(front, name, question, timeout_s=5)
        assert (refused.value.code, up.requests, dict(front.refused)) == (code, [], {})


async def test_an_answer_that_does_not_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives it, for however many texts: its server sees its client leave."""
    monkeypatch.setattr("launcher.route.question._MOST_BYTES", 1 << 20)
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (1 << 40))
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                writer.write(b" " * 65536)
                await writer.drain()
            return
        left.set()

    async with Upstream(script) as up, running(front := Front(table(target("m", up.port)), FakeFleet())):
        with pytest.raises(Refusal, match="exceeds 1 MiB"):
            await ask(front, "m", QUESTION, timeout_s=30)
        await asyncio.wait_for(left.wait(), 30)
        assert front.view.targets["m"].gate.in_flight == 0


@pytest.mark.parametrize("own", [True, False])
async def test_a_question_that_takes_too_long(*, own: bool) -> None:
    """The server's own limit is a refusal, the asker's a TimeoutError; either way the server sees its client leave."""
    seen = asyncio.Event()
    fleet = FakeFleet()
    async with Upstream(silent(seen)) as up:
        front = Front(table(target("m", up.port, request_timeout_s=0.2 if own else 60)), fleet)
        async with running(front):
            with pytest.raises(Refusal if own else TimeoutError) as ended:
                await ask(front, "m", QUESTION, timeout_s=60 if own else 0.2)
            assert getattr(ended.value, "code", "") == ("upstream_timeout" if own else "")
            await up.closed.wait()
            await until(lambda: fleet.left == [("m", not own)])


async def test_a_question_whose_answer_breaks_off() -> None:
    """Half an answer is none."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()

    async with Upstream(script) as up, running(front := Front(table(target("m", up.port)), FakeFleet())):
        with pytest.raises(Refusal, match="broke off"):
            await ask(front, "m", QUESTION, timeout_s=5)
