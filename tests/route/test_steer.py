"""Requests about a generation under way: beside its slot, at the server that has it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from launcher.route import Front
from launcher.route.endpoint import kind_of
from launcher.route.owners import Owner, Owners
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
)

pytestmark = pytest.mark.timeout(300)


def generating(name: str) -> Upstream:
    """A server whose completion `cmpl-NAME` never ends; what is asked beside it is answered at once."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen = await upstream.read(reader)
            if seen.line.split()[1] == "/v1/chat/completions":
                event = b'data: {"choices":[],"id":"cmpl-%s","object":"chat.completion.chunk"}\n\n' % name.encode()
                writer.write(SSE_HEAD + chunked(event))
            elif "lookup" in seen.line:
                body = json.dumps([{"conversation_id": i} for i in json.loads(seen.body)["conversation_ids"]]).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            elif seen.line.startswith("DELETE"):
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            else:
                writer.write(OK)

    upstream = Upstream(script)
    return upstream


def stop(conversation: str, more: str = "") -> bytes:
    """The stop button of llama.cpp's web UI."""
    return get(f"/v1/stream?conv_id={conversation}{more}", method="DELETE")


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/prefix/completion", "completion"),
        ("POST", "/v1/completions", "completion"),
        ("POST", "/v1/audio/transcriptions", "audio"),
        ("POST", "/v1/images/generations", "image"),
        ("POST", "/v1/reranking", "rerank"),
        ("GET", "/v1/chat/completions", ""),
        ("POST", "/v1/chat/completions/control", ""),
        ("POST", "/v1/chat/completions/input_tokens", ""),
        ("POST", "/v1/streams/lookup", ""),
        ("DELETE", "/v1/stream", ""),
        ("POST", "/tokenize", ""),
        ("POST", "/slots/0", ""),
        ("POST", "/lora-adapters", ""),
        ("POST", "/tools", ""),
        ("POST", "/v1/what/comes/next", ""),
    ],
)
def test_only_what_computes_takes_a_slot(method: str, path: str, kind: str) -> None:
    """A path that nobody knows computes nothing."""
    assert kind_of(method, path) == kind


async def test_what_steers_never_waits_and_finds_its_server() -> None:
    """Every slot is taken; stop, lookup and control reach the replica that generates, and nobody else."""
    async with generating("a") as a, generating("b") as b, generating("c") as c:
        units = [target(n, up.port, slots=1, roles=("twin",)) for n, up in (("a", a), ("b", b))]
        front = Front(table(*units, target("other", c.port), default="other"), FakeFleet())
        async with running(front) as port, RawClient(port) as one, RawClient(port) as two:
            servers = []
            for client, conversation in ((one, "conv/1::x"), (two, "c2")):
                client.send(post({"model": "twin"}, "/v1/chat/completions", f"X-Conversation-Id: {conversation}"))
                servers.append((await client.head())[1]["x-launch-server"])
                await client.chunk()
            assert sorted(servers) == ["a", "b"]
            controlled = [
                await ask(port, post({"id": f"cmpl-{name}", "action": "reasoning_end"}, "/v1/chat/completions/control"))
                for name in servers
            ]
            answers = [
                await ask(port, get("/v1/stream?conv_id=conv%2F1%3A%3Ax&from=0")),
                await ask(port, stop("c2")),
                await ask(port, stop("c2", "&model=other")),
            ]
            found = await ask(port, post({"conversation_ids": ["c2", "nobody", "conv/1::x"]}, "/v1/streams/lookup"))
            lost = [
                await ask(port, stop("nobody")),
                await ask(port, post({"id": "cmpl-x"}, "/v1/chat/completions/control")),
                await ask(port, stop("")),
                await ask(port, post(b"[1]", "/v1/streams/lookup")),
            ]
            named = await ask(port, stop("older", "&model=other"))
            marked = await ask(port, stop("older::other"))
            again = await ask(port, post({"model": "twin"}, "/tokenize"))
    assert [answer.headers["x-launch-server"] for answer in controlled] == servers
    assert [(a.status, a.headers["x-launch-server"]) for a in answers] == [
        (200, servers[0]),
        (204, servers[1]),
        (204, servers[1]),
    ]
    assert sorted(entry["conversation_id"] for entry in found.json()) == ["c2", "conv/1::x"]
    assert [(a.status, a.code) for a in lost] == [
        (404, "conversation_not_found"),
        (404, "completion_not_found"),
        (400, "conversation_required"),
        (400, "invalid_json"),
    ]
    assert [a.headers["x-launch-server"] for a in (named, marked)] == ["other", "other"]
    assert again.status == 200


async def test_a_conversation_stays_at_its_replica() -> None:
    """Its next request goes where the one before went, while a slot is free there, though others are freer."""
    async with answering(OK) as a, answering(OK) as b:
        units = [target(n, up.port, roles=("twin",)) for n, up in (("a", a), ("b", b))]
        front = Front(table(*units), FakeFleet())
        async with running(front) as port:
            for _ in range(3):
                await ask(port, post({"model": "twin"}, "/v1/chat/completions", "X-Conversation-Id: c"))
                front.view.targets["a"].gate.resize(1)
    assert (len(a.requests), len(b.requests)) == (3, 0)
    assert a.requests[0].header("x-conversation-id") == "c"


async def test_a_server_that_sleeps_is_not_woken_to_be_stopped() -> None:
    """What it generated ended with it."""
    async with answering(OK) as a, answering(OK) as b:
        fleet = FakeFleet()
        async with running(Front(table(target("a", a.port), target("b", b.port, start="demand")), fleet)) as port:
            await ask(port, post({"model": "b"}, "/v1/chat/completions", "X-Conversation-Id: c"))
            fleet.states["b"] = "stopped"
            answer = await ask(port, stop("c"))
            found = await ask(port, post({"conversation_ids": ["c"]}, "/v1/streams/lookup"))
    assert (answer.code, found.json(), fleet.woken) == ("conversation_not_found", [], [])


async def test_another_keys_conversation_is_none(tmp_path: Path) -> None:
    """Who learns an id cannot read or stop what somebody else has generated."""
    keys = tmp_path / "keys"
    keys.write_text("first-key name=one models=m\nsecond-key name=two\n")
    bearer = ["Authorization: Bearer first-key", "Authorization: Bearer second-key"]
    async with answering(OK) as up:
        unit = target("a", up.port, roles=("m",))
        front = Front(table(unit, target("b", up.port), front=front_unit(api_key_file=str(keys))), FakeFleet())
        async with running(front) as port:
            await ask(port, post({"model": "m"}, "/v1/chat/completions", "X-Conversation-Id: c", bearer[0]))
            own, other = [await ask(port, get("/v1/stream?conv_id=c", b)) for b in bearer]
    assert (own.status, other.status) == (200, 404)


async def test_one_server_answers_for_itself() -> None:
    """A fleet of one has nobody to mix up: what steers goes there, known or not."""
    async with generating("a") as a, running(Front(table(target("a", a.port)), FakeFleet())) as port:
        assert (await ask(port, stop("c"))).status == 204


def test_what_is_remembered_is_bounded() -> None:
    """The least recently used are forgotten; an endless id is not kept."""
    owners = Owners()
    me = Owner("a", "a", "")
    for i in range(9000):
        owners.remember(b"%d" % i, me)
    owners.remember(b"x" * 513, me)
    assert owners.of(b"0", "") is None
    assert owners.of(b"8999", "") == me
    assert owners.of(b"8999", "somebody") is None
    assert owners.of(b"x" * 513, "") is None


BOM = b"\xef\xbb\xbf"


async def test_every_body_that_a_server_takes_passes() -> None:
    """An array goes where the query, the header or the default says; a byte order mark is no error."""
    async with answering(OK) as a, answering(OK) as b:
        units = (target("a", a.port, request_defaults={"top_k": 5}), target("b", b.port))
        async with running(Front(table(*units), FakeFleet())) as port:
            bodies = [b"[]", b'\n [{"id":0,"scale":0.5}]', BOM + b'{"model":"b"}']
            answers = [
                await ask(port, post(bodies[0], "/lora-adapters?model=b", "Content-Type: application/json")),
                await ask(port, post(bodies[1], "/lora-adapters", "X-Model: b")),
                await ask(port, post(bodies[2], "/v1/completions")),
            ]
            default = await ask(port, post(BOM + b'{"n":1}', "/v1/completions"))
            bad = await ask(port, post(b'"text"', "/lora-adapters"))
            packed = await ask(port, post(b"\x1f\x8b\x08", "/v1/completions", "Content-Encoding: gzip"))
            plain = await ask(port, post(b"{}", "/v1/completions", "Content-Encoding: identity"))
    assert [answer.headers["x-launch-server"] for answer in answers] == ["b", "b", "b"]
    assert [request.body for request in b.requests] == bodies
    assert default.status == 200
    assert json.loads(a.requests[0].body) == {"n": 1, "top_k": 5}
    assert (bad.status, bad.code) == (400, "invalid_json")
    assert (packed.status, packed.code) == (415, "unsupported_encoding")
    assert "gzip" in packed.json()["error"]["message"]
    assert plain.status == 200
