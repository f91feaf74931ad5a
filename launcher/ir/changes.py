"""What taking over a plan would do to a fleet that runs already. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec


class FleetChange(msgspec.Struct, frozen=True, kw_only=True):
    """One running fleet of the plan's name: processes by name, of the restarted ones why.

    `drift` is what is not as the fleet itself says: layer (`generated`, `installed`, `loaded`, `running`) and where.
    `command` takes the plan over; where it is empty, none does, and `hindrance` says why.
    """

    manager: Literal["runtime", "systemd", "systemd --user"]
    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: dict[str, str]
    kept: tuple[str, ...]
    front: tuple[str, ...] = ()
    """What changes of the front, its address, certificate, keys and limits among it."""
    drift: tuple[str, ...] = ()
    command: str = ""
    hindrance: str = ""
