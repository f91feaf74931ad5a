"""The cards of this machine now, and what processes use of them: asks the driver of each backend. I/O.

No other module asks a driver. Without a driver, asking costs a stat.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_letters
from types import MappingProxyType
from typing import Protocol

from launcher.hardware import amdgpu, nvml
from launcher.ir.backends import BACKENDS
from launcher.ir.host import Card, CardUse

_SYS, _PROC = Path("/sys"), Path("/proc")


class Driver(Protocol):
    """The interface of a driver module; cards are named after `backend`, with a number from 0. Nothing raises."""

    def cards(self, backend: str, sys_root: Path, /) -> Iterable[Card]:
        """Every card whose memory the driver reports."""

    def uses(self, backend: str, pids: Collection[int], sys_root: Path, proc_root: Path, /) -> Iterable[CardUse]:
        """What these processes use of each card; a process may occur several times."""


DRIVERS: Mapping[str, Driver] = MappingProxyType({"nvml": nvml, "amdgpu": amdgpu})
"""Driver modules by their name in `Backend.driver`."""
_BY_BACKEND = {name: DRIVERS[backend.driver] for name, backend in BACKENDS.items() if backend.driver}
_CARD = re.compile(rf"(?:{'|'.join(_BY_BACKEND)})\d+")


def read_cards(sys_root: Path = _SYS) -> tuple[Card, ...]:
    """Every card that a driver reports. May block for a while, as drivers do."""
    return tuple(card for name, driver in _BY_BACKEND.items() for card in driver.cards(name, sys_root))


def read_uses(pids: Collection[int], sys_root: Path = _SYS, proc_root: Path = _PROC) -> tuple[CardUse, ...]:
    """What `pids` use of the cards, as far as we may see it. May block for a while."""
    uses = (driver.uses(name, pids, sys_root, proc_root) for name, driver in _BY_BACKEND.items())
    return tuple(use for found in uses for use in found)


def device_of(card: str, gpus: Sequence[str]) -> str | None:
    """The name of a driver's card in a fleet with the GPUs `gpus`; None where it has no such device. Pure.

    A GPU with another name (`big`, `vulkan0`) is the card at its position in the driver's order.
    """
    if card in gpus:
        return card
    place = int(card.lstrip(ascii_letters))
    if place >= len(gpus) or _CARD.fullmatch(gpus[place]):
        return None
    return gpus[place]
