"""What every memory holds: after start, and at worst. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from launcher.ir.config import FleetConfig
from launcher.ir.plan import DeviceMemory, DevicePlan, PlanTotals, ServicePlan
from launcher.plan.nodes import node_plans
from launcher.plan.server import Planned
from launcher.plan.settings import RAM


def elect(servers: Sequence[Planned]) -> tuple[Planned, ...]:
    """`servers` with at most one initial member an exclusive group: its default, else the first as listed.

    That member's plan is marked `default`, so that nobody downstream has to choose again.
    """
    first: dict[str, str] = {}
    for server in sorted(servers, key=lambda s: not s.config.default):
        if server.config.exclusive and server.initial:
            first.setdefault(server.config.exclusive, server.name)

    def initial(server: Planned) -> bool:
        group = server.config.exclusive
        return server.initial and (not group or first[group] == server.name)

    def elected(server: Planned) -> Planned:
        """`server` with the verdict."""
        chosen = initial(server)
        default = chosen if server.config.exclusive and server.initial else server.plan.default
        plan = msgspec.structs.replace(server.plan, default=default)
        return msgspec.structs.replace(server, initial=chosen, plan=plan)

    return tuple(map(elected, servers))


def worst(servers: Iterable[Planned], value: Callable[[Planned], int]) -> int:
    """The largest sum of `value` over servers that may be up at once: one member of each exclusive group."""
    alone = 0
    groups: defaultdict[str, int] = defaultdict(int)
    for server in servers:
        if server.starts == "never":
            continue
        if server.config.exclusive:
            groups[server.config.exclusive] = max(groups[server.config.exclusive], value(server))
        else:
            alone += value(server)
    return alone + sum(groups.values())


def starts(fleet: FleetConfig, service: ServicePlan) -> str:
    """When a service runs; an unknown tier counts as boot."""
    tier = fleet.tiers.get(service.config.tier)
    return tier.start if tier else "boot"


def device_plans(
    fleet: FleetConfig, servers: Sequence[Planned], services: Sequence[ServicePlan], *, host: str = ""
) -> tuple[DevicePlan, ...]:
    """RAM and every GPU of a machine: capacity, budget, planned (after start), peak (the worst set that tiers allow).

    `host`: its name among several.
    """
    hardware = fleet.hardware
    whose = host or msgspec.UNSET
    resident = sum(s.config.ram_bytes for s in services if starts(fleet, s) == "boot")
    possible = sum(s.config.ram_bytes for s in services if starts(fleet, s) != "never")
    ram = DevicePlan(
        name=RAM,
        kind="ram",
        capacity_bytes=hardware.ram_bytes,
        budget_bytes=max(0, hardware.ram_bytes - hardware.ram_reserve_bytes),
        planned_bytes=planned_on(RAM, servers) + resident,
        peak_bytes=peak_on(RAM, servers) + possible,
        nodes=node_plans(hardware.cpu.nodes, servers, resident=resident, possible=possible),
        host=whose,
    )
    gpus = (
        DevicePlan(
            name=name,
            kind="gpu",
            capacity_bytes=gpu.vram_bytes,
            budget_bytes=int(gpu.vram_bytes * gpu.target_max),
            planned_bytes=planned_on(name, servers),
            peak_bytes=peak_on(name, servers),
            host=whose,
        )
        for name, gpu in hardware.gpus.items()
    )
    return (ram, *gpus)


def planned_on(device: str, servers: Iterable[Planned]) -> int:
    """Bytes on `device` after start."""
    return sum(_read(s, device, "planned_bytes") for s in servers if s.initial)


def peak_on(device: str, servers: Iterable[Planned]) -> int:
    """The most bytes on `device`, without optional growth."""
    return worst(servers, lambda s: _read(s, device, "resident_peak_bytes"))


def growth_on(device: str, servers: Iterable[Planned]) -> int:
    """Optional growth (prompt caches) of the worst set."""
    return worst(servers, lambda s: _read(s, device, "growth_bytes"))


def _read(server: Planned, device: str, field: str) -> int:
    """One figure of a server on a device; 0 where it takes nothing there."""
    memory: DeviceMemory | None = server.on(device)
    value: int = getattr(memory, field) if memory else 0
    return value


def totals(fleet: FleetConfig, servers: Sequence[Planned], services: Sequence[ServicePlan]) -> PlanTotals:
    """Sums over the fleet: HOT is what is up after start, WARM the servers started on demand."""
    hot = [s for s in servers if s.initial]
    warm = [s for s in servers if s.starts == "demand"]
    services_bytes = sum(s.config.ram_bytes for s in services if starts(fleet, s) == "boot")
    return PlanTotals(
        hot_ram_bytes=planned_on(RAM, hot) + services_bytes,
        warm_ram_bytes=sum(_read(s, RAM, "planned_bytes") for s in warm),
        kv_bytes=sum(m.kv_bytes for s in hot for m in s.plan.memory),
        threads=sum(s.settings.threads for s in hot),
    )
