"""RAM by NUMA node: after start, at worst, and how much of that is locked. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from launcher.ir.config import NumaNodeConfig
from launcher.ir.plan import NodePlan, ServerPlan
from launcher.ir.settings import RAM


def node_plans(
    nodes: Sequence[NumaNodeConfig], servers: Sequence[ServerPlan], *, resident: int, possible: int
) -> tuple[NodePlan, ...]:
    """What each of `nodes` holds: interleaved and unbound servers spread evenly, others go to the nodes they name.

    What `preferred` cannot hold spills to the other nodes, evenly. Services take `resident` bytes after start and
    `possible` at worst. Locked bytes are those of the worst set; nothing reclaims them.
    """
    if not nodes:
        return ()
    initial = [s for s in servers if s.initial]
    planned = _by_node(nodes, initial, _planned, resident)
    peak = _by_node(nodes, worst_set(servers, _peak), _peak, possible)
    locked = _by_node(nodes, worst_set(servers, _locked), _locked, 0)
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


def worst_set(servers: Iterable[ServerPlan], value: Callable[[ServerPlan], int]) -> list[ServerPlan]:
    """The servers that may be up at once with the largest sum of `value`: one member of each exclusive group."""
    alone: list[ServerPlan] = []
    groups: dict[str, ServerPlan] = {}
    for server in servers:
        group = server.config.exclusive
        if server.starts == "never":
            continue
        if not group:
            alone.append(server)
        elif group not in groups or value(server) > value(groups[group]):
            groups[group] = server
    return [*alone, *groups.values()]


def _by_node(
    nodes: Sequence[NumaNodeConfig], servers: Iterable[ServerPlan], value: Callable[[ServerPlan], int], everywhere: int
) -> dict[int, dict[str, int]]:
    """`value` of every server put on nodes, by its name; under "", `everywhere` spread over all of them."""
    held: dict[int, dict[str, int]] = {n.id: {} for n in nodes}
    capacity = {n.id: n.ram_bytes for n in nodes}
    _spread(held, "", everywhere, list(held))
    for server in servers:
        numa = server.config.numa
        size = value(server)
        chosen = [n for n in numa.nodes if n in held] if numa else []
        if numa and numa.policy == "preferred" and chosen:
            room = max(0, sum(capacity[n] - sum(held[n].values()) for n in chosen))
            _spread(held, server.name, min(size, room), chosen)
            others = [n for n in held if n not in chosen] or chosen
            _spread(held, server.name, size - min(size, room), others)
        else:
            _spread(held, server.name, size, chosen or list(held))
    return held


def _spread(held: dict[int, dict[str, int]], name: str, size: int, nodes: Sequence[int]) -> None:
    """Add `size` to `nodes` under `name`, evenly to the byte."""
    for index, node in enumerate(nodes):
        more = size // len(nodes) + (index < size % len(nodes))
        held[node][name] = held[node].get(name, 0) + more


def _planned(server: ServerPlan) -> int:
    """RAM after start."""
    memory = server.takes(RAM)
    return memory.planned_bytes if memory else 0


def _peak(server: ServerPlan) -> int:
    """RAM at most."""
    memory = server.takes(RAM)
    return memory.resident_peak_bytes if memory else 0


def _locked(server: ServerPlan) -> int:
    """Locked RAM."""
    memory = server.takes(RAM)
    return memory.locked_bytes if memory else 0
