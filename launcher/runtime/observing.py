"""What the runtime observes of its fleet, as status and metrics: warm pool, swaps, failures, memory. I/O."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from launcher.base import metrics
from launcher.base.metrics import Histogram, Samples, counter, gauge, histogram
from launcher.base.procfs import meminfo
from launcher.ir.events import Happened
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.orchestrate.pool import WarmPool
from launcher.runtime.targets import bounds, samples, target_events, targets_now
from launcher.supervise import events
from launcher.supervise.room import available_bytes

_GPU_EVERY_S = 5.0
TARGETS_EVERY_S = 5.0
"""Seconds between two comparisons of targets with the last measurements; also after every swap."""
SOURCES = ("pool", "disk")
"""Where a swap found its files: in RAM, kept by the warm pool, or not."""
TARGET_METRICS = {
    "limit": "What should be kept to: at most so many seconds, at least so many tokens a second.",
    "measured": "What was measured of it last.",
    "met": "1 where the last measurement keeps to it, 0 where it does not.",
}


class Observer:
    """Gets every event of one runtime. All methods are called in its event loop."""

    def __init__(
        self,
        manifest: FleetManifest,
        table: RoutingTable,
        processes: Callable[[], Iterable[ProcessStatus]],
        *,
        emit: Callable[[Happened], None],
    ) -> None:
        """`processes`: the present status of every process; `emit` gets events of the warm pool and of targets.

        Nothing runs before the fleet is ready.
        """
        self.pool = WarmPool(manifest, table, available=available_bytes, emit=emit)
        self._processes = processes
        self._gpus = tuple(device.name for device in manifest.devices if device.kind == "gpu")
        self._emit = emit
        self._targets = manifest.targets
        self._met: dict[tuple[str, str], bool] = {}
        """Target and server → whether it was met at the last event."""
        self._swaps = _swaps(manifest)
        self._file_sources: dict[str, str] = {}
        """Server → where its last start found its files."""
        self._swap_s: float | None = None
        self._failures: Counter[str] = Counter()
        self._degradations: Counter[str] = Counter()
        self._restored: Counter[str] = Counter()
        self._models = _models(manifest, table)
        self._vram: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _start(self) -> None:
        """Start the warm pool, and ask the GPUs: not before the fleet is up, whose loads come first."""
        self.pool.start()
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(self._watch_targets())]
            self._tasks += [loop.create_task(self._watch_gpus())] if self._gpus else []

    async def close(self) -> None:
        """Stop the warm pool and all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self.pool.close(), return_exceptions=True)

    def take_over(self, manifest: FleetManifest, table: RoutingTable) -> None:
        """Take over another manifest. Swaps are counted anew where their target, and so a bucket, has changed."""
        if bounds(manifest.targets) != bounds(self._targets):
            self._swaps = _swaps(manifest)
        self._targets, self._met = manifest.targets, {}
        self._models = _models(manifest, table)
        self.pool.take_over(manifest, table)

    def __call__(self, event: events.AnyEvent) -> None:
        """Take in one event."""
        match event:
            case events.ServerStarting() | events.ServerAdopted():
                kept = self.pool.residency(event.name)[1] in ("warm", "locked")
                self._file_sources[event.name] = "pool" if kept else "disk"
                self.pool.started(event.name)
            case events.FleetReady():
                self._start()
            case events.ServerStopped():
                self.pool.ended(event.name)
            case events.ServerFailed():
                self._failures[event.name] += 1
                self.pool.ended(event.name)
            case events.RungTaken() if event.rung and not event.by_hand:
                self._failures[event.name] += 1
                self._degradations[event.name] += 1
            case events.Swapped():
                self._swaps[self._file_sources.get(event.name, "disk")].observe(event.seconds)
                self._swap_s = event.seconds
                self.check_targets()
            case events.SlotsRestored():
                self._restored[event.name] += event.tokens
            case _:
                pass

    def check_targets(self) -> None:
        """Emit an event for each target that is missed now, or met again."""
        if self._targets is not msgspec.UNSET:
            now = targets_now(self._targets, self._processes(), self._swap_s)
            for what in target_events(self._met, now):
                self._emit(what)
            self._met |= {(t.name, t.server): t.met for t in now if t.met is not None}

    async def _watch_targets(self) -> None:
        while True:
            await asyncio.sleep(TARGETS_EVERY_S)
            with contextlib.suppress(OSError):  # no descriptor left: the next look is tried all the same
                self.check_targets()

    def status(self, status: FleetStatus) -> FleetStatus:
        """`status` with the shares of workers' files in RAM, and with the targets."""
        processes = []
        for process in status.processes:
            percent, doing = self.pool.residency(process.name)
            pinned = self.pool.is_pinned(process.name)
            processes.append(msgspec.structs.replace(process, in_ram_percent=percent, in_ram=doing, pinned=pinned))
        targets = targets_now(self._targets, processes, self._swap_s)
        return msgspec.structs.replace(status, processes=tuple(processes), targets=targets)

    def metrics(self) -> str:
        """Prometheus text: first the metrics named in the seed document, then our own."""
        processes = tuple(self._processes())
        failures: Counter[str] = Counter()
        for name, model in self._models.items():
            failures[model] += self._failures[name]
        ram = _ram_used()
        rungs = [({"server": p.name}, int(p.rung.partition("/")[0] or 0)) for p in processes if p.kind == "server"]
        now = targets_now(self._targets, processes, self._swap_s)
        families = (
            histogram(
                "model_swap_duration_seconds",
                "From a worker's drain until the other serves.",
                [({"source": source}, part) for source, part in self._swaps.items()],
            ),
            counter(
                "model_load_failures_total",
                "Starts that did not become ready, and processes that ended unasked.",
                _by("model", failures),
            ),
            gauge("ram_used_bytes", "RAM of this machine that is not available.", [] if ram is None else [({}, ram)]),
            gauge(
                "vram_used_bytes",
                "Memory of the fleet's GPUs that is in use, where it can be asked.",
                [] if self._vram is None else [({}, float(self._vram))],
            ),
            gauge(
                "launch_server_memory_bytes", "Memory of a server by device, planned and measured.", _memory(processes)
            ),
            counter(
                "launch_server_restarts_total",
                "Restarts of a process that was not asked to end.",
                [({"server": p.name}, p.restarts) for p in processes],
            ),
            counter("launch_out_of_memory_total", "Steps down the ladder.", _by("server", self._degradations)),
            gauge("launch_server_rung", "Where a server stands on its ladder; 0 = as planned.", rungs),
            counter(
                "launch_slot_tokens_restored_total",
                "Tokens of saved slots that a server confirmed to have again after a swap.",
                _by("server", self._restored),
            ),
            *(gauge(f"launch_target_{what}", meaning, samples(now, what)) for what, meaning in TARGET_METRICS.items()),
        )
        return metrics.text(*families) + self.pool.metrics()

    async def _watch_gpus(self) -> None:
        """Ask the drivers every few seconds, in a thread, because they may be slow."""
        from launcher.hardware.cards import device_of, read_cards  # noqa: PLC0415 - only a fleet with GPUs pays

        while True:
            with contextlib.suppress(OSError):
                gpus = [card.gpu for card in await asyncio.to_thread(read_cards)]
                used = [gpu.vram_bytes - gpu.free_bytes for gpu in gpus if device_of(gpu.name, self._gpus)]
                self._vram = sum(used) if used else None
            await asyncio.sleep(_GPU_EVERY_S)


def _models(manifest: FleetManifest, table: RoutingTable) -> dict[str, str]:
    """Server → its model, spelled as in the front's own metrics."""
    return {u.name: table.targets[u.name].model if u.name in table.targets else u.model for u in manifest.servers}


def _swaps(manifest: FleetManifest) -> dict[str, Histogram]:
    """Empty histograms of swap seconds by source of the files; the target is one of the buckets."""
    return {source: Histogram(bounds(manifest.targets)) for source in SOURCES}


def _memory(processes: Iterable[ProcessStatus]) -> Samples:
    for process in processes:
        for kind, sizes in (("planned", process.planned_bytes), ("measured", process.measured_bytes)):
            for device, size in sizes.items():
                yield {"server": process.name, "device": device, "kind": kind}, size


def _ram_used() -> float | None:
    """MemTotal less MemAvailable, in bytes; None where /proc is not there."""
    with contextlib.suppress(OSError, KeyError):
        known = meminfo()
        return float(known["MemTotal"] - known["MemAvailable"])
    return None


def _by(label: str, counts: Counter[str]) -> Samples:
    return [({label: name}, count) for name, count in sorted(counts.items())]
