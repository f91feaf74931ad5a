"""Layers over several devices: the split that fits, where none is written. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig, ServerConfig
from launcher.ir.settings import RAM
from launcher.plan.memory import WeightTables
from launcher.plan.server import price, settled_price
from launcher.plan.solve.frontier import Vector
from launcher.plan.speed import token_seconds, touched_by

EVEN = 0.5
"""Shares are drawn between two layers, so that no rounding of the numbers moves a layer."""


class Pricer:
    """What servers take of `devices`. With `room` (what is free there, for one server alone) with the split that fits.

    The usual split, where none is written, goes by memory. Where that does not fit, each device in turn gets as
    many layers as it can hold: layers are divided in order, and what a device takes grows with its layers, so that
    no other split leaves less to the devices after it.
    """

    def __init__(
        self,
        fleet: FleetConfig,
        catalog: Catalog,
        tables: WeightTables,
        devices: tuple[str, ...],
    ) -> None:
        """No split is looked for until there is `room`."""
        self._fleet, self._catalog, self._tables, self._devices = fleet, catalog, tables, devices
        self.room: Vector | None = None

    def sizes(self, server: ServerConfig) -> Vector:
        """Peak bytes by device of `server`, split as `settled` does."""
        return self._sizes(self.settled(server))

    def settled(self, server: ServerConfig) -> ServerConfig:
        """`server` with its split written, where one was looked for and the usual one does not fit."""
        if self.room is None or not self._splits(server) or server.tensor_split:
            return server
        usual = self._sizes(server)
        if _fits(usual, self.room) or sum(usual) > sum(self.room):
            return server
        return self._packed(server, self.room)

    def _splits(self, server: ServerConfig) -> bool:
        """Whether there is something to split: several devices, and layers on them."""
        return sum(d in self._devices for d in server.devices) > 1 and server.n_gpu_layers != 0

    def ram(self, server: ServerConfig) -> int:
        """Peak bytes of RAM of `server`, split as `settled` does."""
        memory = price(self._fleet, self._catalog, self.settled(server), self._tables) or ()
        return next((m.resident_peak_bytes for m in memory if m.device == RAM), 0)

    def token_ns(self, server: ServerConfig) -> int | None:
        """Nanoseconds that one token takes by the rates that the hardware file states; None where one is not."""
        config = self.settled(server)
        model = self._catalog.get(config.model, config.quantization)
        found = settled_price(self._fleet, self._catalog, config, self._tables)
        seconds = token_seconds(touched_by(model, *found), self._fleet.hardware) if model and found else None
        return None if seconds is None else round(seconds * 1e9)

    def _sizes(self, server: ServerConfig) -> Vector:
        """Peak bytes by device as the config stands."""
        memory = price(self._fleet, self._catalog, server, self._tables) or ()
        by_device = {m.device: m.resident_peak_bytes for m in memory}
        return tuple(by_device.get(d, 0) for d in self._devices)

    def _packed(self, server: ServerConfig, room: Vector) -> ServerConfig:
        """`server` with each of its devices in turn as full as it can be; the last has the rest."""
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
    """`server` with so many layers on its first devices, of `count` in all; the device after these has the rest."""
    numbers = [*counts, count - sum(counts), *[0] * devices][:devices]
    shares = [float(n) for n in numbers]
    first = next((i for i, n in enumerate(numbers) if n), 0)
    last = max((i for i, n in enumerate(numbers) if n), default=0)
    if first != last:
        shares[first] -= EVEN
        shares[last] += EVEN
    return msgspec.structs.replace(server, tensor_split=tuple(shares))


def _fits(size: Vector, room: Vector) -> bool:
    """Whether `size` is nowhere above `room`."""
    return all(a <= b for a, b in zip(size, room, strict=True))
