"""Who must be chosen for together, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig, ServerConfig
from launcher.ir.plan import Solved
from launcher.ir.settings import RAM
from launcher.plan.memory import WeightTables
from launcher.plan.solve.sharers import Sharers


def solve(fleet: FleetConfig, catalog: Catalog, tables: WeightTables) -> tuple[FleetConfig, tuple[Solved, ...]]:
    """`fleet` (one host's) with everything chosen that its servers leave open, and what was chosen.

    GPUs first, by their budgets; then what runs on the CPU alone, by what that leaves of RAM. A server of a tier that
    never starts is not considered.
    """
    running = {name: server for name, server in fleet.servers.items() if _runs(fleet, server)}
    leaving = tuple(name for name, s in running.items() if s.n_gpu_layers == "auto" or s.fill)
    if not leaving:
        return fleet, ()
    solved: list[Solved] = []
    on_cards = [name for name in leaving if _cards(fleet, running[name])]
    shared = list(_sharing(fleet, on_cards))
    on_host = tuple(name for name in leaving if name not in on_cards and running[name].fill)
    if on_host:
        shared.append((on_host, (RAM,)))
    for names, devices in shared:
        sharers = Sharers(fleet, catalog, tables, running, names=names, devices=devices)
        solved += sharers.choose()
        running |= sharers.chosen
    return msgspec.structs.replace(fleet, servers=fleet.servers | running), tuple(solved)


def _runs(fleet: FleetConfig, server: ServerConfig) -> bool:
    """Whether its tier ever starts it."""
    tier = fleet.tiers.get(server.tier)
    return tier is not None and tier.start != "never"


def _cards(fleet: FleetConfig, server: ServerConfig) -> set[str]:
    """The server's devices that there are."""
    return {d for d in server.devices if d in fleet.hardware.gpus}


def _sharing(fleet: FleetConfig, names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Servers that share a device, or each one with a third, and so on; with all their devices."""
    left = {name: _cards(fleet, fleet.servers[name]) for name in names}
    while left:
        devices: set[str] = set()
        more = next(iter(left.values()))
        while not more <= devices:
            devices |= more
            more = set().union(*(own for own in left.values() if own & devices))
        members = tuple(name for name, own in left.items() if own & devices)
        left = {name: own for name, own in left.items() if name not in members}
        yield members, tuple(d for d in fleet.hardware.gpus if d in devices)
