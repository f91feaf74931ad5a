"""The control API over a recorded Control."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.errors import Finding, HostError
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.route import Front, control_app
from launcher.route.api import follow, tail
from tests.route.fleet import (
    FakeFleet,
    RawClient,
    ask,
    controlled,
    front_unit,
    get,
    post,
    running,
    table,
    target,
    until,
)


class Recorded:
    """A Control over two processes that notes what it is asked."""

    def __init__(self, log_file: Path | None = None) -> None:
        """Nothing was asked."""
        self.calls: list[tuple[Any, ...]] = []
        self.processes = (
            ProcessStatus(name="m", kind="server", state="ready", port=1, log_file=log_file and str(log_file)),
            ProcessStatus(name="tailed", kind="service", state="failed", port=2, log_tail=("one", "two")),
        )

    def status(self) -> FleetStatus:
        """Both processes."""
        return FleetStatus(
            deployment="d", input_digest="x", runtime_pid=1, front=None, ready=True, processes=self.processes
        )

    async def stop(self, names: tuple[str, ...]) -> None:
        """Noted."""
        self.calls.append(("stop", names))

    async def reload(self, names: tuple[str, ...], deployment_dir: str | None) -> dict[str, Any]:
        """Noted; knows the unknown and the refused."""
        self.calls.append(("reload", names, deployment_dir))
        if "nope" in names:
            raise KeyError("nope")
        if deployment_dir == "/bad":
            raise HostError([Finding(code="host/x", severity="error", key="k", message="no room")])
        if deployment_dir == "/bug":
            raise ZeroDivisionError
        return {"started": [], "stopped": [], "restarted": list(names), "kept": []}


def client_of(control: Recorded) -> httpx.AsyncClient:
    """A client of the control API, without a socket."""
    transport = httpx.ASGITransport(app=control_app(control), raise_app_exceptions=False)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_status() -> None:
    """The FleetStatus as JSON."""
    async with client_of(Recorded()) as client:
        body = (await client.get("/api/status")).json()
    assert body["schema"] == "launch.status/v1"
    assert [p["name"] for p in body["processes"]] == ["m", "tailed"]


async def test_stop() -> None:
    """Named servers, or everything when none is named."""
    control = Recorded()
    async with client_of(control) as client:
        assert (await client.post("/api/stop", json={"names": ["m"]})).json() == {"stopped": ["m"], "all": False}
        assert (await client.post("/api/stop")).json() == {"stopped": [], "all": True}
        unknown = await client.post("/api/stop", json={"names": ["m", "taild"]})
        marked = await client.post("/api/stop", content=b'\xef\xbb\xbf{"names": ["m"]}')
    assert control.calls == [("stop", ("m",)), ("stop", ()), ("stop", ("m",))]
    assert marked.status_code == 200
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_server")
    assert "did you mean 'tailed'" in unknown.json()["error"]["message"]


async def test_reload() -> None:
    """What changed comes back; a refusal carries its findings; a bug is a 500 without its text."""
    control = Recorded()
    async with client_of(control) as client:
        good = await client.post("/api/reload", json={"names": ["m"], "deployment_dir": "/d"})
        unknown = await client.post("/api/reload", json={"names": ["nope"]})
        refused = await client.post("/api/reload", json={"deployment_dir": "/bad"})
        bug = await client.post("/api/reload", json={"deployment_dir": "/bug"})
    assert good.json()["restarted"] == ["m"]
    assert control.calls[0] == ("reload", ("m",), "/d")
    assert unknown.json()["error"]["code"] == "unknown_server"
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["exit_code"]) == (409, "host/x", 6)
    assert error["findings"][0]["message"] == "no room"
    assert (bug.status_code, bug.json()["error"]["code"]) == (500, "internal_error")


@pytest.mark.parametrize(
    "body", [b"[", b"[]", b'{"names":"m"}', b'{"names":[1]}', b'{"other":1}', b'"x"', b'{"a":' * 100_0, b"\xff"]
)
async def test_bad_bodies(body: bytes) -> None:
    """A body that is not what the API takes is 400, and nothing is stopped."""
    control = Recorded()
    async with client_of(control) as client:
        for path in ("/api/stop", "/api/reload"):
            answer = await client.post(path, content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        huge = await client.post("/api/stop", content=b" " * 100_000)
        assert huge.status_code == 413
    assert control.calls == []


async def test_unknown_paths_and_methods() -> None:
    """JSON errors with stable codes, here too."""
    async with client_of(Recorded()) as client:
        missing = await client.get("/api/nope")
        wrong = await client.get("/api/stop")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_logs(tmp_path: Path) -> None:
    """The end of the file, or the kept lines where there is none."""
    log = tmp_path / "m.log"
    log.write_text("".join(f"line {i}\n" for i in range(1000)))
    async with client_of(Recorded(log)) as client:
        assert (await client.get("/api/logs/m?lines=2")).text == "line 998\nline 999\n"
        assert len((await client.get("/api/logs/m")).text.splitlines()) == 200
        assert (await client.get("/api/logs/tailed?lines=1")).text == "two\n"
        for bad in ("0", "-1", "x", "10001", "²", "9" * 5000):
            assert (await client.get(f"/api/logs/m?lines={bad}")).json()["error"]["code"] == "invalid_request"
        assert (await client.get("/api/logs/nope")).json()["error"]["code"] == "unknown_server"
        log.unlink()
        assert (await client.get("/api/logs/m")).text == ""


async def test_follow_sees_what_is_added_across_rotation(tmp_path: Path) -> None:
    """Lines that are appended, a file that is replaced, a file that is truncated."""
    log = tmp_path / "m.log"
    log.write_text("a\nb\n")
    got: list[bytes] = []

    async def read() -> None:
        async for data in follow(log, 1):
            got.append(data)  # noqa: PERF401  # one by one is what is tested

    task = asyncio.create_task(read())
    await until(lambda: got == [b"b\n"])
    with log.open("a") as file:
        file.write("c\n")
    await until(lambda: got[-1] == b"c\n")
    log.rename(tmp_path / "m.log.1")
    log.write_text("d\n")
    await until(lambda: got[-1] == b"d\n")
    log.write_text("")
    await asyncio.sleep(0.3)
    with log.open("a") as file:
        file.write("e\n")
    await until(lambda: got[-1] == b"e\n")
    task.cancel()


async def test_the_last_lines_before_a_rotation_are_followed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server says why it ends, and its log is moved away for the next one's before anybody looks again."""
    log = tmp_path / "log"
    log.write_text("a\n")
    following = follow(log, 1)
    assert await anext(following) == b"a\n"
    monkeypatch.setattr("launcher.route.api._FOLLOW_EVERY_S", 0.05)
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    for number in range(3):
        with log.open("a") as file:
            file.write(f"why {number}\n")
        log.rename(tmp_path / "log.1")
        (tmp_path / "log.1").unlink()  # its inode may be the next one's
        log.write_text(f"new {number}, and longer than before\n")
        got = await asyncio.wait_for(waiting, 10)
        while not got.endswith(b"before\n"):
            got += await asyncio.wait_for(anext(following), 10)
        assert got == f"why {number}\nnew {number}, and longer than before\n".encode()
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


def test_tail_of_long_lines(tmp_path: Path) -> None:
    """Lines longer than a block, and a last line without its end."""
    log = tmp_path / "log"
    log.write_text("x" * 200_000 + "\n" + "y" * 100_000 + "\nend")
    text, end = tail(log, 2)
    assert text == "y" * 100_000 + "\nend"
    assert end == log.stat().st_size


@pytest.mark.timeout(20)
async def test_a_pipe_in_the_place_of_a_log_holds_nobody_up(tmp_path: Path) -> None:
    """It has no lines; what takes its place has."""
    os.mkfifo(tmp_path / "log")
    assert tail(tmp_path / "log", 10) == ("", 0)
    following = follow(tmp_path / "log", 10)
    assert await anext(following) == b""
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    (tmp_path / "log").unlink()
    (tmp_path / "log").write_text("a\n")
    assert await waiting == b"a\n"


def test_tail_of_a_line_that_has_no_end(tmp_path: Path) -> None:
    """A log of gigabytes without a line's end is not read whole: the end of it is what people see."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1024**3)
        file.seek(0, 2)
        file.write(b"end")
    text, end = tail(log, 200)
    assert (text[-3:], end) == ("end", 1024**3 + 3)
    assert len(text) < 5 * 1024**2


async def test_a_log_that_grows_fast_is_kept_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written between two looks comes with the next one, however much it is."""
    log = tmp_path / "log"
    log.write_text("")
    following = follow(log, 1)
    assert await anext(following) == b""
    monkeypatch.setattr("launcher.route.api._FOLLOW_EVERY_S", 0.0)
    log.write_bytes(b"x" * 1024**2)
    got = len(await anext(following))
    monkeypatch.setattr("launcher.route.api._FOLLOW_EVERY_S", 3600.0)
    async with asyncio.timeout(60):
        while got < 1024**2:
            got += len(await anext(following))
    await following.aclose()  # type: ignore[attr-defined]


async def test_mounted_on_the_front(tmp_path: Path) -> None:
    """The front hands `/api/…` over with its body, and survives an app that raises after its answer."""
    control = Recorded()
    keys = tmp_path / "keys"
    keys.write_text("secret-key scopes=admin\n")
    keys.chmod(0o600)
    routes = table(target("m", 1), front=front_unit(api_key_file=str(keys)))
    async with (
        controlled(control_app(control), tmp_path) as sock,
        running(Front(routes, FakeFleet(), control=sock)) as port,
    ):
        bearer = "Authorization: Bearer secret-key"
        answer = await ask(port, post(json.dumps({"names": ["m"]}).encode(), "/api/stop", bearer))
        bug = await ask(port, post({"deployment_dir": "/bug"}, "/api/reload", bearer))
    assert (answer.status, answer.json()["stopped"]) == (200, ["m"])
    assert (bug.status, bug.code) == (500, "internal_error")


async def test_loopback_alone_is_no_permission(tmp_path: Path) -> None:
    """Every user of the machine reaches loopback: without keys the front shows the state and changes nothing."""
    control = Recorded()
    async with (
        controlled(control_app(control), tmp_path) as sock,
        running(Front(table(target("m", 1)), FakeFleet(), control=sock)) as port,
    ):
        for path in ("/api/stop", "/api/reload", "/api/status"):
            assert (await ask(port, post(b"{}", path))).code == "control_needs_key"
        assert (await ask(port, get("/api/logs/m"))).code == "control_needs_key"
        assert (await ask(port, get("/api/status"))).status == 200


async def test_a_log_is_followed_through_the_front(tmp_path: Path) -> None:
    """What is added comes at once; the follower's leaving ends it; it is no request to a server."""
    log, keys = tmp_path / "m.log", tmp_path / "keys"
    log.write_text("one\n")
    keys.write_text("secret-key scopes=admin,infer\n")
    routes = table(target("m", 1), front=front_unit(api_key_file=str(keys)))
    key = "Authorization: Bearer secret-key"
    async with (
        controlled(control_app(Recorded(log)), tmp_path) as sock,
        running(Front(routes, FakeFleet(), control=sock)) as port,
    ):
        async with RawClient(port) as client:
            client.send(get("/api/logs/m?follow=1", key))
            status, headers = await client.head()
            assert (status, headers.get("x-launch-server")) == (200, None)
            assert await client.chunk() == b"one\n"
            with log.open("a") as file:
                file.write("two\n")
            assert await client.chunk() == b"two\n"
        assert "control" not in (await ask(port, get("/metrics", key))).body.decode()


async def test_a_control_api_that_is_gone(tmp_path: Path) -> None:
    """Its socket is closed while the front still drains: 503, typed."""
    async with running(Front(table(target("m", 1)), FakeFleet(), control=tmp_path / "none.sock")) as port:
        answer = await ask(port, get("/api/status"))
    assert (answer.status, answer.code) == (503, "upstream_unreachable")
