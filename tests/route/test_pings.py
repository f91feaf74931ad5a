"""What a client gets whose stream waits: a header and comments, never where it did not ask for a stream."""

from __future__ import annotations

import asyncio
import json

import pytest

from launcher.ir.live import UnavailableError
from launcher.route import Front
from launcher.route.problem import unexpected_answer
from tests.route.fleet import (
    OK,
    SSE_HEAD,
    FakeFleet,
    RawClient,
    answering,
    ask,
    chunked,
    front_unit,
    post,
    running,
    table,
    target,
    until,
)
from tests.route.test_routing import Holding

pytestmark = pytest.mark.timeout(300)
SOON = front_unit(ping_after_s=0.02)
STREAM = post({"model": "a", "stream": True, "messages": []})
EVENTS = SSE_HEAD + chunked(b'data: {"choices": []}\n\n', b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Estimating(FakeFleet):
    """A fleet that knows how long a start takes."""

    def left_s(self, name: str) -> float | None:
        """Twelve seconds."""
        return None if name == "unknown" else 12.0


async def test_a_stream_that_waits_is_told_what_for_and_then_answered() -> None:
    """A load: comments with stage and estimate, then the server's own events, under one header."""
    async with answering(EVENTS) as up:
        fleet, loaded = Estimating(a="stopped"), asyncio.Event()

        async def wake(name: str) -> None:
            await loaded.wait()
            fleet.states[name] = "ready"

        fleet.on_wake = wake
        front = Front(table(target("a", up.port, start="demand"), front=SOON), fleet)
        async with running(front) as port, RawClient(port) as client:
            client.send(STREAM)
            status, headers = await client.head()
            first = await client.chunk()
            fleet.states["a"] = "starting"
            later = b""
            while b"loading" not in later:
                later = await client.chunk()
            loaded.set()
            rest = b""
            while part := await client.chunk():
                rest += part
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert first == b": ping swapping server=a about_s=12\n\n"
    assert later == b": ping loading server=a about_s=12\n\n"
    events = [line for line in rest.split(b"\n\n") if line and not line.startswith(b": ping")]
    assert events == [b'data: {"choices": []}', b"data: [DONE]"]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "a", "messages": []},
        {"model": "a", "stream": False, "tools": [{"stream": True}]},
        {"model": "a", "stream": "yes"},
    ],
)
async def test_who_asked_for_no_stream_gets_none(body: dict[str, object]) -> None:
    """Its answer is the server's, with its length, however long it waited."""
    async with Holding() as up:
        front = Front(table(target("a", up.port, slots=1), front=SOON), FakeFleet())
        async with running(front) as port, RawClient(port) as one, RawClient(port) as two:
            one.send(post({"model": "a"}))
            await until(lambda: front.view.targets["a"].gate.in_flight == 1)
            two.send(post(body))
            await until(lambda: len(front.view.targets["a"].gate.waiters) == 1)
            await asyncio.sleep(0.06)
            up.gate.set()
            await one.answer()
            answer = await two.answer()
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "11", b'{"ok":true}')


async def test_an_error_after_the_header_is_an_event() -> None:
    """A start that fails, a queue that lasts too long, and a server's own refusal: each in the shape of its API."""
    refusal = json.dumps({"error": {"message": "too long", "type": "exceed_context_size_error"}}).encode()
    refused = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(refusal)
    async with answering(refused + refusal) as up, Holding() as busy:
        fleet = FakeFleet(a="stopped", b="stopped")

        async def wake(name: str) -> None:
            await asyncio.sleep(0.1)
            if name == "b":
                raise UnavailableError("server_failed", "it failed", retry_after_s=3)
            fleet.states[name] = "ready"

        fleet.on_wake = wake
        units = (target("a", up.port, start="demand"), target("b", 1, start="demand"), target("c", busy.port, slots=1))
        front = Front(table(*units, front=front_unit(ping_after_s=0.02, queue_timeout_s=0.1)), fleet)
        async with running(front) as port, RawClient(port) as holder:
            own = await ask(port, STREAM)
            failed = await ask(port, post({"model": "b", "stream": True, "messages": []}, "/v1/messages"))
            holder.send(post({"model": "c"}))
            await until(lambda: front.view.targets["c"].gate.in_flight == 1)
            late = await ask(port, post({"model": "c", "stream": True}, "/v1/completions"))
            whole = await ask(port, post({"model": "c"}, "/v1/completions"))
            busy.gate.set()
            await holder.answer()
        refused_codes = dict(front.refused)
    for answer, code in ((own, "exceed_context_size_error"), (failed, "server_failed"), (late, "queue_timeout")):
        assert (answer.status, answer.clean) == (200, True)
        last = answer.body.strip().split(b"\n\n")[-1].split(b"data: ")[1]
        assert json.loads(last)["error"]["code"] == code
    assert b"event: error" in failed.body
    assert b": ping queued server=c waiting=1" in late.body
    assert (whole.status, whole.headers["retry-after"], whole.code) == (503, "1", "queue_timeout")
    assert refused_codes == {"exceed_context_size_error": 1, "server_failed": 1, "queue_timeout": 2}


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue() -> None:
    """And none who is answered at once, or in a fleet that wants none, gets a comment."""
    async with Holding() as up, answering(EVENTS) as quick:
        units = (target("a", up.port, slots=1), target("b", quick.port))
        front = Front(table(*units, front=SOON), FakeFleet())
        async with running(front) as port, RawClient(port) as holder:
            at_once = await ask(port, post({"model": "b", "stream": True}))
            holder.send(post({"model": "a"}))
            gate = front.view.targets["a"].gate
            await until(lambda: gate.in_flight == 1)
            async with RawClient(port) as leaving:
                leaving.send(STREAM)
                assert (await leaving.chunk() if await leaving.head() else b"").startswith(b": ping queued")
            await until(lambda: not gate.waiters)
            up.gate.set()
            await holder.answer()
        assert at_once.body == b'data: {"choices": []}\n\ndata: [DONE]\n\n'
        unit = target("a", up.port, slots=1, start="demand")
        front = Front(table(unit, front=front_unit(ping_after_s=0)), FakeFleet(a="stopped"))
        async with running(front) as port:
            assert (await ask(port, STREAM)).body == b'{"ok":true}'


def test_the_answers_of_servers_that_are_no_stream_are_errors() -> None:
    """Whatever they are."""
    assert unexpected_answer(200, OK).status == 502
    assert unexpected_answer(500, b"\xff").message == "the server refused it"
    assert unexpected_answer(400, b'{"error": "x"}').code == "upstream_refused"
