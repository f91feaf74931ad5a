"""The use of every memory: after start, at worst, and per NUMA node; shared files count once. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import msgspec

from launcher.ir.config import FleetConfig, NumaNodeConfig, ServiceConfig, UpstreamConfig
from launcher.ir.plan import (
    RAM,
    START_RANK,
    DeviceMemory,
    DevicePlan,
    NodePlan,
    Part,
    PlanTotals,
    ServerPlan,
    ServicePlan,
)
from launcher.plan.memory.process import add_up

Size = Callable[[DeviceMemory], int]
"""Which bytes of what a server takes are meant."""


def steady(process: ServerPlan | ServicePlan) -> bool:
    """Whether it is up whenever the fleet is: neither started on demand nor taking turns."""
    return process.starts == "boot" and process.config.exclusive is None


def elect(servers: Sequence[ServerPlan]) -> tuple[ServerPlan, ...]:
    """`servers` with at most one initial member per exclusive group: its default, else the first as listed.

    That member is marked `default`, so that no later stage has to choose again.
    """
    first: dict[str, str] = {}
    for server in sorted(servers, key=lambda s: not s.config.default):
        if server.config.exclusive and server.initial:
            first.setdefault(server.config.exclusive, server.name)
    return tuple(
        msgspec.structs.replace(server, initial=first[group] == server.name, default=first[group] == server.name)
        if (group := server.config.exclusive) and server.initial
        else server
        for server in servers
    )


def share(servers: tuple[ServerPlan, ...]) -> tuple[ServerPlan, ...]:
    """`servers` with each mapped file's pages counted for one of them only, and `shared_with` filled in.

    That one is the first by name among those that are always up together: a server of an exclusive group may be down
    and owns nothing, and one started on demand does not carry the pages of one started at boot.
    """
    users: defaultdict[str, list[ServerPlan]] = defaultdict(list)
    for server in servers:
        for source in {part.source for part in server.parts if part.file}:
            users[source].append(server)
    sharers: defaultdict[str, list[list[str]]] = defaultdict(list)
    owned: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for source, mapping in users.items():
        rank = {s.name: START_RANK["never" if s.config.exclusive else s.starts] for s in mapping}
        owner = min(mapping, key=lambda s: (rank[s.name], s.name))
        if rank[owner.name] == START_RANK["never"]:
            continue
        pages = sum(part.file for part in owner.parts if part.source == source)
        together = [s for s in mapping if s is not owner and rank[owner.name] in (0, rank[s.name])]
        for server in together:
            owned[server.name][source] = pages
        names = sorted(s.name for s in (owner, *together))
        for name in names if together else ():
            sharers[name].append(names)
    return tuple(_without(s, owned[s.name], sharers[s.name]) if s.name in sharers else s for s in servers)


def _without(server: ServerPlan, owned: dict[str, int], sharers: list[list[str]]) -> ServerPlan:
    """`server` without the pages of files, locked or not, that another one is counted for; `sharers`: of each file."""
    parts: list[Part] = []
    for part in server.parts:
        counted = min(part.file, owned.get(part.source, 0))
        left = max(0, part.locked - counted)
        parts.append(msgspec.structs.replace(part, file=part.file - counted, locked=left) if counted else part)
    others = sorted(dict.fromkeys(chain.from_iterable(sharers)))  # mostly in order: there may be hundreds
    shared = tuple(name for name in others if name != server.name)
    return msgspec.structs.replace(server, memory=add_up(parts, shared={RAM: shared}))


def worst(
    servers: Iterable[ServerPlan], value: Callable[[ServerPlan], int], others: Iterable[tuple[str | None, int]] = ()
) -> int:
    """The largest sum of `value` over servers that may be up at once: one member per exclusive group.

    `others` are up as well, each with its group and value.
    """
    sizes = [(server.config.exclusive, value(server)) for server in servers if server.starts != "never"]
    groups: defaultdict[str | None, int] = defaultdict(int)
    for group, size in (*sizes, *others):
        groups[group or None] = max(groups[group], size) if group else groups[None] + size
    return sum(groups.values())


def device_plans(
    fleet: FleetConfig, servers: Sequence[ServerPlan], services: Sequence[ServicePlan], *, host: str = ""
) -> tuple[DevicePlan, ...]:
    """RAM and every GPU of a machine: capacity, budget, planned (after start), peak (the worst set that tiers allow).

    `host`: its name among several.
    """
    return tuple(_device(fleet, servers, services, name, host) for name in (RAM, *fleet.hardware.gpus))


def _device(
    fleet: FleetConfig, servers: Sequence[ServerPlan], services: Sequence[ServicePlan], name: str, host: str
) -> DevicePlan:
    hardware = fleet.hardware
    memories = (name, *(hardware.pooled if name == RAM else ()))
    resident = sum(size for _, size in others_on(name, fleet, (s for s in services if s.starts == "boot")))
    others = others_on(name, fleet, (s for s in services if s.starts != "never"))
    planned = sum(s.takes(memory).planned_bytes for s in servers if s.initial for memory in memories)
    peak = worst(servers, lambda s: sum(s.takes(memory).resident_peak_bytes for memory in memories), others)
    if name == RAM:
        capacity, budget = hardware.ram_bytes, max(0, hardware.ram_bytes - hardware.ram_reserve_bytes)
        possible = sum(size for _, size in others)
        nodes = node_plans(hardware.cpu.nodes, servers, resident=resident, possible=possible)
    else:
        gpu = hardware.gpus[name]
        capacity, budget, nodes = gpu.vram_bytes, int(gpu.vram_bytes * gpu.target_max), ()
    return DevicePlan(
        name=name,
        kind="ram" if name == RAM else "gpu",
        capacity_bytes=capacity,
        budget_bytes=budget,
        planned_bytes=planned + resident,
        peak_bytes=peak,
        nodes=nodes,
        host=host or msgspec.UNSET,
    )


def others_on(device: str, fleet: FleetConfig, services: Iterable[ServicePlan]) -> tuple[tuple[str | None, int], ...]:
    """Use of `device` by `services`, and by processes of this machine that others run; with their groups."""
    own: list[tuple[str | None, ServiceConfig | UpstreamConfig]] = [(s.config.exclusive, s.config) for s in services]
    own += [(None, upstream) for upstream in fleet.upstreams.values()]
    memories = (device, *(fleet.hardware.pooled if device == RAM else ()))
    return tuple((group, sum(taken_on(memory, entry) for memory in memories)) for group, entry in own)


def taken_on(device: str, entry: ServiceConfig | UpstreamConfig) -> int:
    """The stated use of `device` by something that is no llama-server."""
    return entry.ram_bytes if device == RAM else entry.vram_bytes.get(device, 0)


def totals(servers: Sequence[ServerPlan], services: Sequence[ServicePlan]) -> PlanTotals:
    """Sums over the fleet: HOT is what is up after start, WARM the servers started on demand."""
    hot = [s for s in servers if s.initial]
    services_bytes = sum(s.config.ram_bytes for s in services if s.starts == "boot")
    return PlanTotals(
        hot_ram_bytes=sum(s.takes(RAM).planned_bytes for s in hot) + services_bytes,
        warm_ram_bytes=sum(s.takes(RAM).planned_bytes for s in servers if s.starts == "demand"),
        kv_bytes=sum(m.kv_bytes for s in hot for m in s.memory),
        threads=sum(s.settings.threads for s in hot),
    )


def node_plans(
    nodes: Sequence[NumaNodeConfig], servers: Sequence[ServerPlan], *, resident: int, possible: int
) -> tuple[NodePlan, ...]:
    """What each of `nodes` holds: interleaved and unbound servers spread evenly, others go to the nodes they name.

    What `preferred` cannot hold spills to the other nodes, evenly. Services take `resident` bytes after start and
    `possible` at worst. Locked bytes are those of the worst set; nothing reclaims them.
    """
    if not nodes:
        return ()
    planned = _by_node(nodes, [s for s in servers if s.initial], lambda m: m.planned_bytes, resident)
    peak = _by_node(nodes, _worst_set(servers, _peak), _peak, possible)
    locked = _by_node(nodes, _worst_set(servers, _locked), _locked, 0)
    return tuple(
        NodePlan(
            id=n.id,
            capacity_bytes=n.ram_bytes,
            planned_bytes=sum(planned[n.id].values()),
            peak_bytes=sum(peak[n.id].values()),
            locked_bytes=sum(locked[n.id].values()),
            servers={name: size for name, size in planned[n.id].items() if name and size},
        )
        for n in nodes
    )


def _peak(memory: DeviceMemory) -> int:
    return memory.resident_peak_bytes


def _locked(memory: DeviceMemory) -> int:
    return memory.locked_bytes


def _worst_set(servers: Iterable[ServerPlan], size: Size) -> list[ServerPlan]:
    """The servers that may be up at once with the most RAM of that kind: one member per exclusive group."""
    chosen: dict[tuple[bool, str], ServerPlan] = {}
    for server in (s for s in servers if s.starts != "never"):
        group = server.config.exclusive
        key = (True, group) if group else (False, server.name)
        chosen[key] = max(chosen.get(key, server), server, key=lambda s: size(s.takes(RAM)))
    return sorted(chosen.values(), key=lambda server: bool(server.config.exclusive))


def _by_node(
    nodes: Sequence[NumaNodeConfig], servers: Iterable[ServerPlan], size: Size, everywhere: int
) -> dict[int, dict[str, int]]:
    """RAM of that kind per node and server name; "" stands for `everywhere`, spread over all nodes."""
    held: dict[int, dict[str, int]] = {n.id: {} for n in nodes}
    _spread(held, "", everywhere, list(held))
    for server in servers:
        numa, taken = server.config.numa, size(server.takes(RAM))
        chosen = [n for n in numa.nodes if n in held] if numa else []
        if numa and numa.policy == "preferred" and chosen:
            room = max(0, sum(n.ram_bytes - sum(held[n.id].values()) for n in nodes if n.id in chosen))
            _spread(held, server.name, min(taken, room), chosen)
            others = [n for n in held if n not in chosen] or chosen
            _spread(held, server.name, taken - min(taken, room), others)
        else:
            _spread(held, server.name, taken, chosen or list(held))
    return held


def _spread(held: dict[int, dict[str, int]], name: str, size: int, nodes: Sequence[int]) -> None:
    """Add `size` to `nodes` under `name`, divided evenly to the byte."""
    for index, node in enumerate(nodes):
        more = size // len(nodes) + (index < size % len(nodes))
        held[node][name] = held[node].get(name, 0) + more
