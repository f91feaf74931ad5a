"""Which server gets a request: names, states, slots, fallback, reload; and what the front says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from launcher.errors import ConfigError, HostError
from launcher.ir.live import Lease, ServerState, UnavailableError
from launcher.route import Front, serve
from tests.ports import free_port
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


class Holding(Upstream):
    """An upstream that keeps every request until the test lets it go."""

    def __init__(self) -> None:
        """`gate` set = answer."""
        super().__init__(self._hold)
        self.gate = asyncio.Event()

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read, wait, answer."""
        while True:
            await self.read(reader)
            left = asyncio.create_task(reader.read(1))
            go = asyncio.create_task(self.gate.wait())
            await asyncio.wait({left, go}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                go.cancel()
                return
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left
            writer.write(OK)


@pytest.mark.parametrize("name", ["m", "role", "alias", None, ""])
async def test_every_name_of_a_server_routes_to_it(name: str | None) -> None:
    """Server name, role, alias, and no name at all: the default."""
    async with answering(OK) as other, answering(OK) as up:
        unit = target("m", up.port, roles=("role",), aliases=("alias",))
        front_table = table(target("other", other.port), unit, default="m")
        async with running(Front(front_table, FakeFleet())) as port:
            answer = await ask(port, post({} if name is None else {"model": name}))
    assert answer.headers["x-launch-server"] == "m"


async def test_header_and_query_name_the_model() -> None:
    """Where the body names none, the query does, then `x-model`."""
    async with answering(OK) as a, answering(OK) as b:
        front = Front(table(target("a", a.port), target("b", b.port)), FakeFleet())
        async with running(front) as port:
            by_query = await ask(port, post({"input": 1}, "/x?model=b", "X-Model: a"))
            by_header = await ask(port, post(b"\x00", "/x", "X-Model: b", "Content-Type: application/octet-stream"))
            by_body = await ask(port, post({"model": "a"}, "/x?model=b", "X-Model: b"))
    names = [answer.headers["x-launch-server"] for answer in (by_query, by_header, by_body)]
    assert names == ["b", "b", "a"]
    assert b.requests[1].header("x-model") is None


async def test_no_default() -> None:
    """Without a default, a request must name a model."""
    async with running(Front(table(target("m", 1), default=None), FakeFleet())) as port:
        answer = await ask(port, post({"messages": []}))
    assert (answer.status, answer.code) == (400, "model_required")


async def test_unknown_model_says_what_was_meant() -> None:
    """The error has OpenAI's shape and the nearest names; on /v1/messages it has Anthropic's."""
    front_table = table(target("frontdoor", 1), target("coder", 2, roles=("worker_fast",)))
    async with running(Front(front_table, FakeFleet())) as port:
        openai = await ask(port, post({"model": "frontdor"}))
        anthropic = await ask(port, post({"model": "frontdor"}, "/v1/messages"))
        huge = await ask(port, post({"model": "x" * 100_000}))
    error = openai.json()["error"]
    assert openai.status == 404
    assert {k: error[k] for k in ("type", "param", "code")} == {
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert "did you mean 'frontdoor'" in error["message"]
    assert anthropic.json()["type"] == "error"
    assert anthropic.json()["error"]["type"] == "not_found_error"
    assert anthropic.code == "model_not_found"
    assert len(huge.body) < 2000


async def test_replicas_share_by_free_slots() -> None:
    """Four requests to two replicas of two slots go two to each."""
    async with Holding() as a, Holding() as b:
        units = (target("a", a.port, roles=("w",)), target("b", b.port, roles=("w",)))
        async with running(Front(table(*units), FakeFleet())) as port:
            tasks = [asyncio.create_task(ask(port, post({"model": "w"}))) for _ in range(4)]
            await until(lambda: len(a.requests) + len(b.requests) == 4)
            assert (len(a.requests), len(b.requests)) == (2, 2)
            a.gate.set()
            b.gate.set()
            assert {(await t).status for t in tasks} == {200}


async def test_admission_is_first_come_first_served() -> None:
    """Beyond the slots, requests wait in order; a waiter that leaves is dropped; the queue is bounded."""
    unit = front_unit(queue_size=2)
    async with Holding() as up:
        front = Front(table(target("m", up.port, slots=1), front=unit), FakeFleet())
        gate = front.view.targets["m"].gate
        async with running(front) as port:
            first = asyncio.create_task(ask(port, post({"model": "m", "n": 1})))
            await until(lambda: len(up.requests) == 1)
            async with RawClient(port) as leaver:
                leaver.send(post({"model": "m", "n": 2}))
                await until(lambda: len(gate.waiters) == 1)
                third = asyncio.create_task(ask(port, post({"model": "m", "n": 3})))
                await until(lambda: len(gate.waiters) == 2)
                full = await ask(port, post({"model": "m", "n": 4}))
                assert (full.status, full.code, full.headers["retry-after"]) == (503, "queue_full", "1")
            await until(lambda: len(gate.waiters) == 1)
            up.gate.set()
            assert ((await first).status, (await third).status) == (200, 200)
    assert [b'"n": %d' % n in r.body for n, r in zip((1, 3), up.requests, strict=True)] == [True, True]


async def test_queue_deadline() -> None:
    """Who waits too long for a slot gets 503 with Retry-After."""
    unit = front_unit(queue_timeout_s=0.1)
    async with (
        Holding() as up,
        running(Front(table(target("m", up.port, slots=1), front=unit), FakeFleet())) as port,
    ):
        first = asyncio.create_task(ask(port, post({"model": "m"})))
        await until(lambda: len(up.requests) == 1)
        late = await ask(port, post({"model": "m"}))
        assert (late.status, late.code, late.headers["retry-after"]) == (503, "queue_timeout", "1")
        up.gate.set()
        assert (await first).status == 200


async def test_reads_take_no_slot() -> None:
    """GETs and tokenizing go through while every slot is taken."""
    seen = asyncio.Event()
    go = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await up.read(reader)
            if "chat" in request.line:
                seen.set()
                await go.wait()
            writer.write(OK)

    async with Upstream(script) as up, running(Front(table(target("m", up.port, slots=1)), FakeFleet())) as port:
        held = asyncio.create_task(ask(port, post({"model": "m"})))
        await seen.wait()
        assert (await ask(port, get("/slots?model=m"))).status == 200
        assert (await ask(port, post({"model": "m", "content": "x"}, "/tokenize"))).status == 200
        go.set()
        assert (await held).status == 200


async def test_demand_server_is_woken_once_asked() -> None:
    """A server that is started on demand is woken by a POST, not by a GET."""
    async with answering(OK) as up:
        fleet = FakeFleet(m="stopped")
        async with running(Front(table(target("m", up.port, start="demand")), fleet)) as port:
            look = await ask(port, get("/slots?model=m"))
            assert (look.status, look.code, fleet.woken) == (503, "server_stopped", [])
            assert (await ask(port, post({"model": "m"}))).status == 200
            assert (await ask(port, post({"model": "m"}))).status == 200
    assert fleet.woken == ["m"]


@pytest.mark.parametrize("state", ["starting", "backoff"])
async def test_server_on_its_way_up_is_waited_for(state: ServerState) -> None:
    """A resident server that is starting is waited for."""
    async with answering(OK) as up:
        fleet = FakeFleet(m=state)
        async with running(Front(table(target("m", up.port)), fleet)) as port:
            assert (await ask(port, post({"model": "m"}))).status == 200
    assert fleet.woken == ["m"]


async def test_start_that_fails_is_a_typed_error() -> None:
    """What the supervisor says reaches the client: code, message, Retry-After."""

    async def fail(name: str) -> None:
        raise UnavailableError("start_timeout", f"{name} did not start within 5 s", retry_after_s=7)

    fleet = FakeFleet(m="stopped")
    fleet.on_wake = fail
    async with running(Front(table(target("m", free_port(), start="demand")), fleet)) as port:
        answer = await ask(port, post({"model": "m"}))
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "start_timeout", "7")


async def test_waiter_for_a_start_that_leaves_is_dropped() -> None:
    """A client that leaves while its server starts cancels its wait, and nothing is sent."""
    cancelled = asyncio.Event()

    async def wait(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    fleet = FakeFleet(m="stopped")
    fleet.on_wake = wait
    async with running(Front(table(target("m", free_port(), start="demand")), fleet)) as port:
        async with RawClient(port) as client:
            client.send(post({"model": "m"}))
            await until(lambda: fleet.woken == ["m"])
        await asyncio.wait_for(cancelled.wait(), 5)
    assert fleet.left == []


@pytest.mark.parametrize("state", ["failed", "stopped", "stopping"])
async def test_fallback_of_a_server_that_is_down(state: ServerState) -> None:
    """A failed server's fallback answers; each server is asked once, cycles or not."""
    async with answering(OK) as c:
        front_table = table(
            target("a", 1, roles=("ra",)),
            target("b", 2, roles=("rb",)),
            target("c", c.port),
            fallback={"ra": ("rb",), "b": ("ra", "c"), "c": ("a",)},
        )
        fleet = FakeFleet(a=state, b=state)
        async with running(Front(front_table, fleet)) as port:
            answer = await ask(port, post({"model": "ra"}))
            assert (answer.status, answer.headers["x-launch-server"]) == (200, "c")
            fleet.states["c"] = "failed"
            down = await ask(port, post({"model": "ra"}))
    assert (down.status, down.headers["retry-after"]) == (503, "5")
    assert down.code == ("server_failed" if state == "failed" else "server_stopped")


async def test_a_server_that_never_becomes_ready_is_a_typed_error() -> None:
    """Whoever runs the servers says why there is no lease; the client is told that."""

    async def flap(name: str) -> None:
        await asyncio.sleep(0)

    fleet = FakeFleet(m="starting")
    fleet.on_wake = flap
    async with running(Front(table(target("m", 1)), fleet)) as port:
        assert (await ask(port, post({"model": "m"}))).code == "start_timeout"


async def test_a_server_that_is_swapped_out_while_a_request_queues_is_woken_again() -> None:
    """A turn lost while waiting for a slot is no error: the server is started again for who then has the slot."""
    async with Holding() as up:
        fleet = FakeFleet(m="stopped")
        front = Front(table(target("m", up.port, start="demand", slots=1)), fleet)
        async with running(front) as port:
            first = asyncio.create_task(ask(port, post({"model": "m"})))
            await until(lambda: len(up.requests) == 1)
            second = asyncio.create_task(ask(port, post({"model": "m"})))
            await until(lambda: len(front.view.targets["m"].gate.waiters) == 1)
            fleet.states["m"] = "stopped"
            up.gate.set()
            assert [(await task).status for task in (first, second)] == [200, 200]
    assert fleet.woken == ["m", "m"]


async def test_reload_swaps_the_table_and_lets_requests_finish() -> None:
    """After `replace_table`, new requests use the new table; the one in flight ends on the old server."""
    async with Holding() as old, answering(OK) as new:
        front = Front(table(target("m", old.port)), FakeFleet())
        async with running(front) as port:
            held = asyncio.create_task(ask(port, post({"model": "m"})))
            await until(lambda: len(old.requests) == 1)
            front.replace_table(table(target("m", new.port), target("n", new.port)))
            assert (await ask(port, post({"model": "n"}))).status == 200
            assert (await ask(port, post({"model": "m"}))).status == 200
            old.gate.set()
            assert (await held).status == 200
    assert (len(old.requests), len(new.requests)) == (1, 2)


async def test_reload_keeps_counts_and_takes_new_slots() -> None:
    """A server that stays keeps its requests in flight; another number of slots counts at once."""
    async with Holding() as up:
        front = Front(table(target("m", up.port, slots=1)), FakeFleet())
        async with running(front) as port:
            tasks = [asyncio.create_task(ask(port, post({"model": "m"}))) for _ in range(3)]
            await until(lambda: len(front.view.targets["m"].gate.waiters) == 2)
            await until(lambda: len(up.requests) == 1)
            front.replace_table(table(target("m", up.port, slots=3)))
            await until(lambda: len(up.requests) == 3)
            up.gate.set()
            assert [(await t).status for t in tasks] == [200] * 3


async def test_reload_with_a_bad_table_keeps_the_old_one() -> None:
    """A table with dangling names is refused as a whole, with every finding."""
    async with answering(OK) as up, running(front := Front(table(target("m", up.port)), FakeFleet())) as port:
        bad = table(target("n", 1), names={"a": ("x",)}, fallback={"n": ("y",)}, default="z")
        with pytest.raises(ConfigError) as refused:
            front.replace_table(bad)
        assert [f.key for f in refused.value.findings] == ["names.a", "fallback.n", "default"]
        assert (await ask(port, post({"model": "m"}))).status == 200


async def test_drain_lets_requests_finish() -> None:
    """After `shutdown`, what is in flight is answered, and new connections are refused."""
    async with Holding() as up:
        front = Front(table(target("m", up.port)), FakeFleet())
        sock = socket.create_server(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        stop = asyncio.Event()
        serving = asyncio.create_task(
            serve(front, host="127.0.0.1", port=port, sock=sock, shutdown=stop, drain_timeout_s=10)
        )
        held = asyncio.create_task(ask(port, post({"model": "m"})))
        await until(lambda: len(up.requests) == 1)
        stop.set()
        await until(lambda: sock.fileno() == -1)
        with pytest.raises(ConnectionError):
            await ask(port, post({"model": "m"}))
        up.gate.set()
        assert (await held).status == 200
        await asyncio.wait_for(serving, 5)


async def test_drain_is_bounded() -> None:
    """What does not finish in time gets 503 `front_stopping`, or a broken transfer where an answer had begun."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await up.read(reader)
        if b"stream" in request.body:
            writer.write(SSE_HEAD + chunked(b"data: 1\n\n"))
        await reader.read()

    async with Upstream(script) as up:
        front = Front(table(target("m", up.port)), FakeFleet())
        async with running(front, drain_timeout_s=0.1) as port, RawClient(port) as streaming:
            streaming.send(post({"model": "m", "stream": True}))
            waiting = asyncio.create_task(ask(port, post({"model": "m"})))
            await streaming.head()
            await until(lambda: len(up.requests) == 2)
            await streaming.chunk()
            cut = asyncio.create_task(streaming.chunk())
        assert (await waiting).code == "front_stopping"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await cut


async def test_cancelled_serve_leaves_nothing() -> None:
    """Cancelling the serving task closes the socket and its connections."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    front = Front(table(target("m", 1)), FakeFleet())
    task = asyncio.create_task(
        serve(front, host="127.0.0.1", port=port, sock=sock, shutdown=asyncio.Event(), drain_timeout_s=10)
    )
    async with RawClient(port) as client:
        assert (await client.ask(get("/health"))).status == 200
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.closed()
    with pytest.raises(ConnectionError):
        await ask(port, get("/health"))


async def test_taken_port_is_a_finding() -> None:
    """A port that somebody holds is a HostError with a stable code."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        front = Front(table(target("m", 1)), FakeFleet())
        with pytest.raises(HostError) as refused:
            await serve(front, host="127.0.0.1", port=port, shutdown=asyncio.Event(), drain_timeout_s=1)
    assert refused.value.findings[0].code == "route/cannot-listen"


async def test_models() -> None:
    """Every server is listed with what a client needs; one is found by any of its names."""
    units = (
        target("a", 1, roles=("r",), aliases=("al",), modalities=("text", "image"), n_ctx_train=4096, n_params=9),
        target("b", 2, start="demand", embedding=True),
    )
    async with running(Front(table(*units), FakeFleet(b="stopped"))) as port:
        listed = (await ask(port, get("/v1/models"))).json()
        for other in ("/models", "/v1/models/", "/models/"):
            assert (await ask(port, get(other))).json() == listed
        one = (await ask(port, get("/v1/models/al"))).json()
        missing = await ask(port, get("/v1/models/nope"))
        head = await ask(port, get("/v1/models", method="HEAD"))
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["a", "b"]
    assert one == listed["data"][0]
    wanted = {
        "roles": ["r"],
        "tags": ["r"],
        "aliases": ["a", "al"],
        "state": "ready",
        "n_ctx_per_slot": 512,
        "owned_by": "llamacpp",
    }
    assert {k: one[k] for k in wanted} == wanted
    assert one["modalities"] == ["text", "image"]
    seen = {"name": "a", "model": "a", "type": "model", "capabilities": ["completion", "multimodal"]}
    assert listed["models"] == [seen, seen | {"name": "b", "model": "b", "capabilities": ["embedding"]}]
    assert one["meta"] == {"n_ctx": 512, "n_ctx_train": 4096, "n_params": 9}
    assert one["context_length"] == one["max_model_len"] == 512
    assert one["architecture"] == {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
    assert one["status"] == {"value": "loaded"}
    assert listed["data"][1]["state"] == "stopped"
    assert listed["data"][1]["status"] == {"value": "unloaded"}
    assert (missing.status, missing.code) == (404, "model_not_found")
    assert (head.status, head.body) == (200, b"")


async def test_aliases_are_listed_where_it_is_said() -> None:
    """Each behind its server, as an entry of its own; an alias that another server is better known by is not."""
    units = (target("a", 1, aliases=("gpt-4", "b")), target("b", 2, n_ctx_shared=2048))
    unit_table = table(*units, front=front_unit(list_aliases=True), names={"a": ("a",), "gpt-4": ("a",), "b": ("b",)})
    async with running(Front(unit_table, FakeFleet(b="failed"))) as port:
        listed = (await ask(port, get("/v1/models"))).json()["data"]
        one = (await ask(port, get("/v1/models/gpt-4"))).json()
    assert [m["id"] for m in listed] == ["a", "gpt-4", "b"]
    assert one == listed[1]
    assert listed[2]["meta"]["n_ctx"] == 2048
    assert listed[2]["status"] == {"value": "unloaded", "failed": True}


async def test_props_of_a_fleet_are_no_one_servers() -> None:
    """Without a model it says so; a server that is stopped is described from the table, and not woken."""
    async with answering(OK) as up:
        fleet = FakeFleet(b="stopped")
        async with running(Front(table(target("a", up.port), target("b", 2, start="demand")), fleet)) as port:
            whole = (await ask(port, get("/props"))).json()
            stopped = (await ask(port, get("/props?model=b&autoload=false"))).json()
            served = await ask(port, get("/props?model=a"))
            unknown = await ask(port, get("/props?model=c"))
        async with running(Front(table(target("a", up.port)), FakeFleet())) as port:
            alone = await ask(port, get("/props"))
    assert (whole["role"], whole["default_generation_settings"]["n_ctx"]) == ("router", 0)
    assert (stopped["default_generation_settings"]["n_ctx"], stopped["total_slots"]) == (512, 2)
    assert (fleet.woken, unknown.code) == ([], "model_not_found")
    assert (served.json(), alone.json()) == ({"ok": True}, {"ok": True})


async def test_ready() -> None:
    """Ready means every resident server; an exclusive group needs one member, a demand server none."""
    units = (
        target("a", 1),
        target("w", 2, start="demand"),
        target("x1", 3, exclusive="x"),
        target("x2", 3, exclusive="x"),
    )
    fleet = FakeFleet(w="stopped", x2="stopped", a="starting")
    async with running(Front(table(*units), fleet)) as port:
        waiting = await ask(port, get("/ready"))
        assert (waiting.status, waiting.json()["waiting"]) == (503, [{"name": "a", "state": "starting"}])
        fleet.states["a"] = "ready"
        assert (await ask(port, get("/ready"))).status == 200
        fleet.states["x1"] = "stopped"
        assert [w["name"] for w in (await ask(port, get("/ready"))).json()["waiting"]] == ["x1", "x2"]
        assert (await ask(port, get("/health"))).json() == {"status": "ok"}


async def test_home_page_and_metrics() -> None:
    """The page names the models, escaped; the metrics parse as Prometheus text."""
    unit = target("m", 1, model="<b>&")
    async with running(Front(table(unit), FakeFleet())) as port:
        await ask(port, post({"model": "nope"}))
        page = await ask(port, get("/"))
        metrics = await ask(port, get("/metrics"))
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"&lt;b&gt;&amp;" in page.body
    assert b"curl http://localhost/v1/chat/completions" in page.body
    lines = metrics.body.decode().splitlines()
    assert 'launch_requests_refused_total{code="model_not_found"} 1' in lines
    assert 'launch_server_state{server="m",state="ready"} 1' in lines
    assert all(line.startswith("#") or float(line.rsplit(" ", 1)[1]) >= 0 for line in lines)


async def test_the_servers_own_metrics_and_anthropics_request_id() -> None:
    """`/metrics?model=` is the server's; answers of `/v1/messages`, errors too, have the header that its SDKs read."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        own = await ask(port, get("/metrics?model=m"))
        message = await ask(port, post({"model": "m"}, "/v1/messages"))
        unknown = await ask(port, post({"model": "n"}, "/v1/messages"))
        chat = await ask(port, post({"model": "m"}, "/v1/chat/completions"))
    assert (own.json(), up.requests[0].line) == ({"ok": True}, "GET /metrics?model=m HTTP/1.1")
    assert all(a.headers["request-id"] == a.headers["x-request-id"] for a in (message, unknown))
    assert "request-id" not in chat.headers


async def test_request_ids() -> None:
    """A plain id of the client's is kept; otherwise each request gets its own."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        given = await ask(port, post({"model": "m"}, "/x", "X-Request-Id: abc-1"))
        made = {(await ask(port, post({"model": "m"}))).headers["x-request-id"] for _ in range(3)}
        error = await ask(port, post({"model": "nope"}))
    assert given.headers["x-request-id"] == "abc-1"
    assert len(made) == 3
    assert error.headers["x-request-id"].startswith("req-")


async def test_access_log_can_be_on(caplog: pytest.LogCaptureFixture) -> None:
    """One line a request, without query or headers."""
    unit = front_unit(access_log=True)
    async with answering(OK) as up, running(Front(table(target("m", up.port), front=unit), FakeFleet())) as port:
        with caplog.at_level("INFO", "launch.access"):
            await ask(port, post({"model": "m"}, "/v1/x?secret=1", "Authorization: Bearer k3y"))
            await until(lambda: bool(caplog.messages))
    assert len(caplog.messages) == 1
    assert "POST /v1/x 200" in caplog.messages[0]
    assert "secret" not in caplog.text
    assert "k3y" not in caplog.text


@pytest.mark.parametrize("headers", [(), ("Content-Type: application/json",)])
async def test_the_access_log_says_what_failed(headers: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """The code that the client got, for what a server failed and for what no server was asked."""

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)

    unit = front_unit(access_log=True)
    async with Upstream(dies) as up, running(Front(table(target("m", up.port), front=unit), FakeFleet())) as port:
        with caplog.at_level("INFO", "launch.access"):
            codes = [(await ask(port, post({"model": name}, "/v1/x", *headers))).code for name in ("m", "nope")]
            await until(lambda: len(caplog.messages) == 2)
    assert codes == ["upstream_died", "model_not_found"]
    assert [f" {code} " in line for code, line in zip(codes, caplog.messages, strict=True)] == [True, True]


async def test_a_bug_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody thought of is 500 with an id to find it by in the log, and leaves the connection as it was."""

    class Broken(FakeFleet):
        """Fails once."""

        def try_lease(self, name: str) -> Lease | None:
            """Not as it should be."""
            if not self.woken:
                self.woken.append(name)
                raise ZeroDivisionError
            return super().try_lease(name)

    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port)), Broken())) as port,
        RawClient(port) as client,
    ):
        broken = await client.ask(post({"model": "m"}))
        assert (broken.status, broken.code) == (500, "internal_error")
        assert broken.headers["x-request-id"] in caplog.text
        assert (await client.ask(post({"model": "m"}))).status == 200
