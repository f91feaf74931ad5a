"""What strangers send: no connection, byte or request of theirs takes the front, or a server, from others."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import resource
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import HostError
from launcher.route import Front
from launcher.route.body_worker import outline
from launcher.route.faults import Faults, RequestTraits, traits_of
from launcher.route.keys import read_keys
from launcher.route.peek import peek_multipart
from launcher.route.problem import HttpError
from launcher.route.sockets import descriptors
from tests.ports import free_port
from tests.route.fleet import (
    OK,
    WAIT_S,
    FakeFleet,
    RawClient,
    Script,
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
KIB = 1024
MIB = 1024 * KIB


@contextlib.asynccontextmanager
async def many(port: int, count: int) -> AsyncIterator[list[RawClient]]:
    """So many clients."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RawClient(port)) for _ in range(count)]


def front_of(*ports: int, **limits: Any) -> Front:
    """A front before servers `m0`, `m1`, … at these ports."""
    units = [target(f"m{n}", port, slots=4) for n, port in enumerate(ports)]
    return Front(table(*units, front=front_unit(**limits)), FakeFleet())


# --- H8: what llama-server refuses by closing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (get("/v1/x?" + "a" * 33_000), 414, "target_too_long"),
        (get("/" + "a" * 32_500), 414, "target_too_long"),
        (get("/props", *(f"X-{n}: a" for n in range(101))), 431, "too_many_headers"),
        (get("/props", "X: " + "a" * 8_190), 431, "headers_too_large"),
        (post(b"{}", "/v1/completions?" + "b=" * 17_000), 414, "target_too_long"),
    ],
    ids=["query", "path", "lines", "line", "post"],
)
async def test_what_a_server_would_close_on_is_refused_first(request_: bytes, status: int, code: str) -> None:
    """No connection to a server is made for it."""
    async with answering(OK) as up, running(front_of(up.port, max_header_bytes=64 * KIB)) as port:
        got = await ask(port, request_)
        assert (got.status, got.code, up.connections) == (status, code, 0)


def closing_on(*signs: bytes, dies: Callable[[], None] | None = None) -> Upstream:
    """A server that answers all requests but those whose body has one of `signs`: on those it closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen = await up.read(reader)
            if any(sign in seen.body for sign in signs):
                if dies is not None:
                    dies()
                return
            writer.write(OK)

    up = Upstream(script)
    return up


async def test_a_request_that_is_closed_on_opens_no_breaker() -> None:
    """Ten times; the server, which answers that it is well, goes on to answer others."""
    async with closing_on(b"evil") as up:
        front = front_of(up.port)
        async with running(front) as port:
            for _ in range(10):
                assert (await ask(port, post({"evil": 1}))).code == "upstream_died"
                assert (await ask(port, post({"fine": 1}))).status == 200
            assert front.view.targets["m0"].breaker.open_s == 0


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers `/health` only."""
    if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /health"):
        writer.write(OK)
    await reader.read()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As `silent`, but others get what is no HTTP."""
    is_probe = (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /health")
    writer.write(OK if is_probe else b"\0\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("script", "limit_s", "code"), [(silent, 0.05, "upstream_timeout"), (garbage, WAIT_S, "upstream_garbage")]
)
async def test_other_failures_of_a_server_that_is_well_open_no_breaker(
    script: Script, limit_s: float, code: str
) -> None:
    """What takes too long, or makes it answer nonsense."""
    async with Upstream(script) as up:
        front = Front(table(target("m", up.port, request_timeout_s=limit_s)), FakeFleet())
        async with running(front) as port:
            assert [(await ask(port, post({}))).code for _ in range(5)] == [code] * 5
            assert front.view.targets["m"].breaker.open_s == 0


# --- H13: what ends a server ----------------------------------------------------------------------------------


async def test_a_request_that_ended_a_server_is_refused_and_its_kind_after_a_second_crash() -> None:
    """The same body on every server of the fleet at once; others with the same keys only when a second has done it."""
    async with answering(OK) as good, contextlib.AsyncExitStack() as stack:

        async def dying() -> Upstream:
            up: Upstream = await stack.enter_async_context(
                closing_on(
                    b"grammar",
                    dies=lambda: up.deafen(),  # noqa: PLW0108 - not before it is there
                )
            )
            return up

        bad, worse = await dying(), await dying()
        front = front_of(bad.port, worse.port, good.port)
        async with running(front) as port:

            async def ended_by(**body: Any) -> str:
                got = await ask(port, post(body, CHAT, JSON))
                return "" if got.status == 200 else got.code

            evil: dict[str, Any] = {"grammar": "((((", "messages": [1]}
            assert await ended_by(model="m0", **evil) == "upstream_died"
            await until(lambda: len(front.faults.strikes) == 2)
            assert await ended_by(model="m2", **evil) == "request_ended_server"
            assert await ended_by(model="m2", grammar="root", messages=[1]) == ""
            assert await ended_by(model="m1", grammar="(", messages=[3]) == "upstream_died"
            await until(lambda: len(front.faults.strikes) == 3)
            refused = await ask(port, post({"model": "m2", "messages": [5], "grammar": "root"}, CHAT, JSON))
            assert (refused.status, refused.code) == (422, "request_ended_server")
            for other in ({"messages": [5]}, {"grammar": "root", "n_probs": 5}):
                assert await ended_by(model="m2", **other) == ""
            front.replace_table(front.view.table)
            assert await ended_by(model="m2", grammar="root", messages=[6]) == ""
        assert (len(bad.requests), len(worse.requests)) == (1, 1)


def judged(*crashes: tuple[RequestTraits, ...]) -> Callable[[RequestTraits], bool]:
    """Whether a request is refused after these crashes, each with the requests that were there."""
    faults = Faults(front_of(1))
    for suspects in crashes:
        faults._accuse(list(suspects))

    def is_refused(traits: RequestTraits) -> bool:
        try:
            faults.require_harmless(traits)
        except HttpError:
            return True
        return False

    return is_refused


def test_who_is_held_for_a_crash() -> None:
    """An agent whose every request has `tools` goes on after one; who stood by at two has ended nothing."""
    agent = [traits_of("agent", CHAT, b'{"tools":[],"messages":[%d]}' % n) for n in range(4)]
    other = [traits_of("other", CHAT, b'{"grammar":"","messages":[%d]}' % n) for n in range(4)]
    once = judged((agent[0],))
    assert (once(agent[0]), once(agent[1]), once(other[0])) == (True, False, False)
    at_once = judged((agent[0], agent[1], agent[2]))  # its own three, of one crash
    assert [at_once(traits) for traits in agent] == [False] * 4
    twice = judged((agent[0],), (agent[1],))
    assert [twice(traits) for traits in agent] == [True] * 4
    assert not twice(other[0])
    beside = judged((agent[0], other[0]), (agent[1], other[0]))
    assert [beside(traits) for traits in (*agent, other[1])] == [False] * 5
    assert beside(other[0])  # the same body was there both times
    often = judged(*((agent[n], other[n]) for n in range(4)))
    assert often(traits_of("other", CHAT, b'{"grammar":"","messages":[9]}'))


def test_a_crash_of_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one counts as the first."""
    faults, now = Faults(front_of(1)), [1000.0]
    monkeypatch.setattr("launcher.route.faults.monotonic", lambda: now[0])
    first, second, third = (traits_of("a", CHAT, b'{"tools":[],"n":%d}' % n) for n in range(3))
    faults._accuse([first])
    now[0] += 10_000
    faults._accuse([second])
    faults.require_harmless(third)
    faults._accuse([third])
    with pytest.raises(HttpError):
        faults.require_harmless(second)


async def test_a_server_that_was_killed_was_ended_by_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL comes from outside: what was on its way then may come again at once."""
    monkeypatch.setattr(FakeFleet, "ended_from_outside", lambda _, name: name == "m0")
    async with (
        answering(OK) as good,
        closing_on(
            b"grammar",
            dies=lambda: bad.deafen(),  # noqa: PLW0108 - not before it is there
        ) as bad,
    ):
        front = front_of(bad.port, good.port)
        async with running(front) as port:
            asked: dict[str, Any] = {"grammar": "((((", "messages": [1]}
            assert (await ask(port, post({"model": "m0"} | asked, CHAT, JSON))).code == "upstream_died"
            await until(lambda: front.view.targets["m0"].breaker.failures > 0)
            assert not front.faults.strikes
            assert (await ask(port, post({"model": "m1"} | asked, CHAT, JSON))).status == 200


def test_what_requests_are_known_by() -> None:
    """Rare keys make a kind, of one caller and path; a body is one whoever sends it."""
    grammar, other = b'{"grammar":"(","prompt":"a"}', b'{"prompt":"b","grammar":"(("}'
    one, two = traits_of("a", CHAT, grammar), traits_of("a", CHAT, other)
    assert one.kind == two.kind != traits_of("b", CHAT, grammar).kind
    assert traits_of("a", CHAT, b"\xef\xbb\xbf" + grammar) == one
    assert one.body != two.body
    plain = traits_of("a", CHAT, b'{"prompt":"a"}')
    assert plain == traits_of("b", CHAT, b'{"prompt":"a"}') != traits_of("a", CHAT, b'{"prompt":"b"}')
    assert plain.kind is None
    assert traits_of("a", CHAT, b"[" * 5000) != traits_of("a", CHAT, b"[" * 5001)


async def test_a_server_that_is_back_is_in_at_once_and_a_reload_closes_breakers() -> None:
    """Whatever is left of its breaker's time; that it is open shows in the metrics."""
    port_ = free_port()
    front = front_of(port_)
    async with running(front) as port:
        for _ in range(3):
            assert (await ask(port, post({}))).code == "upstream_unreachable"
        assert (await ask(port, post({}))).code == "breaker_open"
        assert b'launch_breaker_open{server="m0"} 1' in (await ask(port, get("/metrics"))).body
        front.replace_table(front.view.table)
        assert (await ask(port, post({}))).code == "upstream_unreachable"
        for _ in range(2):
            await ask(port, post({}))
        assert (await ask(port, post({}))).code == "breaker_open"
        async with Upstream(answering_script, port_):
            await until(lambda: front.view.targets["m0"].breaker.open_s == 0)
            assert (await ask(port, post({}))).status == 200


async def answering_script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers everything."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            await reader.readexactly(2)
        writer.write(OK)


# --- H5: keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/slots/0?action=erase", "/%73lots%2F0?action=save", "/props", "/lora-adapters", "/slots/0;x?action=erase"]
)
async def test_what_changes_a_server_for_everybody_needs_an_admin(tmp_path: Path, path: str) -> None:
    """An inference key may look, and infer; a limited one sees nothing of other servers."""
    keys = tmp_path / "keys"
    keys.write_text("plain-key\nlimited-key models=m1\nadmin-key scopes=admin,infer\n")
    async with answering(OK) as up:
        fleet = FakeFleet(m0="starting")
        front = Front(
            table(target("m0", up.port), target("m1", up.port), front=front_unit(api_key_file=str(keys))), fleet
        )
        async with running(front) as port:
            got = await ask(port, post({"model": "m1", "filename": "x"}, path, "X-Api-Key: plain-key"))
            assert (got.status, got.code, up.connections) == (403, "scope_missing", 0)
            assert (await ask(port, get(path + "&model=m1", "X-Api-Key: plain-key", "X-Model: m1"))).status == 200
            assert (await ask(port, post({"model": "m1"}, path, "X-Api-Key: admin-key"))).status == 200
            limited = "X-Api-Key: limited-key"
            assert (await ask(port, get("/metrics", limited))).status == 403
            assert b"m0" not in (await ask(port, get("/", limited))).body
            assert (await ask(port, get("/ready"))).json() == {"ready": False, "waiting": [{"state": "starting"}]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("k", "8 characters"),
        ("SHA256:abc", "64 hexadecimal"),
        ("schlüssel-eins", "ASCII"),
        ("key\0with-nul", "ASCII"),
        ("a-good-key\nshort", "line 2"),
    ],
)
def test_lines_that_are_no_keys(tmp_path: Path, line: str, words: str) -> None:
    """None is taken for a key, silently another one or a guess."""
    keys = tmp_path / "keys"
    keys.write_text(line)
    with pytest.raises(HostError, match=words):
        read_keys(str(keys))


def test_keys_as_they_are_meant(tmp_path: Path) -> None:
    """A byte order mark is no part of a key, a digest may be in capitals; a file that all may write is refused."""
    keys = tmp_path / "keys"
    digest = hashlib.sha256(b"second-key").hexdigest().upper()
    keys.write_bytes(b"\xef\xbb\xbffirst-key\r\nSHA256:" + digest.encode())
    found = read_keys(str(keys))
    assert found.grant(b"first-key")
    assert found.grant(b"second-key")
    assert not found.grant(b"SHA256:" + digest.encode())
    keys.chmod(0o666)
    with pytest.raises(HostError, match="anybody may write"):
        read_keys(str(keys))


async def test_a_revoked_key_ends_without_a_reload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also on a connection that used it before; a file that cannot be used is said, and changes nothing."""
    keys = tmp_path / "keys"
    keys.write_text("old-key-1\n")
    async with answering(OK) as up:
        front = front_of(up.port, api_key_file=str(keys))
        guard = front.view.guard
        async with running(front) as port, RawClient(port) as client:
            assert (await client.ask(post({}, CHAT, "X-Api-Key: old-key-1"))).status == 200
            keys.write_text("x\n")
            await until(lambda: "kept as they were" in caplog.text)
            assert (await client.ask(post({}, CHAT, "X-Api-Key: old-key-1"))).status == 200
            keys.write_text("new-key-1\n")
            await until(lambda: front.view.guard is not guard)
            assert (await client.ask(post({}, CHAT, "X-Api-Key: old-key-1"))).code == "invalid_api_key"
            assert (await client.ask(post({}, CHAT, "X-Api-Key: new-key-1"))).status == 200


# --- H6: what the front sets in a body ------------------------------------------------------------------------

DEEP = b'{"user":"x","a":' + b"[" * 3000 + b"]" * 3000 + b"}"


@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "application/octet-stream", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize(
    "body", [DEEP, b'\xef\xbb\xbf{"user":"x"}', b'--x\r\n\r\n{"user":"x"}\r\n--x--', b'{"user":"x","temperature":9}']
)
async def test_what_is_set_or_taken_out_is_so_however_it_is_sent(kind: str, body: bytes) -> None:
    """A body either arrives as the entry says, or not at all."""
    async with answering(OK) as up:
        unit = target("m", up.port, request_set={"temperature": 0}, request_strip=("user",))
        async with running(Front(table(unit), FakeFleet())) as port:
            got = await ask(port, post(body, CHAT, f"Content-Type: {kind}"))
            assert got.status in (200, 400)
            assert [json.loads(seen.body) for seen in up.requests] in ([], [{"temperature": 0}])


@pytest.mark.parametrize("kind", ["text/plain", "text/plain;charset=UTF-8", "image/png"])
async def test_a_model_is_found_however_the_body_is_declared(kind: str) -> None:
    """A page's `fetch` declares text/plain."""
    async with answering(OK) as first, answering(OK) as second, running(front_of(first.port, second.port)) as port:
        got = await ask(port, post({"model": "m1"}, CHAT, f"Content-Type: {kind}"))
        assert got.headers["x-launch-server"] == "m1"


# --- H12: connections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"GET /hea", get("/health")], ids=["nothing", "half a head", "a request"])
async def test_idle_connections_make_room(said: bytes) -> None:
    """Whoever comes is answered; those that have been idle for longest go. One that asks stays."""
    async with answering(OK) as up:
        front = front_of(up.port, max_connections=8, max_connections_per_client=8)
        async with running(front) as port, RawClient(port) as first:
            first.send(post(b"{}", CHAT, "Content-Length: 2").replace(b"{}", b"{"))
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(20):
                    client = await stack.enter_async_context(RawClient(port))
                    client.send(said)
                    await asyncio.sleep(0.002)
                    assert len(front.clients.connections) <= 8
                assert (await ask(port, get("/health"))).status == 200
            assert front.clients.refused["too_many_connections"] == 0


async def test_connections_that_are_all_busy_are_refused_with_an_error() -> None:
    """Per client, and in all; what is under way is not touched, and there is room again afterwards."""
    async with Upstream(silent) as up:
        front = front_of(up.port, max_connections=8, max_connections_per_client=2)
        async with running(front) as port, RawClient(port) as one, RawClient(port) as two:
            for client in (one, two):
                client.send(post(b"{}"))
            await until(lambda: up.connections == 2)
            got = await ask(port, get("/health"))
            assert (got.status, got.code, got.headers["connection"]) == (503, "too_many_connections", "close")
            await one.__aexit__()
            await until(lambda: len(front.clients.connections) == 1)
            assert (await ask(port, get("/health"))).status == 200


async def test_descriptors_are_kept_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ulimit -n 64` half of them are for clients, whatever the config says."""
    with monkeypatch.context() as patched:
        patched.setattr(resource, "getrlimit", lambda _: (64, 64))
        assert descriptors() == 32
    monkeypatch.setattr("launcher.route.clients.descriptors", lambda: 32)
    front = front_of(free_port())
    async with running(front) as port, many(port, 50):
        assert (await ask(port, get("/health"))).status == 200
        assert len(front.clients.connections) <= front.clients.most == 32


# --- H10, H11: bytes ------------------------------------------------------------------------------------------


async def test_unfinished_bodies_wait_for_each_other_and_those_that_do_not_come_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thirty bodies of 1 MB, all but their last byte: the memory that they take is bounded, and a small one passes."""
    monkeypatch.setattr("launcher.route.clients._LOOK_S", 0.2)
    async with answering(OK) as up:
        front = front_of(up.port, max_held_bytes=4 * MIB, max_body_bytes=MIB, queue_timeout_s=1, idle_timeout_s=2)
        held, most = front.clients.held, 0
        async with running(front) as port:
            async with many(port, 30) as clients:
                for client in clients:
                    client.send(post(b"a" * MIB, CHAT, JSON)[:-1])
                for _ in range(20):
                    await asyncio.sleep(0.005)
                    most = max(most, held.arriving + held.complete)
                assert (await ask(port, post(b"{}"))).status == 200
                codes = [(await client.answer()).status for client in clients]
            await until(lambda: held.arriving + held.complete == 0)
        assert most <= 4 * MIB + MIB  # the one that is let go on
        assert set(codes) <= {408, 503}


@pytest.mark.parametrize("ends", ["answer", "client", "refusal"])
async def test_held_bytes_are_given_back(ends: str) -> None:
    """However a request ends: nothing stays counted."""
    async with answering(OK) as up:
        front = front_of(up.port, max_body_bytes=MIB)
        held = front.clients.held
        async with running(front) as port, RawClient(port) as client:
            body = b'{"x":"' + b"a" * (200 * KIB) + b'"}'
            if ends == "answer":
                for _ in range(3):
                    assert (await client.ask(post(body, CHAT, JSON))).status == 200
                    assert (await client.ask(post(body[:18_000] + b'"}', CHAT, JSON))).status == 200
            elif ends == "client":
                client.send(post(body, CHAT, JSON)[:-2])
                await until(lambda: held.arriving > 0)
                await client.__aexit__()
            else:
                await client.ask(post({"model": "nobody", "x": "a" * 100_000}, CHAT, JSON))
                head = post(b"", CHAT, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
                client.send(head + chunked(b"a" * 100_000) * 12)
                assert (await client.answer()).status == 413
            await until(lambda: held.arriving + held.complete == 0)


async def test_requests_whose_answers_nobody_reads_are_not_parsed_ahead() -> None:
    """Before any key, 60,000 small requests on each connection; others are answered meanwhile."""
    front = front_of(free_port())
    made: list[object] = []
    handle = front.clients.handle
    front.clients.handle = lambda *args: made.append(0) or handle(*args)
    async with running(front) as port, many(port, 2) as clients:
        for client in clients:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            client.send(post(b"", "/x") * 60_000)
        for _ in range(20):
            assert (await ask(port, get("/health"))).status == 200
            await asyncio.sleep(0.01)
        assert max(len(c._waiting) for c in front.clients.connections) <= 1
        await until(lambda: len(front.clients._unread) == 2)
    assert len(made) < 100_000


async def test_chunks_of_one_byte_take_no_more_than_their_bytes() -> None:
    """A body in 100,000 chunks arrives, as one."""
    async with answering(OK) as up, running(front_of(up.port)) as port, RawClient(port) as client:
        head = post(b"", CHAT, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        client.send(head + chunked(b'{"x":"') + chunked(b"a") * 100_000 + chunked(b'"}') + b"0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert up.requests[0].body == b'{"x":"' + b"a" * 100_000 + b'"}'


async def test_who_does_not_read_its_stream_is_cut_off_in_time() -> None:
    """An answer that nobody reads ends, and frees its slot."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(chunked(b"data: x\n\n" * 8000))
            await writer.drain()

    async with Upstream(endless) as up:
        front = front_of(up.port, idle_timeout_s=0.2)
        async with running(front) as port, RawClient(port) as client:
            client.send(post(b"{}"))
            await client.head()
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: front.view.targets["m0"].gate.in_flight == 0)
            assert not front.clients.connections


# --- H9: big bodies -------------------------------------------------------------------------------------------


def big(size: int, **fields: Any) -> bytes:
    """A JSON body of about `size` bytes whose model comes last, behind what takes a decoder longest."""
    filling = b",".join([b"[[],{}]"] * (size // 8))
    return b'{"messages":[' + filling + b'],"user":"u",' + json.dumps(fields).encode()[1:]


async def test_big_bodies_are_read_elsewhere() -> None:
    """Their model, what is set in them, their errors; nothing of the loop's own decodes them."""
    async with answering(OK) as plain, answering(OK) as changed:
        unit = target("m1", changed.port, request_set={"temperature": 0}, request_strip=("user",))
        front = Front(table(target("m0", plain.port), unit, front=front_unit(max_body_bytes=8 * MIB)), FakeFleet())
        async with running(front) as port, RawClient(port) as client:
            whole = big(4 * MIB, model="m0")
            assert (await client.ask(post(whole, CHAT, JSON))).headers["x-launch-server"] == "m0"
            assert plain.requests[0].body == whole
            got = await client.ask(post(big(MIB, model="m1", temperature=1), CHAT, JSON))
            assert (got.status, got.headers["x-launch-server"]) == (200, "m1")
            sent = json.loads(changed.requests[0].body)
            assert (sent["temperature"], "user" in sent, len(sent["messages"])) == (0, False, MIB // 8)
            assert (await client.ask(post(big(MIB, model=3), CHAT, JSON))).code == "invalid_model"
            process = front.body_reader._process
            assert process is not None
            process.kill()  # another one begins
            process.wait()
            assert (await client.ask(post(whole, CHAT, JSON))).status == 200
            got = await client.ask(post(big(MIB, model="m0")[:-1], CHAT, JSON))
            assert (got.status, got.code) == (400, "invalid_json")
            form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm1\r\n--x'
            declared = "Content-Type: multipart/form-data; boundary=x"
            got = await client.ask(post(form + b" " * MIB, "/v1/audio/transcriptions", declared))
            assert (got.status, got.code) == (400, "invalid_json")  # of m1 no form is taken
            got = await client.ask(post(form + b"\r\n--x" * 200_000, "/v1/audio/transcriptions", declared))
            assert (got.status, got.code) == (400, "invalid_form")  # each part would cost a look
        assert front.body_reader._process is None


async def test_a_big_body_is_held_once_and_let_go_with_its_client() -> None:
    """The loop never copies it, since it would stand still meanwhile; nor does a queue keep it."""
    async with answering(OK) as up:
        front = front_of(up.port, max_body_bytes=8 * MIB)
        async with running(front) as port:
            body = post(big(8 * MIB - 100, model="m0"), CHAT, JSON)
            async with front.body_reader._turn, many(port, 2) as clients:
                tracemalloc.start()
                for client in clients:
                    client.send(body)
                await until(lambda: front.clients.held.complete > 15 * MIB)
                held, most = tracemalloc.get_traced_memory()
                assert most < 20 * MIB
                assert held < 20 * MIB
                for client in clients:
                    client.writer.close()
                await until(lambda: not front.clients.connections)
                assert tracemalloc.get_traced_memory()[0] < MIB
                tracemalloc.stop()
            assert (await ask(port, body)).status == 200


def test_a_form_is_read_within_bounds() -> None:
    """Parts and their heads; within them a field is found."""
    kind, field = (
        b"multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n%b\r\nm\r\n',
    )
    assert peek_multipart(b"--x\r\n\r\n1\r\n" * 1000 + field % b"" + b"--x--", kind) == "m"
    for form in (
        b"--x\r\n\r\n1\r\n" * 1024,
        field % (b"A: " + b"b" * 16_400 + b"\r\n"),
        b"--x" + b"y" * 16_400 + b"\r\n",
    ):
        with pytest.raises(HttpError) as refused:
            peek_multipart(form + b"--x--", kind)
        assert (refused.value.status, refused.value.code) == (400, "invalid_form")


def test_an_outline_has_what_is_asked_last() -> None:
    """Both ends of it, and other short values."""
    texts = [{"type": "text", "text": "first " + "x" * 10**6 + " last"}, {"type": "image_url", "url": "y" * 10**6}]
    sent = {
        "messages": [{"role": "user", "content": "old"}, {"role": "user", "content": texts}],
        "n": 1,
        "z": "z" * 10**5,
    }
    found = json.loads(outline(json.dumps(sent).encode()))
    (message,) = found.pop("messages")
    assert (found, message["content"][:5], message["content"][-4:]) == ({"n": 1}, "first", "last")
    assert len(message["content"]) < 40_000
    assert json.loads(outline(json.dumps({"prompt": ["a" * 10**6]}).encode())) == {
        "prompt": [{"role": "user", "content": ""}]
    }
    with pytest.raises(HttpError, match="no JSON object"):
        outline(b"[")
