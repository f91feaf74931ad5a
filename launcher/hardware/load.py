"""Present load of GPUs and free RAM. I/O."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil

from launcher.hardware.cards import read_cards
from launcher.hardware.inventory import numa_nodes
from launcher.ir.host import Card


class GpuLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Load of one GPU now; None where the driver does not report it."""

    name: str
    model: str
    used_bytes: int
    total_bytes: int
    busy_percent: float | None
    celsius: float | None
    watts: float | None


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node now; `free_bytes` as the kernel counts it, without caches that could be freed."""

    id: int
    free_bytes: int


class RamLoad(msgspec.Struct, frozen=True, kw_only=True):
    """RAM of this machine: bytes available without swapping (MemAvailable)."""

    free_bytes: int


class Loads(msgspec.Struct, frozen=True, kw_only=True):
    """The load of every device of this machine now."""

    gpus: tuple[GpuLoad, ...]
    ram: RamLoad
    nodes: tuple[NodeLoad, ...]


def device_loads() -> Loads:
    """Used and free memory of all devices now."""
    nodes = tuple(NodeLoad(id=node.id, free_bytes=node.free_bytes) for node in numa_nodes(Path("/sys")))
    return Loads(
        gpus=tuple(map(_gpu_load, read_cards())), ram=RamLoad(free_bytes=psutil.virtual_memory().available), nodes=nodes
    )


def _gpu_load(card: Card) -> GpuLoad:
    return GpuLoad(
        name=card.gpu.name,
        model=card.gpu.model,
        used_bytes=card.gpu.vram_bytes - card.gpu.free_bytes,
        total_bytes=card.gpu.vram_bytes,
        busy_percent=card.busy_percent,
        celsius=card.celsius,
        watts=card.watts,
    )
