"""What taking over a plan would do to a fleet that runs already. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.live import Manager


class FleetChange(msgspec.Struct, frozen=True, kw_only=True):
    """One running fleet of the plan's name: processes by name, of the restarted ones why.

    `drift` is what is not as the fleet itself says: layer (`generated`, `installed`, `loaded`, `running`) and where.
    `command` takes the plan over; where it is empty, none does, and `hindrance` says why.
    """

    manager: Manager
    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: dict[str, str]
    kept: tuple[str, ...]
    front: tuple[str, ...] = ()
    """What changes of the front, its address, certificate, keys and limits among it."""
    drift: tuple[str, ...] = ()
    command: str = ""
    hindrance: str = ""
    on_demand: tuple[str, ...] = ()
    """Of `started`, those that are not up at once: they come when they are asked."""
