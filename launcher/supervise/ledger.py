"""Who must go so that a server fits: a pure decision over budgets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from launcher.ir.fleet import DeviceNeed

_BYTES_PER_S = 1e9
"""Assumed speed of a load that was never measured: an NVMe's, on the slow side."""
_LEAST_S = 0.05
_JUST_USED_S = 1e-3


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds memory, for the ledger: bytes by device, and whether it may go.

    `pinned` (HOT, services) and `busy` (a request in flight, or starting) ones never go. `idle_s` is the time since
    it was last used, `reload_s` what it takes to have it back.
    """

    name: str
    needs: dict[str, int]
    idle_s: float
    reload_s: float = 1.0
    busy: bool = False
    pinned: bool = False

    @property
    def keep_value(self) -> float:
        """Loss expected from its going: seconds to reload, per second that nobody asked for it.

        Who was idle for long is not likely to be asked soon; between equals, the one that is back sooner goes.
        """
        return max(_LEAST_S, self.reload_s) / max(_JUST_USED_S, self.idle_s)


def needs_bytes(memory: Iterable[DeviceNeed]) -> dict[str, int]:
    """Bytes by device that must be there for a process at its peak, file-backed pages included."""
    total: dict[str, int] = {}
    for need in memory:
        total[need.device] = total.get(need.device, 0) + max(need.committed_bytes, need.peak_bytes) + need.file_bytes
    return total


def reload_seconds(measured_s: float | None, needs: Mapping[str, int]) -> float:
    """Seconds to have a process back: as its last start took, else as its bytes would."""
    return measured_s if measured_s is not None else sum(needs.values()) / _BYTES_PER_S


def choose_victims(
    target: Mapping[str, int], running: Iterable[Resident], budget: Mapping[str, int]
) -> tuple[str, ...] | None:
    """Names to stop, in order, so that `target` (bytes by device) fits into `budget`; None when it cannot.

    Least recently used first, weighed by what it costs to reload (`Resident.keep_value`). Nobody is stopped in vain:
    every victim is needed. Devices without a budget are not limited.
    """
    residents = tuple(running)
    lacking = {
        device: need + sum(r.needs.get(device, 0) for r in residents) - budget[device]
        for device, need in target.items()
        if device in budget
    }
    candidates = sorted((r for r in residents if not r.busy and not r.pinned), key=lambda r: (r.keep_value, r.name))
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
    # A big one chosen late may make earlier, smaller ones unnecessary; the most valuable is spared first.
    for resident in reversed(tuple(chosen)):
        rest = [r for r in chosen if r is not resident]
        if _covers(rest, lacking):
            chosen = rest
    return tuple(r.name for r in chosen)


def can_ever_fit(target: Mapping[str, int], running: Iterable[Resident], budget: Mapping[str, int]) -> bool:
    """Whether `target` would fit beside the pinned ones alone: else no waiting helps."""
    pinned = [r for r in running if r.pinned]
    return all(
        need + sum(r.needs.get(device, 0) for r in pinned) <= budget[device]
        for device, need in target.items()
        if device in budget
    )


def _freed(chosen: Iterable[Resident], device: str) -> int:
    """Bytes of `device` that `chosen` give back."""
    return sum(r.needs.get(device, 0) for r in chosen)


def _covers(chosen: list[Resident], lacking: Mapping[str, int]) -> bool:
    """Whether `chosen` give back what is lacking everywhere."""
    return all(_freed(chosen, device) >= short for device, short in lacking.items())
