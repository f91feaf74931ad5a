"""Keys with scopes and models, filters, pools, stickiness, tokens, the journal, TLS."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import subprocess
from pathlib import Path

import pytest

from launcher.errors import HostError
from launcher.ir.fleet import RoutePool
from launcher.route import Front, StaticUpstreams, bind, serve
from launcher.route.journal import Journal
from tests.route.fleet import (
    SSE_HEAD,
    RawClient,
    Upstream,
    answering,
    ask,
    chunked,
    controlled,
    front_unit,
    get,
    post,
    running,
    table,
    target,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b'{"ok":true}'


def counted(body: bytes) -> bytes:
    """An answer with this body."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_scopes_and_models(tmp_path: Path) -> None:
    """A hashed key asks the models it is for and no others; infer is not admin; a plain key may infer."""
    digest = hashlib.sha256(b"alice").hexdigest()
    keys = tmp_path / "keys"
    keys.write_text(
        f"sha256:{digest} name=alice models=small,fast\nroot-key-1 scopes=infer,admin\n"
        "plain-key\nops-key-1 scopes=admin\n"
    )

    async def control(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    unit = front_unit(api_key_file=str(keys))
    async with answering(OK) as up:
        routes = table(target("small", up.port), target("big", up.port), front=unit)
        async with (
            controlled(control, tmp_path) as sock,
            running(Front(routes, StaticUpstreams(), control=sock)) as port,
        ):

            async def status(key: str, model: str) -> int:
                return (await ask(port, post({"model": model}, "/x", f"Authorization: Bearer {key}"))).status

            assert [await status(k, "small") for k in ("alice", "root-key-1", "plain-key", "ops-key-1")] == [
                200,
                200,
                200,
                403,
            ]
            refused = await ask(port, post({"model": "big"}, "/x", "X-Api-Key: alice"))
            assert (refused.status, refused.code) == (403, "model_not_allowed")
            assert await status("plain-key", "big") == 200
            for key, shown in (("alice", ["small"]), ("plain-key", ["small", "big"])):
                listed = (await ask(port, get("/v1/models", f"X-Api-Key: {key}"))).json()["data"]
                assert [model["id"] for model in listed] == shown
            assert (await ask(port, get("/v1/models/small", "X-Api-Key: alice"))).status == 200
            assert (await ask(port, get("/v1/models/big", "X-Api-Key: alice"))).code == "model_not_allowed"
            for key, expected in (("root-key-1", 200), ("ops-key-1", 200), ("alice", 403), ("plain-key", 403)):
                assert (await ask(port, get("/api/status", f"X-Api-Key: {key}"))).status == expected
    assert len(up.requests) == 4


@pytest.mark.parametrize("line", ["sha256:12", "k scopes=root", "k colour=red", "k name=a name=b"])
def test_bad_key_lines(tmp_path: Path, line: str) -> None:
    """A line that is no key's is named by its number; the key itself is not shown."""
    keys = tmp_path / "keys"
    keys.write_text(f"good-key-1\n{line}\n")
    with pytest.raises(HostError) as refused:
        Front(table(target("m", 1), front=front_unit(api_key_file=str(keys))), StaticUpstreams())
    finding = refused.value.findings[0]
    assert finding.code == "route/key-file-line"
    assert "line 2" in finding.message


async def test_request_filters() -> None:
    """`request_set` wins over the client, `request_strip` takes away, the rest stays verbatim."""
    unit = {"request_set": {"temperature": 0}, "request_strip": ("user",), "request_defaults": {"top_k": 5}}
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port, **unit)), StaticUpstreams())) as port,
    ):
        await ask(port, post(b'{"model":"m","temperature":1.5,"user":"me","n":1.50}'))
        await ask(port, post(b'{"model":"m","temperature":1.5}', "/tokenize"))
    assert up.requests[0].body == b'{"model":"m","temperature":0,"n":1.50,"top_k":5}'
    assert up.requests[1].body == b'{"model":"m","temperature":1.5}'


async def test_the_servers_own_key(tmp_path: Path) -> None:
    """A server with a key is asked with it; the client's own key does not reach it."""
    keys = tmp_path / "upstream"
    keys.write_text("inner-key\n")
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port, api_key_file=str(keys))), StaticUpstreams())) as port,
    ):
        await ask(port, post({"model": "m"}, "/x", "Authorization: Bearer mine"))
        await ask(port, get("/props?model=m"))
    assert [r.header("authorization") for r in up.requests] == ["Bearer inner-key"] * 2


async def test_a_servers_key_file_holds_a_key(tmp_path: Path) -> None:
    """The first line that is no comment; without any the server would ask for none, unnoticed."""
    keys = tmp_path / "keys"
    keys.write_text("\n# a comment\nthe key\n")
    async with answering(OK) as up:
        unit = target("m", up.port, api_key_file=str(keys))
        async with running(Front(table(unit), StaticUpstreams())) as port:
            await ask(port, post({"model": "m"}))
        assert up.requests[0].header("authorization") == "Bearer the key"
        keys.write_text("\n# none\n")
        with pytest.raises(HostError, match="route/key-file-empty"):
            Front(table(unit), StaticUpstreams())


async def test_task_types_choose_a_pool() -> None:
    """Without a model, `x-task-type` chooses the pool; a pool's name is a model's name too."""
    pools = (
        RoutePool(name="coders", servers=("b",), task_types=("code", "debug"), expansion_threshold=0),
        RoutePool(name="talkers", servers=("a",), task_types=("chat",), expansion_threshold=0),
    )
    async with answering(OK) as up:
        routes = table(target("a", up.port), target("b", up.port), pools=pools)
        async with running(Front(routes, StaticUpstreams())) as port:

            async def server(body: dict[str, str], *headers: str) -> str | None:
                return (await ask(port, post(body, "/x", *headers))).headers.get("x-launch-server")

            assert await server({}, "X-Task-Type: debug") == "b"
            assert await server({}, "X-Task-Type: chat") == "a"
            assert await server({"model": "a"}, "X-Task-Type: code") == "a"
            assert await server({"model": "coders"}) == "b"
            unknown = await ask(port, post({}, "/x", "X-Task-Type: paint"))
            assert (unknown.status, unknown.code) == (400, "unknown_task_type")
            assert "chat, code, debug" in unknown.json()["error"]["message"]


async def test_a_conversation_stays_with_its_replica() -> None:
    """Turns that begin alike go to one replica while it has a free slot."""
    async with answering(OK) as up:
        routes = table(*(target(n, up.port, aliases=("both",)) for n in ("a", "b")))
        async with running(Front(routes, StaticUpstreams())) as port:
            front_words = {f"talk {i}": "w" * 300 for i in range(4)}
            servers: dict[str, set[str]] = {}
            for _ in range(3):
                for talk, words in front_words.items():
                    body = {"model": "both", "messages": [{"role": "user", "content": talk + words}]}
                    answer = await ask(port, post(body))
                    servers.setdefault(talk, set()).add(answer.headers["x-launch-server"])
    assert all(len(names) == 1 for names in servers.values())


@pytest.mark.parametrize("streamed", [False, True])
async def test_tokens_are_counted(tmp_path: Path, *, streamed: bool) -> None:
    """Usage and timings of whole and of streamed answers reach /metrics and the journal; text that looks alike not."""
    usage = b'"usage":{"completion_tokens":7,"prompt_tokens":30},"timings":{"prompt_n":12,"predicted_per_second":55.5}'
    said = json.dumps('"completion_tokens":99').encode()
    whole = counted(b'{"content":' + said + b"," + usage + b"}")
    events = SSE_HEAD + chunked(b'data: {"c":1}\n\n', b"data: {" + usage + b"}\n\n", b"data: [DONE]\n\n") + b"0\r\n\r\n"
    journal = tmp_path / "journal"
    async with answering(events if streamed else whole) as up:
        front = Front(table(target("m", up.port), front=front_unit(journal_file=str(journal))), StaticUpstreams())
        async with running(front) as port:
            for _ in range(2):
                assert (await ask(port, post({"model": "m", "messages": "secret"}))).status == 200
            text = (await ask(port, get("/metrics"))).body.decode()
    assert 'launch_generated_tokens_total{server="m"} 14' in text
    assert 'launch_prompt_tokens_total{server="m"} 60' in text
    assert 'inference_tokens_per_second{model="m-file",server="m"} 55.5' in text
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(x["asked"], x["server"], x["status"], x["generated_tokens"]) for x in lines] == [("m", "m", 200, 7)] * 2
    assert "secret" not in journal.read_text()
    assert journal.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_full_disk_costs_the_journal_entries_and_nobody_his_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, streamed: bool
) -> None:
    """The log says so once, and how many are lost when there is room again; a cut line is ended."""
    events = SSE_HEAD + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    async with answering(events if streamed else OK) as up:
        front = Front(table(target("m", up.port), front=front_unit(journal_file="/dev/full")), StaticUpstreams())
        async with running(front) as port, RawClient(port) as client:
            for _ in range(3):
                assert (await client.ask(post({"model": "m"}))).status == 200
            journal = front._journal
            assert journal is not None
            journal._look_at = float("inf")
            with (tmp_path / "journal").open("wb") as room:
                os.dup2(room.fileno(), journal._fd)
            assert (await client.ask(post({"model": "m"}))).status == 200
            whole, journal._is_cut = (tmp_path / "journal").read_bytes(), True
            assert (await client.ask(post({"model": "m"}))).status == 200
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the journal takes no entries",
        "the journal takes entries again; 3 are lost",
    ]
    assert (tmp_path / "journal").read_bytes().startswith(whole + b"\n{")


def test_a_journal_that_is_moved_away_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As logrotate does it; one whose folder is gone goes on in the file that it has."""
    monkeypatch.setattr("launcher.route.journal._LOOK_S", 0.0)
    path, moved = tmp_path / "logs" / "journal", tmp_path / "journal.1"
    path.parent.mkdir()
    journal, fields = Journal(str(path)), dict.fromkeys(("request", "caller", "asked", "server", "path"), "x")
    numbers = dict.fromkeys(("status", "seconds", "prompt_tokens", "generated_tokens"), 0)
    journal.add(**fields, **numbers)
    path.rename(moved)
    journal.add(**fields, **numbers)
    journal.add(**fields, **numbers)
    assert [len(file.read_bytes().splitlines()) for file in (moved, path)] == [1, 2]
    path.rename(moved)
    path.parent.rmdir()
    journal.add(**fields, **numbers)
    assert len(moved.read_bytes().splitlines()) == 3
    journal.close()


def test_a_journal_is_no_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """Whoever opened it would wait."""
    os.mkfifo(tmp_path / "journal")
    with pytest.raises(HostError):
        Journal(str(tmp_path / "journal"))


async def test_tls(tmp_path: Path) -> None:
    """With a certificate the front speaks https, and nothing else; an unusable one is a finding."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-keyout", str(key), "-out", str(cert), "-days", "1", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
    unit = front_unit(tls_cert_file=str(cert), tls_key_file=str(key))
    async with answering(OK) as up, running(Front(table(target("m", up.port), front=unit), StaticUpstreams())) as port:
        context = ssl.create_default_context(cafile=str(cert))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        request = post({"model": "m"}, "/v1/chat/completions", "Content-Type: application/json")
        for data in (post({"model": "m"}), *[request] * 5, request * 2, *[request] * 3):
            writer.write(data)
            for _ in range(len(data) // len(request) or 1):
                assert (await reader.readuntil(b'{"ok":true}')).startswith(b"HTTP/1.1 200")
        writer.close()
    front = Front(
        table(target("m", 1), front=front_unit(tls_cert_file=str(key), tls_key_file=str(key))), StaticUpstreams()
    )
    sock = bind(front, "127.0.0.1", 0)
    with pytest.raises(HostError) as refused:
        await serve(front, host="127.0.0.1", port=0, sock=sock, shutdown=asyncio.Event(), drain_timeout_s=0)
    assert refused.value.findings[0].code == "route/tls-unusable"


async def test_a_pipelined_request_waits_for_one_that_is_handed_over() -> None:
    """Two requests in one read: the first loses its stale connection, the second is answered after it, not before."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close, so that the pool's connection is stale."""
        seen = await up.read(reader)
        writer.write(counted(seen.body))
        await writer.drain()

    up = Upstream(script)
    async with up, running(Front(table(target("m", up.port)), StaticUpstreams())) as port:
        await ask(port, post({"model": "m", "n": 0}))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post({"model": "m", "n": 1}) + get("/health") + post({"model": "m", "n": 2}))
        text = b""
        while b'"n": 2' not in text:
            text += await asyncio.wait_for(reader.read(65536), 10)
        writer.close()
    assert text.index(b'"n": 1') < text.index(b'"status":"ok"') < text.index(b'"n": 2')
