"""How much memory processes really take: shared pages divided, and GPUs by process; what GPUs have free. I/O."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from launcher.base import procfs
from launcher.ir.fleet import FleetManifest
from launcher.ir.host import Card, CardUse, HostGpu
from launcher.supervise.process import main_process

_DRIVER_S = 1.0
"""What a driver does not say within is not known."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one process and its session: PSS (None: not reported by the kernel), GPU bytes by device.

    `container_bytes`: resident bytes of the container whose client the process is; None: it is no such client.
    """

    pss_bytes: int | None = None
    container_bytes: int | None = None
    gpu_bytes: dict[str, int] = {}


class Measurer:
    """Measures processes, and keeps the last `figures` of each by pid.

    `gpus` are the fleet's GPUs, in the driver's order; `ask_cards` is the whole interface to the drivers; `pss`
    measures the RAM of one process.
    """

    def __init__(
        self,
        gpus: tuple[str, ...],
        ask_cards: Callable[[Collection[int]], Iterable[CardUse]] | None = None,
        pss: Callable[[int], int | None] | None = None,
    ) -> None:
        self.gpus = gpus
        self._ask_cards = ask_cards
        self._pss = pss or procfs.pss_bytes
        self.figures: Mapping[int, Measured] = {}
        self._asking: asyncio.Task[tuple[Card, ...]] | None = None

    def of(self, pid: int | None) -> Measured:
        """The last figures of `pid`; empty if it was not measured."""
        return self.figures.get(pid or 0, Measured())

    def measure(self, clients: Mapping[int, tuple[str, ...]]) -> dict[int, Measured]:
        """Measure `clients` (command line by pid; that of a container's client leads to the container). Blocks."""
        stats = [stat for pid in procfs.pids() if (stat := procfs.proc_stat(pid)) is not None]
        boxes = {leader: _tree(main_process(argv), stats) for leader, argv in clients.items()}
        members = {
            leader: {stat.pid for stat in stats if stat.session == leader} | {stat.pid for stat in box}
            for leader, box in boxes.items()
        }
        on_cards = self._on_cards(sorted(set().union(*members.values())))
        found = {}
        for leader, pids in members.items():
            sizes = [size for pid in pids if (size := self._pss(pid)) is not None]
            gpu_bytes: Counter[str] = Counter()
            for pid, device, size in on_cards:
                if pid in pids:
                    gpu_bytes[device] += size
            found[leader] = Measured(
                pss_bytes=sum(sizes) if sizes else None,
                container_bytes=sum(stat.rss_bytes for stat in boxes[leader]) if boxes[leader] else None,
                gpu_bytes=dict(gpu_bytes),
            )
        return found

    async def cards(self) -> dict[str, HostGpu]:
        """What drivers say of the fleet's GPUs now, by device; nothing of those that no driver tells of in time."""
        if not self.gpus:
            return {}
        from launcher.hardware.cards import device_of, read_cards  # noqa: PLC0415 - only a fleet with GPUs pays

        if self._asking is None or self._asking.done():  # a driver that hangs is not asked again meanwhile
            self._asking = asyncio.create_task(asyncio.to_thread(read_cards))
        told, _ = await asyncio.wait({self._asking}, timeout=_DRIVER_S)
        known = [card.gpu for task in told if task.exception() is None for card in task.result()]
        found = {device_of(gpu.name, self.gpus): gpu for gpu in known}
        return {device: gpu for device, gpu in found.items() if device is not None}

    def _on_cards(self, pids: Collection[int]) -> list[tuple[int, str, int]]:
        """Pid, device and bytes of what `pids` take of the fleet's GPUs."""
        if not self.gpus:
            return []
        from launcher.hardware.cards import device_of, read_uses  # noqa: PLC0415 - only a fleet with GPUs pays

        uses = (self._ask_cards or read_uses)(pids)
        return [(u.pid, device, u.size_bytes) for u in uses if (device := device_of(u.card, self.gpus)) is not None]


def _tree(root: int | None, stats: Iterable[procfs.ProcStat]) -> list[procfs.ProcStat]:
    stats = tuple(stats)
    found = [stat for stat in stats if stat.pid == root]
    for parent in found:
        found += [stat for stat in stats if stat.ppid == parent.pid]
    return found


def gpu_names(manifest: FleetManifest) -> tuple[str, ...]:
    """Names of the fleet's GPUs, in the driver's order."""
    return tuple(device.name for device in manifest.devices if device.kind == "gpu")
