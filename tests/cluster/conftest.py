"""A fake cluster, and a front of it: the real supervisor, owner and election of one front."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.files.state import deployment_state_dir
from launcher.ir.fleet import ClusterUnit, FleetManifest, ServerUnit, ServiceUnit
from launcher.supervise import Supervisor
from launcher.supervise.kubernetes import Pods
from tests.cluster.fake_cluster import TOKEN, Cluster
from tests.supervise.conftest import FAKE, Watcher, manifest, unit

LEASE_S = 15.0


def pod_of(name: str, port: int, *faults: str, alias: str = "", **changes: Any) -> ServerUnit:
    """A server on demand whose pod is a fake llama-server on `port` of loopback."""
    model = f"/models/{name}.gguf"
    flags = tuple(part for fault in faults for part in ("--fault", fault))
    runs = (sys.executable, "-S", str(FAKE), "--port", str(port), "--model", model, "--alias", alias or name, *flags)
    argv = changes.pop("argv", runs)
    return unit(name, argv, port, model, **{"start": "demand", "fatal": False, "stall_timeout_s": 20, **changes})


def boxed(name: str, port: int, **changes: Any) -> ServiceUnit:
    """A service whose pod is a fake llama-server on `port` of loopback."""
    plain: dict[str, Any] = {"env": {}, "host": "127.0.0.1", "health_path": "/health", "start": "demand"}
    plain |= {"start_timeout_s": 20, "fatal": False, "ram_bytes": 100, "builtin": None, "container": None}
    argv = (sys.executable, "-S", str(FAKE), "--port", str(port), "--model", "/models/x.gguf", "--alias", "stranger")
    return ServiceUnit(name=name, argv=argv, port=port, **plain | changes)


def fleet_of(
    account: Path, *everyone: ServerUnit | ServiceUnit, lease_s: float = LEASE_S, **changes: Any
) -> FleetManifest:
    """As the front of a cluster reads it."""
    servers = tuple(one for one in everyone if isinstance(one, ServerUnit))
    services = tuple(one for one in everyone if isinstance(one, ServiceUnit))
    account.mkdir(exist_ok=True)
    (account / "token").write_text(TOKEN)
    cluster = ClusterUnit(
        namespace="fleet",
        selector={"app": "fleet"},
        label="component",
        deployments={one.name: f"launch-{one.name}" for one in everyone},
        lease="front",
        account_dir=str(account),
        lease_s=lease_s,
    )
    return manifest(*servers, services=services, cluster=cluster, **changes)


async def certified(account: Path, address: str = "127.0.0.1") -> ssl.SSLContext:
    """What an API server at `address` speaks TLS with; `account` gets the certificate that vouches for it."""
    account.mkdir(exist_ok=True)  # noqa: ASYNC240 - a test's
    words = ("-keyout", "key.pem", "-out", "ca.crt", "-days", "2", "-subj", "/CN=api", "-addext")
    make = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *words)
    made = await asyncio.create_subprocess_exec(
        *make, f"subjectAltName=IP:{address}", cwd=account, stderr=asyncio.subprocess.DEVNULL
    )
    assert await made.wait() == 0
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(account / "ca.crt", account / "key.pem")
    return tls


def cluster_of(*servers: ServerUnit | ServiceUnit, **more: Any) -> Cluster:
    """What runs their pods."""
    groups = {f"launch-{s.name}": s.exclusive for s in servers if s.exclusive is not None}
    return Cluster({f"launch-{s.name}": s.argv for s in servers}, groups=groups, **more)


class Front:
    """One front, that leads once it is `up`."""

    def __init__(self, fleet: FleetManifest, port: int, state_dir: Path) -> None:
        """`port`: of the API server."""
        assert isinstance(fleet.cluster, ClusterUnit)
        self.pods = Pods(fleet.cluster, fleet, port=1, url=f"http://127.0.0.1:{port}")
        self.watcher = Watcher()
        self.supervisor = Supervisor(fleet, state_dir=state_dir, owner=self.pods, emit=self.watcher)
        self._running: asyncio.Task[None] | None = None

    async def up(self) -> None:
        """Be elected, find what runs, start what is always on."""
        self._running = asyncio.create_task(self.pods.election.run())
        await self.pods.election.elected.wait()
        await self.supervisor.recover()
        await self.supervisor.start()

    async def leave(self) -> None:
        """End, as after a signal: what runs runs on."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self.pods.election.give_back()
        self.supervisor.abandon()
        await self.pods.close()


Up = Callable[..., Any]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this deployment, away from the user's."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    return deployment_state_dir("test", create=True)


@pytest.fixture
async def up(tmp_path: Path, state_dir: Path, no_orphans: None) -> AsyncIterator[Up]:
    """Call it with servers for a cluster and a front of it, both ended with the test; `cluster`: of that one."""
    fronts: list[Front] = []
    clusters: list[Cluster] = []

    async def make(
        *servers: ServerUnit | ServiceUnit, cluster: Cluster | None = None, **more: Any
    ) -> tuple[Cluster, Front]:
        if cluster is None:
            cluster = cluster_of(*servers, **more)
            await cluster.open()
            clusters.append(cluster)
        front = Front(fleet_of(tmp_path / "account", *servers), cluster.port, state_dir)
        fronts.append(front)
        await front.up()
        return cluster, front

    yield make
    for front in fronts:
        await front.leave()
    for cluster in clusters:
        await cluster.close()
