"""The input of every check. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from launcher.errors import Finding, Fix
from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig
from launcher.ir.plan import DevicePlan, ServerPlan, ServicePlan, Solved
from launcher.plan.memory.weights import WeightTables


class Planning(msgspec.Struct, frozen=True, kw_only=True):
    """A plan in progress: servers in start order, memory added up, nothing checked yet.

    It is one host's, or for checks of `WHOLE` the fleet's, all hosts as one.
    """

    fleet: FleetConfig
    catalog: Catalog
    servers: tuple[ServerPlan, ...]
    services: tuple[ServicePlan, ...]
    devices: tuple[DevicePlan, ...]
    tables: WeightTables
    solved: tuple[Solved, ...] = ()
    front: bool = True
    """Whether the fleet's front runs on this host."""

    @property
    def running(self) -> tuple[ServerPlan, ...]:
        """Servers that may ever run."""
        return tuple(s for s in self.servers if s.starts != "never")


Check = Callable[[Planning], Iterator[Finding]]


def set_fields(server: ServerPlan, effect: str = "", /, **values: object) -> Fix:
    """Overrides that set several fields of a server together."""
    override = " ".join(f"{server.key}.{field}={value}" for field, value in values.items())
    return Fix(override=override, effect=effect)
