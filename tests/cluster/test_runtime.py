"""The runtime of a front, whole and in this process: it waits, leads, serves, and leaves what runs to the next."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.runtime.cluster import ClusterRuntime
from launcher.runtime.fleet import Runtime
from launcher.supervise import events
from launcher.supervise.scheduled.lease import claim_of, identity, taken
from tests.cluster.conftest import certified, cluster_of, fleet_of, pod_of
from tests.supervise.conftest import Watcher, write_deployment_dir

FreePort = Callable[[], int]


async def test_a_front_from_its_wait_to_its_end(
    free_port: FreePort, tmp_path: Path, state_dir: Path, no_orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS: while another leads it passes clients on; then it scales what is asked for, and nobody else answers."""
    account, port = tmp_path / "account", free_port()
    tls = await certified(account)
    server = pod_of("alpha", free_port())
    cluster = cluster_of(server)
    await cluster.open(tls)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    directory = write_deployment_dir(tmp_path / "deployment", fleet_of(account, server, lease_s=30.0), port)

    async def leads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(leads, "127.0.0.1", 0)
    holder = identity(f"127.0.0.1:{other.sockets[0].getsockname()[1]}", "other", "1")
    cluster.lease = taken(cluster.lease, holder, 3600, "t")
    watcher = Watcher()
    assert Runtime(directory, watcher).in_cluster
    runtime = ClusterRuntime(directory, watcher)
    running = asyncio.create_task(runtime.main())

    async def asked(path: str, **body: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            url = f"http://127.0.0.1:{port}{path}"
            return await (client.post(url, json=body) if body else client.get(url))

    async def waits() -> bool:
        try:
            return (await asked("/health")).text == "other"
        except httpx.TransportError:
            return False

    try:
        async with asyncio.timeout(120):
            while not await waits():  # noqa: ASYNC110 - of a port that nobody tells about
                await asyncio.sleep(0.05)
        assert watcher.events == []
        cluster.lease = taken(cluster.lease, "", 1, "t")  # given back
        await watcher.until(events.FleetReady)
        answer = await asked("/v1/completions", model="alpha", prompt="a")
        assert (answer.status_code, answer.json()["model"]) == (200, "alpha")
        assert answer.headers["x-launch-server"] == "alpha"
        runtime._on_signal(signal.SIGTERM)
        await running
        assert claim_of(cluster.lease).holder == ""
        assert cluster.running() == {"launch-alpha"}
        assert await runtime._scheduler.living({}) == ([], [])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        other.close()
        await cluster.close()
