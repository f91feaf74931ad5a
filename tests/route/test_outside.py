"""Servers that are not ours behind the front: what they are asked and shown, what counts as an answer, who is next."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import HostError
from launcher.ir.fleet import FaceUnit, OutsideUnit, RouteTarget
from launcher.route import Front, StaticUpstreams, with_remote
from launcher.route.peek import model_in_form, peek_multipart
from tests.ports import free_port
from tests.route.fleet import OK, FakeFleet, Upstream, answering, ask, front_unit, get, post, running, table, target

pytestmark = pytest.mark.timeout(30)
JSON = b"Content-Type: application/json\r\n"
CLIENTS_KEYS = (
    *("Authorization: Bearer clients-own", "X-Api-Key: clients-own", "Cookie: session=clients-own"),
    *("Api-Key: clients-own", "X-Goog-Api-Key: clients-own", "Proxy-Authorization: clients-own"),
)


def outside(name: str, port: int, path: str = "/v1", scheme: str = "http", **changes: Any) -> RouteTarget:
    """An upstream on loopback whose model `big` is called `their/big` there."""
    fields = {"url": f"{scheme}://127.0.0.1:{port}{path}", "health_path": f"{path or '/v1'}/models"}
    how = OutsideUnit(**(fields | changes.pop("outside", {})))
    more: dict[str, Any] = {"faces": {"big": FaceUnit(request_set={"model": "their/big"})}}
    more |= {"request_set": {"model": "their/default"}, "n_ctx_per_slot": 0, "modalities": ("text", "image", "audio")}
    return target(name, port, outside=how, **(more | changes))


def answer(status: int, body: bytes = b"{}", lines: bytes = JSON) -> bytes:
    """An answer as bytes."""
    return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, lines, len(body), body)


async def test_what_it_is_asked_and_shown(tmp_path: Path) -> None:
    """Its own path, host, key and name of the model; nothing by which a client proves itself, no query."""
    ours, theirs = tmp_path / "keys", tmp_path / "their-key"
    ours.write_text("clients-own\n")
    theirs.write_text("# of the fleet\nfleet-key\n")
    async with answering(answer(200, b'{"ok":true}', JSON + b"Set-Cookie: a=b\r\nX-Theirs: 1\r\n")) as up:
        unit = outside("cloud", up.port, "/api/v1", api_key_file=str(theirs))
        routes = table(unit, names={"cloud": ("cloud",), "big": ("cloud",)}, front=front_unit(api_key_file=str(ours)))
        async with running(Front(routes, StaticUpstreams())) as port:
            got = await ask(
                port,
                post(
                    {"model": "big", "n": 1},
                    "/v1/chat/completions?key=clients-own",
                    *CLIENTS_KEYS[:1],
                    *CLIENTS_KEYS[2:],
                ),
            )
            await ask(port, post({"n": 2}, "/v1/embeddings", CLIENTS_KEYS[1], "Anthropic-Beta: b"))
            listed = (await ask(port, get("/v1/models", CLIENTS_KEYS[0]))).json()["data"]
    first, second = up.requests
    assert first.line == "POST /api/v1/chat/completions HTTP/1.1"
    assert second.line == "POST /api/v1/embeddings HTTP/1.1"
    assert first.header("host") == f"127.0.0.1:{up.port}"
    assert [first.header("authorization"), second.header("anthropic-beta")] == ["Bearer fleet-key", "b"]
    assert [json.loads(r.body) for r in up.requests] == [
        {"model": "their/big", "n": 1},
        {"n": 2, "model": "their/default"},
    ]
    assert "clients-own" not in str([(r.line, r.headers, r.body) for r in up.requests])
    assert (got.headers["x-launch-server"], got.headers["x-theirs"]) == ("cloud", "1")
    assert "set-cookie" not in got.headers
    assert [(m["id"], m["owned_by"], m["status"]["value"]) for m in listed] == [
        ("cloud", "cloud", "loaded"),
        ("big", "cloud", "loaded"),
    ]
    assert "context_length" not in listed[0]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/models/ft:their-own"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/files/x/completions"),
        ("GET", "/slots"),
        ("POST", "/tokenize"),
    ],
)
async def test_it_is_only_asked_to_compute(method: str, path: str) -> None:
    """With the fleet's key other paths would reach its account: they end here."""
    async with answering(OK) as up, running(Front(table(outside("cloud", up.port)), StaticUpstreams())) as port:
        data = get(path, method=method) if method != "POST" else post({"model": "cloud"}, path)
        refused = await ask(port, data)
        props = (await ask(port, get("/props?model=cloud"))).json()
    assert (refused.status, refused.code, up.requests) == (404, "not_offered", [])
    assert props["model_alias"] == "cloud"


@pytest.mark.parametrize(
    ("came", "status", "code"),
    [
        (answer(401, b'{"error":"key sk-fleet"}'), 502, "upstream_key_refused"),
        (answer(403), 502, "upstream_key_refused"),
        (answer(429, lines=JSON + b"Retry-After: 7\r\n"), 429, "upstream_busy"),
        (answer(529), 503, "upstream_busy"),
        (answer(503), 503, "upstream_busy"),
        (answer(302, lines=b"Location: https://else.where/\r\n"), 502, "upstream_garbage"),
        (answer(200, b"<html>log in", b"Content-Type: text/html\r\n"), 502, "upstream_garbage"),
        (b"SSH-2.0-OpenSSH\r\n", 502, "upstream_garbage"),
        (answer(400, b'{"error":{"code":"context_length_exceeded"}}'), 400, "context_length_exceeded"),
    ],
)
async def test_what_is_no_answer_is_typed(came: bytes, status: int, code: str) -> None:
    """A key that is not taken, too many requests, a page, another protocol; its own errors arrive as they are."""
    async with answering(came) as up, running(Front(table(outside("cloud", up.port)), StaticUpstreams())) as port:
        got = await ask(port, post({"model": "cloud"}))
    assert (got.status, got.code) == (status, code)
    assert b"sk-fleet" not in got.body
    assert got.headers.get("retry-after") == {429: "7", 503: "5"}.get(status)


async def test_fallbacks_go_both_ways() -> None:
    """From a server of ours that is gone to one outside, and from one that does not serve us, or is gone, to ours."""
    clouds, owns = answering(answer(200, b'{"by":"cloud"}')), answering(answer(200, b'{"by":"own"}'))
    async with clouds as cloud, owns as own, answering(answer(429)) as busy:
        units = (target("gone", free_port()), outside("cloud", cloud.port), target("own", own.port))
        units = (*units, outside("busy", busy.port), outside("away", free_port()))
        names = {unit.name: (unit.name,) for unit in units}
        fallback = {"gone": ("cloud",), "busy": ("own",), "away": ("own",)}
        async with running(Front(table(*units, names=names, fallback=fallback), StaticUpstreams())) as port:
            got = [(await ask(port, post({"model": name}))).json() for name in ("gone", "busy", "away")]
            counted = (await ask(port, get("/metrics"))).body.decode()
    assert got == [{"by": "cloud"}, {"by": "own"}, {"by": "own"}]
    assert json.loads(cloud.requests[0].body) == {"model": "their/default"}
    assert 'launch_requests_total{server="cloud",status="200"} 1' in counted
    assert 'launch_requests_total{server="busy",status="429"} 1' in counted


async def test_a_form_gets_its_name_of_the_model_too() -> None:
    """A transcription: the file as it was, the model as the upstream calls it."""
    sound = bytes(range(256)) * 4096  # more than is read in this process otherwise
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + sound + b"\r\n"
    form = head + b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nbig\r\n--x--\r\n'
    kind = "Content-Type: multipart/form-data; boundary=x"
    async with answering(answer(200, b'{"text":"hi"}')) as up:
        unit = outside("whisper", up.port, faces={"big": FaceUnit(request_set={"model": "Systran/large"})})
        names = {"whisper": ("whisper",), "big": ("whisper",)}
        front = front_unit(max_body_bytes=4 << 20)
        async with running(Front(table(unit, names=names, front=front), StaticUpstreams())) as port:
            got = await ask(port, post(form, "/v1/audio/transcriptions", kind))
    assert got.json() == {"text": "hi"}
    assert up.requests[0].body == form.replace(b"\r\n\r\nbig\r\n", b"\r\n\r\nSystran/large\r\n")
    assert up.requests[0].header("content-length") == str(len(up.requests[0].body))


def test_a_form_without_a_model_gets_one() -> None:
    """It is one field more."""
    form = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    kind = b'multipart/form-data; boundary="x"'
    assert peek_multipart(form, kind) is None
    assert peek_multipart(model_in_form(form, kind, b"m:1"), kind) == "m:1"
    assert model_in_form(form, kind, b"m").endswith(form)


@pytest.fixture
async def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One of 127.0.0.1 that vouches for itself, and its key."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-keyout", str(key), "-out", str(cert), "-days", "1", "-subj", "/CN=x"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1"]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
    return cert, key


async def test_its_certificate_is_checked(certificate: tuple[Path, Path]) -> None:
    """Over TLS, kept alive, and opened again after it was closed; one that nobody vouches for is unreachable."""
    cert, key = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await up.read(reader)
            writer.write(answer(200, b'{"ok":true}'))
            await writer.drain()

    async with Upstream(twice, tls=context) as up:
        good = outside("good", up.port, scheme="https", outside={"ca_file": str(cert)})
        units = (good, outside("strange", up.port, scheme="https"))
        async with running(Front(table(*units), StaticUpstreams())) as port:
            answers = [await ask(port, post({"model": "good"})) for _ in range(5)]
            connections = up.connections
            strange = await ask(port, post({"model": "strange"}))
    assert ([a.status for a in answers], connections) == ([200] * 5, 3)
    assert (strange.status, strange.code) == (503, "upstream_unreachable")
    assert "certificate" in strange.json()["error"]["message"]


def test_certificates_that_cannot_be_used_are_a_finding(tmp_path: Path) -> None:
    """Before anything is served."""
    (tmp_path / "empty.pem").touch()
    os.mkfifo(tmp_path / "pipe.pem")
    for name in ("empty.pem", "none.pem", "pipe.pem"):
        unit = outside("bad", 1, scheme="https", outside={"ca_file": str(tmp_path / name)})
        with pytest.raises(HostError) as refused:
            Front(table(unit), StaticUpstreams())
        assert refused.value.findings[0].code == "route/ca-file"


async def test_nobody_starts_it() -> None:
    """It is up for a supervisor that never heard of it."""
    async with answering(answer(401)) as up:
        unit = outside("cloud", up.port)
        routes = table(unit)
        front = Front(routes, with_remote(FakeFleet(cloud="stopped"), routes))
        async with running(front) as port:
            assert front.upstreams.state("cloud") == "ready"
            refused = await ask(port, post({"model": "cloud"}))
            assert refused.code == "upstream_key_refused"
            assert (await ask(port, get("/ready"))).status == 200


async def test_a_real_llama_server_outside(llama: int) -> None:
    """A llama-server elsewhere: chat by a name that it does not know, streamed too, and one of its own paths."""
    unit = outside("there", llama, "")
    async with running(Front(table(unit, names={"there": ("there",), "big": ("there",)}), StaticUpstreams())) as port:
        body = {"model": "big", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        whole = await ask(port, post(body, "/v1/chat/completions", "Content-Type: application/json"))
        stream = await ask(
            port, post(body | {"stream": True}, "/v1/chat/completions", "Content-Type: application/json")
        )
        own = await ask(port, post({"model": "big", "prompt": "a", "n_predict": 1}, "/completion"))
        metrics = (await ask(port, get("/metrics"))).body.decode()
    assert whole.json()["usage"]["completion_tokens"] <= 2
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert "content" in own.json()
    assert 'launch_generated_tokens_total{server="there"}' in metrics
