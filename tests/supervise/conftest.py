"""Manifests of fake and real servers, and supervisors that leave nothing behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.files import write_atomic
from launcher.files.state import deployment_state_dir
from launcher.ir.fleet import (
    BreakerUnit,
    DeviceBudget,
    DeviceNeed,
    FleetManifest,
    FrontUnit,
    RouteTarget,
    RoutingTable,
    RungUnit,
    ServerUnit,
    SupervisorUnit,
)
from launcher.manifest import argv_digest, encode_document
from launcher.supervise import Children, Supervisor
from launcher.supervise.events import AnyEvent

FAKE = Path(__file__).with_name("fake_server.py")
SUPERVISOR = SupervisorUnit(
    state_dir=None,
    log_max_bytes=1024**2,
    log_files=3,
    backoff_s=0.05,
    backoff_max_s=0.2,
    crash_loop_failures=3,
    crash_loop_window_s=60,
    health_interval_s=0.2,
    health_failures=2,
    drain_timeout_s=3,
    max_parallel_starts=4,
)


def unit(name: str, argv: tuple[str, ...], port: int, model: str, **changes: Any) -> ServerUnit:
    """A server with plain values, changed as asked."""
    base = ServerUnit(
        name=name,
        roles=(),
        aliases=(),
        argv=argv,
        env={},
        host="127.0.0.1",
        port=port,
        model=Path(model).stem,
        model_path=model,
        files=(),
        slots=1,
        n_ctx_per_slot=512,
        probe="completion",
        tier="hot",
        start="boot",
        idle_timeout_s=0,
        expansion_threshold=0,
        exclusive=None,
        default=False,
        after=(),
        start_timeout_s=20,
        stall_timeout_s=10,
        request_timeout_s=30,
        stop_grace_s=3,
        fatal=True,
        request_defaults={},
        memory=(DeviceNeed(device="ram", committed_bytes=100, peak_bytes=100, file_bytes=0),),
        argv_digest=argv_digest(argv),
    )
    return msgspec.structs.replace(base, **changes)


def fake(name: str, port: int, *faults: str, note: str = "", **changes: Any) -> ServerUnit:
    """A fake server with `faults`. Port 0: its `host` is the path of a unix socket."""
    flags = tuple(part for fault in faults for part in ("--fault", fault))
    model = f"/models/{name}.gguf"
    where = ("--port", str(port)) if port else ("--socket", changes["host"])
    argv = (sys.executable, "-S", str(FAKE), *where, "--model", model, *flags)
    argv = changes.pop("argv", argv + (("--note", note) if note else ()))
    return unit(name, argv, port, model, **changes)


def real(name: str, port: int, binary: Path, model: Path, *flags: str, **changes: Any) -> ServerUnit:
    """A real llama-server, quick to start. Port 0: its `host` is the path of a unix socket."""
    quick = (
        "--fit",
        "off",
        "--no-warmup",
        "--offline",
        "--cache-ram",
        "0",
        "--device",
        "none",
        "-c",
        "512",
        "-np",
        "1",
        "--threads",
        "1",
    )
    where = ("--host", "127.0.0.1", "--port", str(port)) if port else ("--host", changes["host"])
    argv = (str(binary), "--model", str(model), *where, *quick, *flags)
    return unit(name, argv, port, str(model), files=(str(model),), **changes)


def rung(label: str, server: ServerUnit, size: int = 50) -> RungUnit:
    """A rung that runs as `server` would, and takes `size` bytes."""
    return RungUnit(
        label=label,
        argv=server.argv,
        argv_digest=server.argv_digest,
        env=server.env,
        model=server.model,
        model_path=server.model_path,
        files=server.files,
        slots=server.slots,
        n_ctx_per_slot=server.n_ctx_per_slot,
        memory=(DeviceNeed(device="ram", committed_bytes=size, peak_bytes=size, file_bytes=0),),
    )


def manifest(*servers: ServerUnit, **changes: Any) -> FleetManifest:
    """A fleet of `servers`."""
    base = FleetManifest(
        deployment="test",
        input_digest="sha256:0",
        launch_version="0",
        hardware="test",
        devices=(DeviceBudget(name="ram", kind="ram", capacity_bytes=1000, budget_bytes=1000),),
        servers=servers,
        services=(),
        hooks=(),
        supervisor=SUPERVISOR,
    )
    return msgspec.structs.replace(base, **changes)


def routes(fleet: FleetManifest, front_port: int) -> RoutingTable:
    """Routes by server name."""
    return RoutingTable(
        deployment=fleet.deployment,
        front=FrontUnit(
            host="127.0.0.1",
            port=front_port,
            api_key_file=None,
            max_body_bytes=1024**2,
            max_header_bytes=65536,
            header_timeout_s=10,
            idle_timeout_s=75,
            connect_timeout_s=5,
            queue_size=64,
            queue_timeout_s=120,
            allowed_hosts=(),
            access_log=False,
        ),
        targets={
            s.name: RouteTarget(
                name=s.name,
                host=s.host,
                port=s.port,
                slots=s.slots,
                n_ctx_per_slot=s.n_ctx_per_slot,
                model=s.model,
                roles=s.roles,
                aliases=s.aliases,
                start=s.start,
                exclusive=s.exclusive,
                request_timeout_s=s.request_timeout_s,
                request_defaults={},
                embedding=False,
                modalities=("text",),
                rungs=len(s.rungs),
            )
            for s in fleet.servers
        },
        names={s.name: (s.name,) for s in fleet.servers},
        default=None,
        pools=(),
        fallback={},
        escalation={},
        max_retries=0,
        max_escalations=0,
        breaker=BreakerUnit(failures=3, open_s=1, open_max_s=2),
        timeouts_s={},
    )


def write_deployment_dir(directory: Path, fleet: FleetManifest, front_port: int, **changes: Any) -> Path:
    """What `launch render` leaves for the runtime; the routing table changed as asked."""
    directory.mkdir(exist_ok=True)
    (directory / "fleet.json").write_bytes(encode_document(fleet))
    table = msgspec.structs.replace(routes(fleet, front_port), **changes)
    (directory / "routes.json").write_bytes(encode_document(table))
    return directory


def children(state_dir: Path, write: Callable[[Path, bytes], None] = write_atomic) -> Children:
    """The owner of processes that are ours."""
    return Children("test", state_dir, write, log_files=SUPERVISOR.log_files, log_max_bytes=SUPERVISOR.log_max_bytes)


async def wake(supervisor: Supervisor, name: str, timeout_s: float = 10) -> None:
    """A request to `name` that ends as soon as it may begin."""
    async with supervisor.lease(name, timeout_s):
        pass


async def becomes(supervisor: Supervisor, name: str, state: str) -> None:
    """Wait until a server is shown in `state`."""
    async with asyncio.timeout(60):
        while supervisor.state(name) != state:  # noqa: ASYNC110 - a drain tells nobody that it began
            await asyncio.sleep(0.005)


class Watcher:
    """Collects events and lets a test wait for one."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self._more = asyncio.Event()

    def __call__(self, event: AnyEvent) -> None:
        """Take one event."""
        self.events.append(event)
        self._more.set()

    def of(self, kind: type[Any], name: str | None = None) -> list[Any]:
        """Events of `kind`, of server `name` if given."""
        return [e for e in self.events if isinstance(e, kind) and (name is None or e.name == name)]

    async def until(self, kind: type[Any], name: str | None = None, count: int = 1) -> Any:
        """The `count`th event of a kind, waited for."""
        async with asyncio.timeout(60):
            while len(found := self.of(kind, name)) < count:
                self._more.clear()
                await self._more.wait()
        return found[count - 1]


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of deployment `test`, away from the user's."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    return deployment_state_dir("test", create=True)


Fleet = Callable[..., Any]


@pytest.fixture
async def fleet(state_dir: Path, no_orphans: None) -> AsyncIterator[Fleet]:
    """`fleet(*servers, **manifest fields)` → (supervisor, watcher), stopped at the end."""
    made: list[Supervisor] = []

    def make(*servers: ServerUnit, **changes: Any) -> tuple[Supervisor, Watcher]:
        watcher = Watcher()
        supervisor = Supervisor(
            manifest(*servers, **changes), state_dir=state_dir, owner=children(state_dir), emit=watcher
        )
        made.append(supervisor)
        return supervisor, watcher

    yield make
    for supervisor in made:
        await supervisor.stop_all("end of test")
