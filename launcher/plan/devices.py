"""What every memory holds: after start, and at worst. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from launcher.ir.config import FleetConfig, ServiceConfig, UpstreamConfig
from launcher.ir.plan import DeviceMemory, DevicePlan, PlanTotals, ServerPlan, ServicePlan
from launcher.ir.settings import RAM
from launcher.plan.nodes import node_plans


def elect(servers: Sequence[ServerPlan]) -> tuple[ServerPlan, ...]:
    """`servers` with at most one initial member an exclusive group: its default, else the first as listed.

    That member is marked `default`, so that nobody downstream has to choose again.
    """
    first: dict[str, str] = {}
    for server in sorted(servers, key=lambda s: not s.config.default):
        if server.config.exclusive and server.initial:
            first.setdefault(server.config.exclusive, server.name)

    def initial(server: ServerPlan) -> bool:
        group = server.config.exclusive
        return server.initial and (not group or first[group] == server.name)

    def elected(server: ServerPlan) -> ServerPlan:
        """`server` with the verdict."""
        chosen = initial(server)
        default = chosen if server.config.exclusive and server.initial else server.default
        return msgspec.structs.replace(server, initial=chosen, default=default)

    return tuple(map(elected, servers))


def worst(
    servers: Iterable[ServerPlan],
    value: Callable[[ServerPlan], int],
    others: Iterable[tuple[str | None, int]] = (),
) -> int:
    """The largest sum of `value` over servers that may be up at once: one member of each exclusive group.

    `others` are up, too, each with its group and value.
    """
    alone = 0
    groups: defaultdict[str, int] = defaultdict(int)
    for group, size in others:
        if group:
            groups[group] = max(groups[group], size)
        else:
            alone += size
    for server in servers:
        if server.starts == "never":
            continue
        if server.config.exclusive:
            groups[server.config.exclusive] = max(groups[server.config.exclusive], value(server))
        else:
            alone += value(server)
    return alone + sum(groups.values())


def device_plans(
    fleet: FleetConfig, servers: Sequence[ServerPlan], services: Sequence[ServicePlan], *, host: str = ""
) -> tuple[DevicePlan, ...]:
    """RAM and every GPU of a machine: capacity, budget, planned (after start), peak (the worst set that tiers allow).

    `host`: its name among several.
    """
    hardware = fleet.hardware
    whose = host or msgspec.UNSET

    def resident(device: str) -> int:
        return sum(size for _, size in others_on(device, fleet, (s for s in services if s.starts == "boot")))

    def peak(device: str, pooled: Collection[str] = ()) -> int:
        possible = [s for s in services if s.starts != "never"]
        return peak_on(device, servers, pooled, others_on(device, fleet, possible))

    others = sum(size for _, size in others_on(RAM, fleet, (s for s in services if s.starts != "never")))
    ram = DevicePlan(
        name=RAM,
        kind="ram",
        capacity_bytes=hardware.ram_bytes,
        budget_bytes=max(0, hardware.ram_bytes - hardware.ram_reserve_bytes),
        planned_bytes=planned_on(RAM, servers, hardware.pooled) + resident(RAM),
        peak_bytes=peak(RAM, hardware.pooled),
        nodes=node_plans(hardware.cpu.nodes, servers, resident=resident(RAM), possible=others),
        host=whose,
    )
    gpus = (
        DevicePlan(
            name=name,
            kind="gpu",
            capacity_bytes=gpu.vram_bytes,
            budget_bytes=int(gpu.vram_bytes * gpu.target_max),
            planned_bytes=planned_on(name, servers) + resident(name),
            peak_bytes=peak(name),
            host=whose,
        )
        for name, gpu in hardware.gpus.items()
    )
    return (ram, *gpus)


def planned_on(device: str, servers: Iterable[ServerPlan], pooled: Collection[str] = ()) -> int:
    """Bytes on `device` after start, and on those that share its memory."""
    return sum(_read(s, d, "planned_bytes") for s in servers if s.initial for d in (device, *pooled))


def peak_on(
    device: str,
    servers: Iterable[ServerPlan],
    pooled: Collection[str] = (),
    others: Iterable[tuple[str | None, int]] = (),
) -> int:
    """The most bytes on `device`, without optional growth, and on those that share its memory; `others` as `worst`."""
    return worst(servers, lambda s: sum(_read(s, d, "resident_peak_bytes") for d in (device, *pooled)), others)


def others_on(device: str, fleet: FleetConfig, services: Iterable[ServicePlan]) -> tuple[tuple[str | None, int], ...]:
    """What `services`, and those whom somebody else runs on this machine, take of `device`; with their groups."""
    own: list[tuple[str | None, ServiceConfig | UpstreamConfig]] = [(s.config.exclusive, s.config) for s in services]
    own += [(None, upstream) for upstream in fleet.upstreams.values()]
    pooled = fleet.hardware.pooled if device == RAM else ()
    return tuple((group, taken_on(device, entry) + sum(taken_on(d, entry) for d in pooled)) for group, entry in own)


def taken_on(device: str, entry: ServiceConfig | UpstreamConfig) -> int:
    """What something that is no llama-server takes of `device`, as it is stated."""
    return entry.ram_bytes if device == RAM else entry.vram_bytes.get(device, 0)


def growth_on(device: str, servers: Iterable[ServerPlan]) -> int:
    """Optional growth (prompt caches) of the worst set."""
    return worst(servers, lambda s: _read(s, device, "growth_bytes"))


def _read(server: ServerPlan, device: str, field: str) -> int:
    """One figure of a server on a device; 0 where it takes nothing there."""
    memory: DeviceMemory | None = server.takes(device)
    value: int = getattr(memory, field) if memory else 0
    return value


def totals(servers: Sequence[ServerPlan], services: Sequence[ServicePlan]) -> PlanTotals:
    """Sums over the fleet: HOT is what is up after start, WARM the servers started on demand."""
    hot = [s for s in servers if s.initial]
    warm = [s for s in servers if s.starts == "demand"]
    services_bytes = sum(s.config.ram_bytes for s in services if s.starts == "boot")
    return PlanTotals(
        hot_ram_bytes=planned_on(RAM, hot) + services_bytes,
        warm_ram_bytes=sum(_read(s, RAM, "planned_bytes") for s in warm),
        kv_bytes=sum(m.kv_bytes for s in hot for m in s.memory),
        threads=sum(s.settings.threads for s in hot),
    )
