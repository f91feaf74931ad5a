"""Who may ask: hosts, origins, keys, public binds, the control API's callers."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import ConfigError, HostError
from launcher.route import Front, bind, bind_more, serve
from launcher.route.guard import Guard, check_control, host_name, is_loopback
from launcher.route.head import Head
from launcher.route.problem import HttpError
from tests.route.fleet import OK, FakeFleet, answering, ask, controlled, front_unit, get, post, running, table, target


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:80", "my.lan:9"]
)
async def test_known_hosts_are_answered(host: str) -> None:
    """Loopback names with any port, and allowed hosts."""
    unit = front_unit(allowed_hosts=("My.Lan",))
    async with running(Front(table(target("m", 1), front=unit), FakeFleet())) as port:
        assert (await ask(port, get("/health", host=host))).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[::2]", "localhost@evil"]
)
async def test_rebound_hosts_are_refused(host: str) -> None:
    """Any other name is 403, also for the health path: a rebound page learns nothing."""
    async with running(Front(table(target("m", 1)), FakeFleet())) as port:
        answer = await ask(port, get("/v1/models", host=host))
    assert (answer.status, answer.code) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://", "http://evil.example:80"]
)
async def test_other_sites_are_refused(origin: str) -> None:
    """A page of another site gets 403 for reads, writes and preflights."""
    async with answering(OK) as up, running(Front(table(target("m", up.port)), FakeFleet())) as port:
        for raw in (
            post({"model": "m"}, "/v1/chat/completions", f"Origin: {origin}"),
            get("/v1/models", f"Origin: {origin}"),
            get("/v1/models", f"Origin: {origin}", method="OPTIONS"),
        ):
            answer = await ask(port, raw)
            assert (answer.status, answer.code) == (403, "origin_not_allowed")
            assert "access-control-allow-origin" not in answer.headers
    assert up.requests == []


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://my.lan"])
async def test_local_pages_may_read(origin: str) -> None:
    """Pages of allowed hosts are answered with CORS headers of ours, not the upstream's."""
    reply = OK.replace(b"\r\n\r\n", b"\r\nAccess-Control-Allow-Origin: *\r\n\r\n", 1)
    unit = front_unit(allowed_hosts=("my.lan",))
    async with answering(reply) as up, running(Front(table(target("m", up.port), front=unit), FakeFleet())) as port:
        answer = await ask(port, post({"model": "m"}, "/x", f"Origin: {origin}"))
        plain = await ask(port, post({"model": "m"}, "/x"))
        asked = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-a, authorization")
        preflight = await ask(port, get("/x", f"Origin: {origin}", *asked, method="OPTIONS"))
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
    assert "access-control-allow-origin" not in plain.headers
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-headers"] == "x-a, authorization"
    assert up.requests[0].header("origin") is None


async def test_apps_may_be_let_in() -> None:
    """By their origin, or by their kind; others of that kind of host are not."""
    unit = front_unit(allowed_origins=("app://obsidian.md", "vscode-webview://*", "null"))
    async with answering(OK) as up, running(Front(table(target("m", up.port), front=unit), FakeFleet())) as port:
        asked = ["app://obsidian.md", "vscode-webview://1f2e", "null", "app://other.md", "https://obsidian.md"]
        found = [(await ask(port, post({"model": "m"}, "/x", f"Origin: {o}"))).status for o in asked]
    assert found == [200, 200, 200, 403, 403]


async def test_other_apis_are_not_there(tmp_path: Path) -> None:
    """Who looks for an Ollama is told that there is none; the control API has a place of its own."""
    paths: list[str] = []

    async def control(scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with (
        controlled(control, tmp_path) as sock,
        running(Front(table(target("m", 1)), FakeFleet(), control=sock)) as port,
    ):
        probes = [await ask(port, get(f"/api/{name}")) for name in ("tags", "version", "show", "stopp")]
        probes.append(await ask(port, post({"model": "m"}, "/api/chat")))
        assert {(a.status, a.code) for a in probes} == {(404, "not_found")}
        assert (await ask(port, get("/v1/launch/status"))).status == 200
        refused = [await ask(port, post(b"{}", path)) for path in ("/v1/launch/stop", "/api/stop")]
    assert {(a.status, a.code) for a in refused} == {(403, "control_needs_key")}
    assert paths == ["/v1/launch/status"]


async def test_keys(tmp_path: Path) -> None:
    """With a key file, every path but the probes' needs a key, by either header; no answer repeats it.

    `/` is a page without one, too, and says nothing of the fleet.
    """
    keys = tmp_path / "keys"
    keys.write_text("# people\nalice-key\n\n  bobs-key  \n")
    unit = front_unit(api_key_file=str(keys))
    async with (
        answering(OK) as up,
        running(Front(table(target("m", up.port, model="secret-model"), front=unit), FakeFleet())) as port,
    ):
        for good in (
            "Authorization: Bearer alice-key",
            "X-Api-Key: bobs-key",
            "authorization: bearer bobs-key",
            "Authorization: bobs-key",
        ):
            assert (await ask(port, post({"model": "m"}, "/x", good))).status == 200
        for bad in (
            "Authorization: Bearer nope-key",
            "X-Api-Key: ",
            "X-Api-Key: # people",
            "Authorization: Basic eA==",
        ):
            answer = await ask(port, post({"model": "m"}, "/v1/messages", bad))
            assert answer.status == 401
            assert answer.json()["error"]["type"] == "authentication_error"
            assert b"nope-key" not in answer.body
        for path in ("/v1/models", "/metrics", "/props"):
            assert (await ask(port, get(path))).code == "api_key_required"
        page, wrong = await ask(port, get("/")), await ask(port, get("/", "X-Api-Key: nope-key"))
        assert (page.status, b"Bearer KEY" in page.body, wrong.code) == (200, True, "invalid_api_key")
        assert not any(word in page.body for word in (b"secret-model", b"test", b"error"))
        assert b"secret-model" in (await ask(port, get("/", "X-Api-Key: bobs-key"))).body
        assert (await ask(port, post({"model": "m"}, "/"))).code == "api_key_required"
        for path in ("/health", "/ready"):
            assert (await ask(port, get(path))).status == 200
    assert len(up.requests) == 4
    assert {r.header("authorization") or r.header("x-api-key") for r in up.requests} == {None}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "route/key-file-unreadable"),
        (b"\n# none\n", "route/key-file-empty"),
        (b"\xff", "route/key-file-unreadable"),
    ],
)
def test_unusable_key_files(tmp_path: Path, content: bytes | None, code: str) -> None:
    """A missing, empty or unreadable key file is a HostError when the front is made, not an open door."""
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_bytes(content)
    with pytest.raises(HostError) as refused:
        Front(table(target("m", 1), front=front_unit(api_key_file=str(keys))), FakeFleet())
    assert refused.value.findings[0].code == code


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_public_bind_needs_a_key(host: str, tmp_path: Path) -> None:
    """A front beyond this machine without keys is refused at construction, and at a reload."""
    with pytest.raises(ConfigError) as refused:
        Front(table(target("m", 1), front=front_unit(host=host)), FakeFleet())
    assert refused.value.findings[0].code == "route/public-without-key"
    front = Front(table(target("m", 1)), FakeFleet())
    with pytest.raises(ConfigError):
        front.replace_table(table(target("m", 1), front=front_unit(host=host)))
    keys = tmp_path / "keys"
    keys.write_text("key-of-one\n")
    Front(table(target("m", 1), front=front_unit(host=host, api_key_file=str(keys))), FakeFleet())


async def test_serve_refuses_a_public_address_too() -> None:
    """The table may say loopback: what counts is where it listens."""
    front = Front(table(target("m", 1)), FakeFleet())
    with pytest.raises(ConfigError):
        await serve(front, host="0.0.0.0", port=0, shutdown=asyncio.Event(), drain_timeout_s=1)


def test_one_public_address_of_several_needs_a_key(tmp_path: Path) -> None:
    """Beside loopback and a unix socket, which do not; the Host of each is answered to."""
    near = front_unit(listen=("127.0.0.2", str(tmp_path / "s")))
    guard = Guard(near)
    guard.check_host(b"127.0.0.2:8000", "1.1")
    with pytest.raises(HttpError):
        guard.check_host(b"example.org", "1.1")
    with pytest.raises(ConfigError):
        Front(table(target("m", 1), front=front_unit(listen=("192.168.1.5",))), FakeFleet())


async def test_every_place_to_listen_answers(tmp_path: Path) -> None:
    """Both families of `::`, a unix socket whose owner died, and one that lives and is left alone; all end together."""
    keys, path = tmp_path / "keys", tmp_path / "front.sock"
    keys.write_text("long-enough-key\n")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    unit = front_unit(host="::", listen=(str(path),), api_key_file=str(keys))
    front = Front(table(target("m", 1), front=unit), FakeFleet())
    sock, more, told = bind(front, "::", 0), bind_more(front), asyncio.Event()
    port = sock.getsockname()[1]
    serving = asyncio.create_task(
        serve(front, host="::", port=port, sock=sock, more=more, shutdown=told, drain_timeout_s=1)
    )
    for connection in (("127.0.0.1", port), ("::1", port), None):
        opened = asyncio.open_connection(*connection) if connection else asyncio.open_unix_connection(path)
        reader, writer = await opened
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
    with pytest.raises(HostError, match="the front cannot listen on"):
        bind_more(front)
    told.set()
    await serving
    assert not path.exists()


def test_public_front_answers_to_its_allowed_hosts(tmp_path: Path) -> None:
    """A public front checks hosts only when some are listed; the asterisk allows all."""
    keys = tmp_path / "keys"
    keys.write_text("key-of-one\n")
    file = str(keys)
    Guard(front_unit(host="0.0.0.0", api_key_file=file)).check_host(b"any.example", "1.1")
    Guard(front_unit(allowed_hosts=("*",))).check_host(b"any.example", "1.1")
    some = Guard(front_unit(host="0.0.0.0", api_key_file=file, allowed_hosts=("a.example",)))
    some.check_host(b"a.example:80", "1.1")
    with pytest.raises(HttpError):
        some.check_host(b"b.example", "1.1")


async def test_control_api_is_for_this_origin_only(tmp_path: Path) -> None:
    """`/api/` reaches the control app; a page of another port on this machine does not."""
    paths: list[str] = []

    async def control(scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with (
        controlled(control, tmp_path) as sock,
        running(Front(table(target("m", 1)), FakeFleet(), control=sock)) as port,
    ):
        assert (await ask(port, get("/api/status"))).status == 200
        same = get("/api/status", f"Origin: http://localhost:{port}", host=f"localhost:{port}")
        assert (await ask(port, same)).status == 200
        other = post(b"{}", "/api/stop", "Origin: http://localhost:1")
        assert (await ask(port, other)).code == "origin_not_allowed"
    assert paths == ["/api/status", "/api/status"]


@pytest.mark.parametrize("peer", ["192.168.1.9", "2001:db8::1", ""])
def test_control_api_is_for_this_machine_only(peer: str) -> None:
    """A caller from elsewhere is refused, whatever headers it sends."""
    headers = [(b"host", b"localhost"), (b"x-forwarded-for", b"127.0.0.1")]
    head = Head("GET", b"/api/status", "1.1", headers, keep_alive=True)
    check_control(head, "127.0.0.1", has_keys=False)
    with pytest.raises(HttpError, match="this machine only"):
        check_control(head, peer, has_keys=True)
    reload = Head("POST", b"/v1/launch/reload", "1.1", headers, keep_alive=True)
    check_control(reload, "127.0.0.1", has_keys=False, has_session=True)
    for has_session in (True, False):  # the page's own reload is another: this one names a directory of this machine
        with pytest.raises(HttpError, match="this machine only"):
            check_control(reload, peer, has_keys=True, has_session=has_session)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("", False), ("0.0.0.0", False)],
)
def test_is_loopback(host: str, *, loopback: bool) -> None:
    """Addresses of 127/8, ::1 and localhost."""
    assert is_loopback(host) is loopback


def test_host_name() -> None:
    """The port is cut off, an IPv6 address keeps its brackets."""
    assert [host_name(h) for h in (b"A:1", b"[::1]:2", b"[::1", b"a")] == [b"a", b"[::1]", b"", b"a"]


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        (b"localhost", b"localhost"),
        (b"LocalHost:8000", b"localhost"),
        (b"[::1]:80", b"[::1]"),
        (b"localhost:1@evil.example", b""),
        (b"localhost:evil.example/x", b""),
        (b"[::1].evil.example", b""),
        (b"localhost/", b""),
        (b"", b""),
    ],
)
def test_only_a_host_with_a_port_is_a_host(authority: bytes, name: bytes) -> None:
    """What only begins like a host that is ours is none."""
    assert host_name(authority) == name
