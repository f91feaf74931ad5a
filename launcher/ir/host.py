"""The machine's present state. Pure types; `launcher.hardware` fills them."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class HostNode(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node as /sys shows it."""

    id: int
    cpus: str
    ram_bytes: int
    free_bytes: int


class HostGpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as its driver, or a llama-server, reports it."""

    name: str
    backend: str
    model: str
    vram_bytes: int
    free_bytes: int
    driver: str = ""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU now; None where its driver does not report it."""

    gpu: HostGpu
    busy_percent: float | None = None
    celsius: float | None = None
    watts: float | None = None


class CardUse(NamedTuple):
    """Bytes that the process `pid` takes of a card."""

    card: str
    """Named by its backend and the driver's number: `cuda0`."""
    pid: int
    size_bytes: int


class HostInventory(msgspec.Struct, frozen=True, kw_only=True):
    """CPU, memory, GPUs and limits of this host. `memlock_bytes` None = unlimited.

    RAM figures are bounded by this process's cgroup where one limits it. `cpus` are those we may run on; `cpu_quota`
    is how many CPUs' time its cgroup is given, None = as much as there is.
    """

    hostname: str
    cpu_model: str
    features: tuple[str, ...]
    sockets: int
    physical_cores: int
    logical_cores: int
    cpus: str
    ram_bytes: int
    available_bytes: int
    nodes: tuple[HostNode, ...]
    gpus: tuple[HostGpu, ...]
    memlock_bytes: int | None
    page_bytes: int = 4096
    numactl: str | None = None
    cpu_quota: float | None = None
    cpu_flags: frozenset[str] = frozenset()
    """Every flag of the first processor, as /proc/cpuinfo names them; `features` are those that change memory."""
