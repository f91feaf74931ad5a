"""Fill devices: choose layers, split, experts, quantization and context from what the config leaves open.

In: one host's config and the catalogue. Out: the config with everything chosen, and what was chosen. Pure.

Left open is `n_gpu_layers: auto`, and what `fill` names; what is written there is the least that will do. The best is,
in this order: the fewest layers on the host, the fewest expert banks on the host, the largest files, the longest
contexts; each summed over the servers that share a device, of equal sums the one that takes the fewest bytes there.
Where the hardware file says how fast RAM and every device are read (`read_bandwidth_bytes`), the first two are weighed
by time instead: the least sum of what a token of each server takes. Each step weighs every combination that fits
(`frontier`), with the later steps at the least that will do. What goes onto cards is decided by the cards; a larger
file or context must fit into RAM, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig, ServerConfig
from launcher.ir.plan import RAM, Solved
from launcher.plan.devices import taken_on
from launcher.plan.memory.weights import WeightTables
from launcher.plan.server import peaks, settled_price
from launcher.plan.solve.frontier import Candidate, Vector, best, within
from launcher.plan.solve.options import IN_ORDER, IN_RAM, Option
from launcher.plan.speed import states_rates, token_seconds, touched_by
from launcher.sizes import gib

EVEN = 0.5
"""Shares are drawn between two layers, so that no rounding of the numbers moves a layer."""


class Pricer:
    """Memory that servers take of `devices`. With `room` (free bytes, for one server alone) with a split that fits.

    The usual split, where none is written, goes by memory. Where that does not fit, each device in turn gets as many
    layers as it can hold: layers are divided in order, and a device's use grows with its layers, so that no other split
    leaves less to the devices after it.
    """

    def __init__(self, fleet: FleetConfig, catalog: Catalog, tables: WeightTables, devices: tuple[str, ...]) -> None:
        self._fleet, self._catalog, self._tables, self._devices = fleet, catalog, tables, devices
        self.room: Vector | None = None

    def sizes(self, server: ServerConfig) -> Vector:
        """Peak bytes by device of `server`, split as `settled` does."""
        return self._sizes(self.settled(server))

    def settled(self, server: ServerConfig) -> ServerConfig:
        """`server` with a split written, where the usual one does not fit and another was found."""
        layered = [d for d in server.devices if d in self._devices] if server.n_gpu_layers != 0 else []
        if self.room is None or len(layered) < 2 or server.tensor_split:
            return server
        usual = self._sizes(server)
        if within(usual, self.room) or sum(usual) > sum(self.room):
            return server
        return self._packed(server, self.room)

    def ram(self, server: ServerConfig) -> int:
        """Peak bytes of RAM of `server`, split as `settled` does."""
        return self._peaks(self.settled(server)).get(RAM, 0)

    def token_ns(self, server: ServerConfig) -> int | None:
        """Nanoseconds per token by the rates in the hardware file; None where one is missing."""
        config = self.settled(server)
        model = self._catalog.get(config.model, config.quantization)
        found = settled_price(self._fleet, self._catalog, config, self._tables)
        seconds = token_seconds(touched_by(model, *found), self._fleet.hardware) if model and found else None
        return None if seconds is None else round(seconds * 1e9)

    def _sizes(self, server: ServerConfig) -> Vector:
        """Peak bytes of `devices` as the config stands."""
        taken = self._peaks(server)
        return tuple(taken.get(d, 0) for d in self._devices)

    def _peaks(self, server: ServerConfig) -> dict[str, int]:
        return peaks(self._fleet, self._catalog, server, self._tables)

    def _packed(self, server: ServerConfig, room: Vector) -> ServerConfig:
        """`server` with each of its devices in turn filled; the last has the rest."""
        model = self._catalog.get(server.model, server.quantization)
        if model is None:
            return server
        whole = model.architecture.n_layer + 1
        count = min(server.n_gpu_layers, whole) if isinstance(server.n_gpu_layers, int) else whole
        own = tuple(d for d in server.devices if d in self._devices)
        counts: list[int] = []
        for device in own[:-1]:
            at = self._devices.index(device)
            low, high = 0, count - sum(counts)
            while low < high:
                middle = (low + high + 1) // 2
                tried = _written(server, [*counts, middle], count, len(own))
                low, high = (middle, high) if self._sizes(tried)[at] <= room[at] else (low, middle - 1)
            counts.append(low)
        return _written(server, counts, count, len(own))


def _written(server: ServerConfig, counts: list[int], count: int, devices: int) -> ServerConfig:
    """`server` with the given layers on its first devices, of `count` in all; the next device has the rest."""
    numbers = [*counts, count - sum(counts), *[0] * devices][:devices]
    shares = [float(n) for n in numbers]
    first = next((i for i, n in enumerate(numbers) if n), 0)
    last = max((i for i, n in enumerate(numbers) if n), default=0)
    if first != last:
        shares[first] -= EVEN
        shares[last] += EVEN
    return msgspec.structs.replace(server, tensor_split=tuple(shares))


Offers = Mapping[str, tuple[Option, ...]]
"""Options of one step per server; none for a server that leaves nothing open there."""


class Sharers:
    """Servers `names` that share `devices` with each other and with the rest of `running`, which is fixed.

    `chosen` has their configs with the choices made so far.
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
        """Open fields start at their least acceptable values."""
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
        """RAM left by the others, where RAM is limited."""

    def choose(self) -> tuple[Solved, ...]:
        """Take every step; returns what was chosen, and findings about what was not."""
        if len(self._names) == 1 and not any(self._running[name].exclusive for name in self._others):
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
            Solved(server=name, chosen=values[name], beyond=tuple(beyond[name]), fits=fits, complete=self._complete)
            for name in self._names
            if values[name]
        )

    def _by_time(self, offers: Offers) -> Offers:
        """`offers` priced by time per token, all else as chosen, where the hardware file states all rates.

        The order of a server's options stays: where more on the devices is not faster, the costs stay, too.
        """
        if not states_rates(self._fleet.hardware):
            return offers
        timed: dict[str, tuple[Option, ...]] = {}
        for name, offered in offers.items():
            taken = [self._pricer.token_ns(msgspec.structs.replace(self.chosen[name], **o.changes)) for o in offered]
            known = [cost for cost in taken if cost is not None]
            if len(known) < len(taken) or known != sorted(known):
                return offers
            timed[name] = tuple(msgspec.structs.replace(o, cost=c) for o, c in zip(offered, known, strict=True))
        return timed

    def _budget(self, device: str) -> int:
        """The budget of `device` less what other processes take that do not take turns."""
        fleet, hardware = self._fleet, self._fleet.hardware
        taken = sum(taken_on(device, service) for service in fleet.services.values() if service.exclusive is None)
        taken += sum(taken_on(device, upstream) for upstream in fleet.upstreams.values())
        if device != RAM:
            return max(0, int(hardware.gpus[device].vram_bytes * hardware.gpus[device].target_max) - taken)
        return max(0, hardware.ram_bytes - hardware.ram_reserve_bytes - taken)

    def _take(self, offers: Offers, picks: Mapping[str, int] | None) -> None:
        """Set the picked options; None: the least acceptable ones."""
        for name, offered in offers.items():
            if offered:
                option = offered[picks[name] if picks is not None else -1]
                self.chosen[name] = msgspec.structs.replace(self.chosen[name], **option.changes)

    def _turn(self, name: str) -> str:
        """The group whose turn it is while a server is up: its exclusive group, else the server itself."""
        group = self._running[name].exclusive
        return f"group {group}" if group else f"server {name}"

    def _at_worst(self, sizes: Mapping[str, int]) -> int:
        """Bytes by server, added up: of those that take turns the largest."""
        turns: dict[str, int] = {}
        for name, size in sizes.items():
            turn = self._turn(name)
            turns[turn] = max(turns.get(turn, 0), size)
        return sum(turns.values())

    def _left_of_ram(self) -> int:
        """RAM beside the other servers at worst; unlimited where RAM itself is being filled."""
        if RAM in self._devices:
            return 0
        ours = {self._turn(name) for name in self._names}
        others = {name: s for name, s in self._running.items() if self._turn(name) not in ours}
        return self._budget(RAM) - self._at_worst({name: self._pricer.ram(s) for name, s in others.items()})

    def _fits_host(self, offers: Offers, picks: Mapping[str, int] | None) -> bool:
        if picks is None or RAM in self._devices:
            return True
        changes = {name: offered[picks[name]].changes if offered else {} for name, offered in offers.items()}
        changed = {name: msgspec.structs.replace(self.chosen[name], **fields) for name, fields in changes.items()}
        return self._at_worst({name: self._pricer.ram(server) for name, server in changed.items()}) <= self._host

    def _pick(self, offers: Offers, *, in_ram: bool) -> dict[str, int] | None:
        """The best option of each server; None where nothing fits. `in_ram`: RAM is one of the devices."""
        if self._pricer.room is not None:
            room = (*self._pricer.room, self._host) if in_ram else self._pricer.room
            return self._first(self._names[0], offers, room, in_ram=in_ram)
        candidates = {name: tuple(self._candidates(name, offers[name], in_ram=in_ram)) for name in self._names}
        more = (0,) if in_ram else ()
        candidates |= {name: (Candidate(0, (*size, *more)),) for name, size in self._others.items()}
        groups: dict[str, list[str]] = {}
        for name in (n for n in self._running if n in candidates):
            groups.setdefault(self._turn(name), []).append(name)
        offered = [[candidates[name] for name in members] for members in groups.values()]
        picks, complete = best(offered, (*self._room, self._host) if in_ram else self._room)
        self._complete = self._complete and complete
        order = [name for members in groups.values() for name in members]
        return None if picks is None else dict(zip(order, picks, strict=True))

    def _first(self, name: str, offers: Offers, room: Vector, *, in_ram: bool) -> dict[str, int] | None:
        """The first, so the best, option of a server alone that fits into `room`."""
        candidates = enumerate(self._candidates(name, offers[name], in_ram=in_ram))
        return next(({name: at} for at, candidate in candidates if within(candidate.size, room)), None)

    def _candidates(self, name: str, offered: tuple[Option, ...], *, in_ram: bool) -> Iterator[Candidate]:
        """Every option of a server with its size, best first; if it has none, its present one."""
        server = self.chosen[name]
        for option in offered or (Option(cost=0, changes={}),):
            config = msgspec.structs.replace(server, **option.changes)
            size = self._pricer.sizes(config)
            yield Candidate(option.cost, (*size, self._pricer.ram(config)) if in_ram else size)

    def _why(self, name: str, better: Option) -> str:
        """How much the next better option of server `name` exceeds the room, all else as chosen."""
        changes = ", ".join(f"{field}={value}" for field, value in better.changes.items() if value is not None)
        beside: dict[str, list[Vector]] = {}
        for other in (n for n in self._running if n in (*self._names, *self._others) and n != name):
            if self._turn(other) != self._turn(name):
                size = self._others.get(other) or self._pricer.sizes(self.chosen[other])
                beside.setdefault(self._turn(other), []).append(size)
        own = self._pricer.sizes(msgspec.structs.replace(self.chosen[name], **better.changes))
        sizes = [own, *(tuple(map(max, zip(*members, strict=True))) for members in beside.values())]
        over = {d: sum(taken) - room for d, room, *taken in zip(self._devices, self._room, *sizes, strict=True)}
        worst = max(over, key=over.__getitem__)
        if over[worst] <= 0 and RAM not in over:
            changed = {**self.chosen, name: msgspec.structs.replace(self.chosen[name], **better.changes)}
            worst, over[RAM] = RAM, sum(map(self._pricer.ram, changed.values())) - self._host
        return (
            f"{changes} needs {gib(over[worst])} more on {worst}"
            if over[worst] > 0
            else f"{changes}: others come first"
        )


def solve(fleet: FleetConfig, catalog: Catalog, tables: WeightTables) -> tuple[FleetConfig, tuple[Solved, ...]]:
    """`fleet` (one host's) with everything chosen that its servers leave open, and a record of the choices.

    GPUs first, by their budgets; then what runs on the CPU alone, by the remaining RAM. A server of a tier that never
    starts is not considered.
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
    tier = fleet.tiers.get(server.tier)
    return tier is not None and tier.start != "never"


def _cards(fleet: FleetConfig, server: ServerConfig) -> set[str]:
    return {d for d in server.devices if d in fleet.hardware.gpus}


def _sharing(fleet: FleetConfig, names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Sets of servers that share devices, directly or through another server; with all their devices."""
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
