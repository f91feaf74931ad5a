"""The steps of filling devices, one after another, for servers that share some. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig, ServerConfig
from launcher.ir.plan import Solved
from launcher.ir.settings import RAM
from launcher.plan.devices import taken_on
from launcher.plan.memory import WeightTables
from launcher.plan.solve.frontier import Candidate, Vector, best
from launcher.plan.solve.options import IN_ORDER, IN_RAM, Option
from launcher.plan.solve.splits import Pricer
from launcher.sizes import gib

Offers = Mapping[str, tuple[Option, ...]]
"""Options of one step by server; none for a server that leaves nothing open there."""


class Sharers:
    """Servers `names` that share `devices` with one another, and with the rest of `running`, which is as it is.

    `chosen` has their configs with what was chosen so far.
    """

    def __init__(
        self,
        fleet: FleetConfig,
        catalog: Catalog,
        tables: WeightTables,
        running: Mapping[str, ServerConfig],
        *,
        names: tuple[str, ...],
        devices: tuple[str, ...],
    ) -> None:
        """Whatever is open gets the least that will do, until it is its turn."""
        self._fleet, self._catalog, self._names, self._devices = fleet, catalog, names, devices
        self._running = running
        self._pricer = Pricer(fleet, catalog, tables, devices)
        self._room = tuple(self._budget(device) for device in devices)
        self._others = {
            name: self._pricer.sizes(server)
            for name, server in running.items()
            if name not in names and (RAM in devices or set(devices) & set(server.devices))
        }
        self.chosen = {name: running[name] for name in names}
        count = len(names)
        self._steps = [
            ({name: tuple(step(fleet, catalog, running[name], count)) for name in names}, step in IN_RAM)
            for step in IN_ORDER
        ]
        for offers, _ in self._steps:
            self._take(offers, None)
        self._complete = True
        self._host = 0
        """What the others leave of RAM, where it counts."""

    def choose(self) -> tuple[Solved, ...]:
        """Take every step; say what was chosen, and what was not."""
        if len(self._names) == 1 and not any(self._exclusive(name) for name in self._others):
            self._pricer.room = tuple(
                room - sum(taken) for room, *taken in zip(self._room, *self._others.values(), strict=True)
            )
        fits = True
        values: dict[str, dict[str, Any]] = {name: {} for name in self._names}
        beyond: dict[str, list[str]] = {name: [] for name in self._names}
        self._host = self._left_of_ram()
        for written, in_ram in self._steps:
            offers = written if in_ram else self._by_time(written)
            picks = self._pick(offers, in_ram=False)
            if in_ram and not self._fits_host(offers, picks):
                picks = self._pick(offers, in_ram=True)
            fits = fits and picks is not None
            self._take(offers, picks)
            for name, offered in offers.items():
                at = picks[name] if picks is not None else len(offered) - 1
                if offered:
                    values[name] |= {f: v for f, v in offered[at].changes.items() if v is not None}
                if offered and at and picks is not None:
                    beyond[name].append(self._why(name, offered[at - 1]))
        for name, server in self.chosen.items():
            self.chosen[name] = split = self._pricer.settled(server)
            if split.tensor_split != server.tensor_split:
                values[name]["tensor_split"] = list(split.tensor_split)
        return tuple(
            Solved(
                server=name,
                chosen=values[name],
                beyond=tuple(beyond[name]),
                fits=fits,
                complete=self._complete,
            )
            for name in self._names
            if values[name]
        )

    def _by_time(self, offers: Offers) -> Offers:
        """`offers` at what a token takes with each, all else as chosen, where the hardware file states all rates.

        The order of a server's options stays: where more on the devices is not faster, the costs stay, too.
        """
        timed: dict[str, tuple[Option, ...]] = {}
        for name, offered in offers.items():
            taken = [self._pricer.token_ns(msgspec.structs.replace(self.chosen[name], **o.changes)) for o in offered]
            known = [cost for cost in taken if cost is not None]
            if len(known) < len(taken) or known != sorted(known):
                return offers
            timed[name] = tuple(msgspec.structs.replace(o, cost=c) for o, c in zip(offered, known, strict=True))
        return timed

    def _budget(self, device: str) -> int:
        """What may be planned on `device`: what they leave of it that are no llama-servers, and take no turns."""
        fleet = self._fleet
        hardware = fleet.hardware
        services = [service for service in fleet.services.values() if service.exclusive is None]
        taken = sum(taken_on(device, service) for service in services)
        taken += sum(taken_on(device, upstream) for upstream in fleet.upstreams.values())
        if device != RAM:
            return max(0, int(hardware.gpus[device].vram_bytes * hardware.gpus[device].target_max) - taken)
        return max(0, hardware.ram_bytes - hardware.ram_reserve_bytes - taken)

    def _take(self, offers: Offers, picks: Mapping[str, int] | None) -> None:
        """Set what was picked; with None the least that will do."""
        for name, offered in offers.items():
            if offered:
                option = offered[picks[name] if picks is not None else -1]
                self.chosen[name] = msgspec.structs.replace(self.chosen[name], **option.changes)

    def _exclusive(self, name: str) -> str | None:
        """The exclusive group of a server."""
        return self._running[name].exclusive

    def _left_of_ram(self) -> int:
        """RAM beside the other servers at worst; where RAM is what is filled, there is no more to hold back."""
        if RAM in self._devices:
            return 0
        groups: dict[str, int] = {}
        for name, server in self._running.items():
            group = self._exclusive(name)
            if name not in self._names and (not group or group not in map(self._exclusive, self._names)):
                key = f"group {group}" if group else f"server {name}"
                groups[key] = max(groups.get(key, 0), self._pricer.ram(server))
        return self._budget(RAM) - sum(groups.values())

    def _fits_host(self, offers: Offers, picks: Mapping[str, int] | None) -> bool:
        """Whether what was picked fits into RAM, too."""
        if picks is None or RAM in self._devices:
            return True
        groups: dict[str, int] = {}
        for name, offered in offers.items():
            changes = offered[picks[name]].changes if offered else {}
            size = self._pricer.ram(msgspec.structs.replace(self.chosen[name], **changes))
            key = f"group {self._exclusive(name)}" if self._exclusive(name) else f"server {name}"
            groups[key] = max(groups.get(key, 0), size)
        return sum(groups.values()) <= self._host

    def _pick(self, offers: Offers, *, in_ram: bool) -> dict[str, int] | None:
        """Which option of each server is best; None where nothing fits. `in_ram`: RAM is one of the devices."""
        if self._pricer.room is not None:
            room = (*self._pricer.room, self._host) if in_ram else self._pricer.room
            return self._first(self._names[0], offers, room, in_ram=in_ram)
        candidates = {name: tuple(self._candidates(name, offers[name], in_ram=in_ram)) for name in self._names}
        more = (0,) if in_ram else ()
        candidates |= {name: (Candidate(0, (*size, *more)),) for name, size in self._others.items()}
        groups: dict[str, list[str]] = {}
        for name in (n for n in self._running if n in candidates):
            group = self._exclusive(name)
            groups.setdefault(f"group {group}" if group else f"server {name}", []).append(name)
        offered = [[candidates[name] for name in members] for members in groups.values()]
        picks, complete = best(offered, (*self._room, self._host) if in_ram else self._room)
        self._complete = self._complete and complete
        order = [name for members in groups.values() for name in members]
        return None if picks is None else dict(zip(order, picks, strict=True))

    def _first(self, name: str, offers: Offers, room: Vector, *, in_ram: bool) -> dict[str, int] | None:
        """The first option of a server that is alone, which is the best, that fits into `room`."""
        for at, candidate in enumerate(self._candidates(name, offers[name], in_ram=in_ram)):
            if all(size <= free for size, free in zip(candidate.size, room, strict=True)):
                return {name: at}
        return None

    def _candidates(self, name: str, offered: tuple[Option, ...], *, in_ram: bool) -> Iterator[Candidate]:
        """Every option of a server with its size, best first; where it has none, what it is now."""
        server = self.chosen[name]
        for option in offered or (Option(cost=0, changes={}),):
            config = msgspec.structs.replace(server, **option.changes)
            size = self._pricer.sizes(config)
            yield Candidate(option.cost, (*size, self._pricer.ram(config)) if in_ram else size)

    def _why(self, name: str, better: Option) -> str:
        """What the next better option of server `name` would need more than there is, all else as chosen."""
        said = ", ".join(f"{field}={value}" for field, value in better.changes.items() if value is not None)
        mine = self._exclusive(name)
        beside: dict[str, list[Vector]] = {}
        for other in (n for n in self._running if n in (*self._names, *self._others) and n != name):
            group = self._exclusive(other)
            if group is None or group != mine:
                size = self._others.get(other) or self._pricer.sizes(self.chosen[other])
                beside.setdefault(f"group {group}" if group else f"server {other}", []).append(size)
        own = self._pricer.sizes(msgspec.structs.replace(self.chosen[name], **better.changes))
        sizes = [own, *(tuple(map(max, zip(*members, strict=True))) for members in beside.values())]
        over = {d: sum(taken) - room for d, room, *taken in zip(self._devices, self._room, *sizes, strict=True)}
        worst = max(over, key=over.__getitem__)
        if over[worst] <= 0 and RAM not in over:
            changed = {**self.chosen, name: msgspec.structs.replace(self.chosen[name], **better.changes)}
            worst, over[RAM] = RAM, sum(map(self._pricer.ram, changed.values())) - self._host
        return f"{said} needs {gib(over[worst])} more on {worst}" if over[worst] > 0 else f"{said}: others come first"
