"""RPC peers: real ones greet, a server is started when all do, ended when one is lost, and back when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.ir.fleet import ServerUnit, ServiceUnit
from launcher.supervise import Supervisor, events, http, peers
from tests.supervise.conftest import Fleet, fake, real

FreePort = Callable[[], int]


def lender(binary: Path, port: int, name: str = "lender", **changes: Any) -> ServiceUnit:
    """A real RPC server."""
    program = str(binary.parent / "ggml-rpc-server")
    argv = (program, "--host", "127.0.0.1", "--port", str(port), "--device", "CPU", "--threads", "1")
    plain: dict[str, Any] = {"env": {}, "host": "127.0.0.1", "health_path": "/health", "start": "boot"}
    plain |= {"start_timeout_s": 20, "fatal": False, "ram_bytes": 1, "builtin": None, "container": None}
    return ServiceUnit(name=name, argv=argv, port=port, protocol="rpc", **plain | changes)


def head(binary: Path, model: Path, port: int, *lenders: ServiceUnit, **changes: Any) -> ServerUnit:
    """A real llama-server with all of its layers at `lenders`."""
    endpoints = tuple(f"{unit.host}:{unit.port}" for unit in lenders)
    names = ",".join(f"RPC{i}" for i in range(len(endpoints)))
    words = ("--rpc", ",".join(endpoints), "--device", names, "--n-gpu-layers", "all")
    return real("head", port, binary, model, *words, peers=endpoints, **{"fatal": False} | changes)


async def completes(port: int) -> bool:
    """Whether a token comes out."""
    body = {"prompt": "a", "n_predict": 1}
    return (await http.request("127.0.0.1", port, "/completion", body=body, timeout_s=30)).status == 200


@pytest.fixture
async def listener(free_port: FreePort) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A port where somebody else listens, and what came there: the first is answered by HTTP, others by silence."""
    came: list[bytes] = []
    gone = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read(64))
        if len(came) == 1:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()
        gone.release()

    port = free_port()
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    yield port, came
    for _ in came:
        await gone.acquire()
    server.close()


async def test_who_greets(
    llama_server: Path, free_port: FreePort, fleet: Fleet, listener: tuple[int, list[bytes]], monkeypatch: Any
) -> None:
    """A real RPC server, one client at a time; nobody else, whatever listens, and no name that is no port."""
    port = free_port()
    supervisor, watcher = fleet(fake("a", free_port()), services=(lender(llama_server, port),))
    await supervisor.start()
    await watcher.until(events.ServerReady, "lender")
    mine = f"127.0.0.1:{port}"
    assert await peers.answers_hello(mine)
    assert await peers.answers_hello(mine)
    assert len(await peers.absent([mine, f"127.0.0.1:{free_port()}"])) == 1
    monkeypatch.setattr(peers, "_ASK_S", 0.3)
    assert not await peers.answers_hello(f"127.0.0.1:{listener[0]}")
    assert not await peers.answers_hello(f"127.0.0.1:{listener[0]}")
    assert listener[1][0].startswith(b"\x0e\x18")
    assert not await peers.answers_hello("no port")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(peers._HELLO)
        await reader.readexactly(8)
        assert peers.lost([mine]) == []
        assert await peers.absent([mine]) == [mine]
    finally:
        writer.close()
    nobody = f"127.0.0.1:{free_port()}"
    assert peers.lost([nobody, "name:1"]) == [nobody]


async def test_a_lost_peer(
    llama_server: Path, tiny_models: Callable[..., Path], free_port: FreePort, fleet: Fleet
) -> None:
    """One of two is killed while nobody asks: the server is ended, started when both are there, and answers."""
    two = [lender(llama_server, free_port(), f"lender{i}") for i in range(2)]
    port = free_port()
    supervisor, watcher = fleet(head(llama_server, tiny_models("llama"), port, *two), services=tuple(two))
    await supervisor.start()
    assert supervisor.state("head") == "ready"
    assert await completes(port)
    os.kill(supervisor._runners["lender0"].pid, signal.SIGKILL)
    failed = await watcher.until(events.ServerFailed, "head")
    assert failed.code == "supervise/peer-lost"
    await watcher.until(events.ServerReady, "head", 2)
    assert await completes(port)
    assert len(watcher.of(events.ServerStarting, "head")) == 2


async def test_no_start_with_fewer(
    llama_server: Path,
    tiny_models: Callable[..., Path],
    free_port: FreePort,
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one of two peers there is no process; the fleet is up without it, and it is started when both greet."""
    monkeypatch.setattr(peers, "_PATIENCE_S", 0.5)
    there, late = lender(llama_server, free_port(), "there"), lender(llama_server, free_port(), "late", start="demand")
    port = free_port()
    server = head(llama_server, tiny_models("llama"), port, there, late)
    supervisor, watcher = fleet(fake("other", free_port()), server, services=(there, late))
    await supervisor.start()
    failed = await watcher.until(events.ServerFailed, "head")
    assert (failed.code, failed.final) == ("supervise/peer-missing", True)
    assert f"127.0.0.1:{late.port}" in failed.cause
    assert watcher.of(events.ServerStarting, "head") == []
    assert supervisor.state("other") == "ready"
    supervisor._runners["late"].start()
    await watcher.until(events.ServerReady, "head")
    assert await completes(port)


async def test_a_peer_that_stays_away(
    llama_server: Path,
    tiny_models: Callable[..., Path],
    free_port: FreePort,
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server that lost it waits once, and is no crash loop; it is started when the peer is back, however late."""
    monkeypatch.setattr(peers, "_PATIENCE_S", 0.5)
    one = lender(llama_server, free_port())
    server = head(llama_server, tiny_models("llama"), free_port(), one)
    supervisor, watcher = fleet(fake("other", free_port()), server, services=(one,))
    await supervisor.start()
    await supervisor.stop(("lender",))
    lost, missing = [await watcher.until(events.ServerFailed, "head", count) for count in (1, 2)]
    assert (lost.code, lost.final) == ("supervise/peer-lost", False)
    assert (missing.code, missing.final) == ("supervise/peer-missing", True)
    assert "given up" not in missing.cause
    await supervisor.reload(supervisor.manifest, ("lender",))
    await watcher.until(events.ServerReady, "head", 2)
    assert len(watcher.of(events.ServerFailed, "head")) == 2


async def test_a_start_that_waits_is_stopped(
    llama_server: Path, tiny_models: Callable[..., Path], free_port: FreePort, fleet: Fleet
) -> None:
    """Nothing is there yet that could end: it is stopped at once, by force too, and nothing is started later."""
    late = lender(llama_server, free_port(), "late", start="demand")
    server = head(llama_server, tiny_models("llama"), free_port(), late, start="demand")
    supervisor, watcher = fleet(fake("other", free_port()), server, services=(late,))
    await supervisor.start()
    runner = supervisor._runners["head"]
    for force in (False, True):
        runner.start()
        assert (runner.life.shown, runner.pid) == ("starting", None)
        runner.stop("stop", force=force)
        await runner.until("stopped")
    assert watcher.of(events.ServerFailed, "head") == []
    _left(supervisor)


def _left(supervisor: Supervisor) -> None:
    """No process but the other's."""
    assert [name for name, runner in supervisor._runners.items() if runner.pid is not None] == ["other"]
