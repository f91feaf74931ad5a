"""Reloads under load: real servers, requests that never stop, none of which may fail."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.ir.fleet import ServerUnit
from launcher.manifest import encode_document
from launcher.runtime import ControlClient, spawn_detached
from launcher.supervise import LOCK_NAME, events, stop_orphans
from launcher.supervise.reload import waves
from launcher.supervise.spec import ProcessSpec, process_specs
from tests.locks import lock_owner
from tests.supervise.conftest import SUPERVISOR, fake, manifest, real, routes, write_deployment_dir

FreePort = Callable[[], int]


@pytest.fixture
def deploy(tmp_path: Path, state_dir: Path, free_port: FreePort, no_orphans: None) -> Iterator[Any]:
    """`deploy(*servers)` writes a deployment where servers of a role share its name; ended at the end."""
    front = free_port()

    def make(*servers: ServerUnit) -> Path:
        fleet = manifest(*servers, supervisor=msgspec.structs.replace(SUPERVISOR, drain_timeout_s=30))
        directory = write_deployment_dir(tmp_path / "deployment", fleet, front)
        table = routes(fleet, front)
        roles = sorted({role for s in servers for role in s.roles})
        names = {role: tuple(s.name for s in servers if role in s.roles) for role in roles}
        table = msgspec.structs.replace(table, names={**table.names, **names})
        (directory / "routes.json").write_bytes(encode_document(table))
        return directory

    make.front = f"http://127.0.0.1:{front}"  # type: ignore[attr-defined] # a handle for the tests
    yield make
    owner = lock_owner(state_dir / LOCK_NAME)
    if owner is not None:
        runtime = psutil.Process(owner.pid)
        runtime.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            runtime.wait(40)
    stop_orphans(state_dir, grace_s=1)


class Load:
    """Streams asked for by several threads, one after the other, for the length of a `with` block."""

    def __init__(self, front: str, model: str, threads: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.servers: Counter[str] = Counter()
        self._front, self._model = front, model
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.more(len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def more(self, number: int) -> None:
        """Wait for `number` more answers."""
        wanted, deadline = self.outcomes.total() + number, time.monotonic() + 60
        while self.outcomes.total() < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _ask(self) -> None:
        """Ask until it is over; every answer is counted by what became of it."""
        body = {"model": self._model, "prompt": "a", "n_predict": 12, "stream": True, "ignore_eos": True}
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set():
                try:
                    with client.stream("POST", f"{self._front}/completion", json=body) as reply:
                        text = reply.read().decode()
                        whole = reply.status_code == 200 and '"stop":true' in text
                        self.outcomes["whole" if whole else f"{reply.status_code} {text[-200:]}"] += 1
                        self.servers[reply.headers.get("x-launch-server", "?")] += 1
                except httpx.HTTPError as error:
                    self.outcomes[repr(error)] += 1


def status(state_dir: Path) -> dict[str, Any]:
    """Every process by name."""
    with ControlClient(state_dir) as client:
        return {p.name: p for p in client.status().processes}


@pytest.fixture
def server(llama_server: Path, tiny_models: Callable[..., Path], free_port: FreePort) -> Callable[..., ServerUnit]:
    """`server(name, port, *flags)`: a real llama-server on a tiny model, one of the role `worker`."""
    whole = ("--grammar", "root ::= [a-z]+")
    model = tiny_models("llama")

    def make(name: str, port: int, *flags: str, **changes: Any) -> ServerUnit:
        return real(name, port, llama_server, model, *whole, *flags, roles=("worker",), **changes)

    return make


def test_replicas_change_one_after_the_other(
    deploy: Any, state_dir: Path, free_port: FreePort, server: Callable[..., ServerUnit]
) -> None:
    """Three real replicas get another context while streams run: all are new, no request failed, never all are down."""
    ports = {name: free_port() for name in ("one", "two", "three")}
    spawn_detached(deploy(*(server(n, p) for n, p in ports.items())))
    before = {name: p.pid for name, p in status(state_dir).items()}
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        """How many serve, again and again."""
        while not over.is_set():
            seen.append(sum(p.state == "ready" for p in status(state_dir).values()))

    with Load(deploy.front, "worker", 4) as load:
        deploy(*(server(n, p, "-b", "256") for n, p in ports.items()))
        watch = threading.Thread(target=look)
        watch.start()
        with ControlClient(state_dir) as client:
            changes = client.reload()
        over.set()
        watch.join()
        load.more(8)
    assert changes["restarted"] == sorted(ports)
    assert set(load.outcomes) == {"whole"}
    assert min(seen) >= 2
    after = status(state_dir)
    assert all(after[name].pid != before[name] and after[name].drift == "" for name in ports)


def test_one_server_changes_while_requests_wait(
    deploy: Any, state_dir: Path, tmp_path: Path, free_port: FreePort, server: Callable[..., ServerUnit]
) -> None:
    """There is no replica: streams end on the old process, new requests wait for the new one; a new server joins.

    H20: those that wait for a slot do so, too, where the new process has another port, or a unix socket.
    """
    port, other, moved, path = free_port(), free_port(), free_port(), tmp_path / "only.sock"
    spawn_detached(deploy(server("only", port)))
    with Load(deploy.front, "only", 5) as load:
        deploy(server("only", port, "-b", "256"), server("new", other))
        with ControlClient(state_dir) as client:
            changes = client.reload()
        load.more(6)
        for unit in (server("only", 0, "-b", "256", host=str(path)), server("only", moved, "-b", "256")):
            deploy(unit, server("new", other))
            with ControlClient(state_dir) as client:
                moves = client.reload()
            assert (moves["restarted"], moves["failed"]) == (["only"], {})
            assert status(state_dir)["only"].socket == ("" if unit.port else str(path))
            assert path.exists() == (not unit.port)
            load.more(6)
    assert (changes["restarted"], changes["started"], changes["failed"]) == (["only"], ["new"], {})
    assert set(load.outcomes) == {"whole"}


def test_a_replica_that_does_not_come_up_spares_the_others(
    deploy: Any, state_dir: Path, free_port: FreePort, server: Callable[..., ServerUnit]
) -> None:
    """A flag that no build knows: the first fails and says why, the second keeps serving as it was."""
    ports = {name: free_port() for name in ("one", "two")}
    spawn_detached(deploy(*(server(n, p, fatal=False) for n, p in ports.items())))
    before = status(state_dir)
    with Load(deploy.front, "worker", 3) as load:
        deploy(*(server(n, p, "--no-such-flag", fatal=False) for n, p in ports.items()))
        with ControlClient(state_dir) as client:
            changes = client.reload()
        load.more(6)
    after = status(state_dir)
    assert (changes["restarted"], changes["kept"], list(changes["failed"])) == (["one"], ["two"], ["one"])
    assert "--no-such-flag" in changes["failed"]["one"]
    assert (after["one"].state, after["two"].pid) == ("failed", before["two"].pid)
    assert "--no-such-flag" in after["two"].drift
    assert set(load.outcomes) == {"whole"}


# --- the order, decided ----------------------------------------------------------------------------------------

NAMES = "abcdef"


@st.composite
def fleets(draw: st.DrawFn) -> tuple[dict[str, ProcessSpec], dict[str, ProcessSpec]]:
    """A fleet before and after: roles, models and ports from few, so that they meet; some servers come and go."""

    def one() -> dict[str, ProcessSpec]:
        ports = draw(st.permutations(range(2000, 2000 + len(NAMES))))
        names = draw(st.sets(st.sampled_from(NAMES), min_size=1))
        units = []
        for name, port in zip(sorted(names), ports, strict=False):
            roles = tuple(draw(st.sets(st.sampled_from("xyz"), max_size=2)))
            model = draw(st.sampled_from(["m", "n", ""]))
            where = {"host": f"/run/{port}.sock"} if port % 2 else {}
            made = fake(name, 0 if where else port, roles=roles, **where)
            units.append(msgspec.structs.replace(made, model=model))
        return process_specs(manifest(*units))

    return one(), one()


@given(fleets())
def test_waves_are_whole_and_keep_replicas_apart(fleet: tuple[dict[str, ProcessSpec], dict[str, ProcessSpec]]) -> None:
    """Each name once; no two replicas that stay where they are in one wave; who moves goes in the first."""
    old, new = fleet
    names = sorted(old.keys() & new.keys())
    found = waves(names, old, new)
    assert sorted(name for wave in found for name in wave) == names
    assert all(found)
    was, becomes = ({n: (specs[n].unit.host, specs[n].unit.port) for n in names} for specs in fleet)
    moving = {n for n in names if was[n] != becomes[n]}
    assert moving <= set(found[0] if found else ())

    def alike(specs: dict[str, ProcessSpec], one: str, other: str) -> bool:
        return (
            bool(set(specs[one].unit.roles) & set(specs[other].unit.roles))
            or specs[one].unit.model == specs[other].unit.model != ""
        )

    held = {where: name for name, where in was.items()}
    if any(held.get(becomes[n], n) != n for n in names):
        assert len(found) == 1
        return
    for wave in found:
        staying = [n for n in wave if n not in moving]
        pairs = [(a, b) for a in staying for b in staying if a < b]
        assert not any(alike(old, a, b) and alike(new, a, b) for a, b in pairs)


async def test_a_stop_by_hand_in_the_middle_of_a_reload_stands(fleet: Any, free_port: FreePort) -> None:
    """While its process ends for the reload somebody stops it: it stays so, until it is reloaded by name."""
    unit = fake("alpha", free_port(), "ignore-term", stop_grace_s=0.5)
    changed = msgspec.structs.replace(unit, env={"A": "1"})
    supervisor, watcher = fleet(unit, fake("beta", free_port()))
    await supervisor.start()
    again = manifest(changed, supervisor.manifest.servers[1])
    reloading = asyncio.create_task(supervisor.reload(again, ()))
    await watcher.until(events.ServerStopping, "alpha")
    await supervisor.stop(("alpha",))
    changes = await asyncio.wait_for(reloading, 20)
    assert (changes.restarted, changes.kept) == ((), ("alpha", "beta"))
    assert (supervisor.state("alpha"), supervisor._runners["alpha"].life.held) == ("stopped", True)
    await supervisor.reload(again, ("alpha",))
    assert (supervisor.state("alpha"), supervisor._runners["alpha"].life.held) == ("ready", False)
