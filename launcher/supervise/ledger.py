"""Who must go so that a server fits: a pure decision over budgets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from launcher.ir.fleet import DeviceNeed


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A running process for the ledger: bytes by device, and whether it may go.

    `pinned` (HOT, services) and `busy` (a request in flight, or starting) ones never go. `last_used` is any clock.
    """

    name: str
    needs: dict[str, int]
    last_used: float
    busy: bool = False
    pinned: bool = False


def needs_bytes(memory: Iterable[DeviceNeed]) -> dict[str, int]:
    """Bytes by device that must be there for a process at its peak, file-backed pages included."""
    total: dict[str, int] = {}
    for need in memory:
        total[need.device] = total.get(need.device, 0) + max(need.committed_bytes, need.peak_bytes) + need.file_bytes
    return total


def choose_victims(
    target: Mapping[str, int], running: Iterable[Resident], budget: Mapping[str, int]
) -> tuple[str, ...] | None:
    """Names to stop, in order, so that `target` (bytes by device) fits into `budget`; None when it cannot.

    Least recently used first; of two equally old, the one that costs less to reload. Nobody is stopped in vain:
    every victim is needed. Devices without a budget are not limited.
    """
    residents = tuple(running)
    lacking = {
        device: need + sum(r.needs.get(device, 0) for r in residents) - budget[device]
        for device, need in target.items()
        if device in budget
    }
    candidates = sorted(
        (r for r in residents if not r.busy and not r.pinned),
        key=lambda r: (r.last_used, sum(r.needs.values()), r.name),
    )
    chosen: list[Resident] = []
    for resident in candidates:
        if _covers(chosen, lacking):
            break
        if any(
            short > _freed(chosen, device) and resident.needs.get(device, 0) > 0 for device, short in lacking.items()
        ):
            chosen.append(resident)
    if not _covers(chosen, lacking):
        return None
    # A big one chosen late may make earlier, smaller ones unnecessary; the youngest is spared first.
    for resident in reversed(tuple(chosen)):
        rest = [r for r in chosen if r is not resident]
        if _covers(rest, lacking):
            chosen = rest
    return tuple(r.name for r in chosen)


def _freed(chosen: Iterable[Resident], device: str) -> int:
    """Bytes of `device` that `chosen` give back."""
    return sum(r.needs.get(device, 0) for r in chosen)


def _covers(chosen: list[Resident], lacking: Mapping[str, int]) -> bool:
    """Whether `chosen` give back what is lacking everywhere."""
    return all(_freed(chosen, device) >= short for device, short in lacking.items())
