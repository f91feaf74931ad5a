"""Which server is stopped for which: eviction, turns of exclusive groups, idleness. Pure.

All decisions to stop a server for another one, or for being idle, are made here; `launcher.supervise.room`, `waker` and
`upkeep` carry them out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from launcher.ir.fleet import DeviceNeed
from launcher.ir.host import HostGpu
from launcher.supervise.lifecycle import Life
from launcher.supervise.spec import ProcessSpec

_BYTES_PER_S = 1e9
"""Assumed speed of a load that was never measured: that of a slow NVMe."""
_LEAST_S = 0.05
_JUST_USED_S = 1e-3
_MOST_STAY_S = 30.0
"""Seconds; limit of the stay in a turn where `min_stay_s` is not configured."""
GIVE_BACK_S = 5.0
"""How long after the end of a process a card's driver may still count its memory as used."""
_UNASKED_S = 1.0
"""Seconds without a request after which the turn of a server is over."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A process as the scheduler sees it, whether it runs or not.

    `idle_s`: seconds since its last use. `ready_s`: seconds that its last start took; None: never measured. `up_s`:
    seconds since it became ready.
    """

    spec: ProcessSpec
    life: Life
    in_flight: int = 0
    idle_s: float = 0.0
    ready_s: float | None = None
    up_s: float = 0.0

    @property
    def pinned(self) -> bool:
        """Whether it is always on: it is never stopped for another process."""
        return self.spec.unit.start == "boot" and self.spec.unit.exclusive is None

    @property
    def holds_memory(self) -> bool:
        """Whether its memory is taken, or reserved for a start that will come by itself."""
        life = self.life
        to_come = self.pinned and life.state == "stopped" and not life.held
        return life.alive or life.wanted or life.returning or to_come

    @property
    def is_coming(self) -> bool:
        """Whether it is on its way up, so that not all of its memory is taken yet."""
        return self.life.returning or self.life.state in ("starting", "backoff", "stopped")

    @property
    def idle_too_long(self) -> bool:
        """Whether it is started on demand, and had no request for as long as it may be idle."""
        limit_s = self.spec.unit.idle_timeout_s
        stoppable = self.spec.unit.start == "demand" and limit_s > 0 and self.life.usable and not self.in_flight
        return stoppable and self.idle_s >= limit_s

    @property
    def stay_s(self) -> float:
        """Seconds that its turn still lasts when another of its exclusive group is asked for.

        A swap should be worth its time: while requests come for the running member they go first, and those for others
        wait, for a while that counts from when it became ready. So each member has its turn in the end.
        """
        least_s = self.spec.unit.min_stay_s
        if least_s is msgspec.UNSET:
            least_s = min(self.ready_s or 0.0, _MOST_STAY_S)
        if not self.life.usable:
            return 0.0
        left_s = least_s - self.up_s
        if not self.in_flight:
            left_s = min(left_s, min(_UNASKED_S, least_s / 4) - self.idle_s)
        return max(0.0, left_s)

    def resident(self) -> Resident:
        """Its memory, and whether it may be stopped."""
        needs = needs_bytes(self.spec.unit.memory)
        return Resident(
            name=self.spec.name,
            needs=needs,
            idle_s=self.idle_s,
            reload_s=sum(needs.values()) / _BYTES_PER_S if self.ready_s is None else self.ready_s,
            busy=self.in_flight > 0 or self.life.returning or self.life.state == "starting",
            pinned=self.pinned,
        )


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds memory: bytes by device, and whether it may be stopped.

    `pinned` (HOT, services) and `busy` (a request in flight, or starting) ones are never stopped. `idle_s`: seconds
    since its last use; `reload_s`: seconds to load it again.
    """

    name: str
    needs: dict[str, int]
    idle_s: float
    reload_s: float = 1.0
    busy: bool = False
    pinned: bool = False

    @property
    def keep_value(self) -> float:
        """Loss expected from stopping it: seconds to reload, per second without a request.

        A server that was idle for long is not likely to be asked soon; between equals, the one that loads faster goes
        first.
        """
        return max(_LEAST_S, self.reload_s) / max(_JUST_USED_S, self.idle_s)


def needs_bytes(memory: Iterable[DeviceNeed]) -> dict[str, int]:
    """Bytes by device that a process needs at its peak, file-backed pages included."""
    total: dict[str, int] = {}
    for need in memory:
        total[need.device] = total.get(need.device, 0) + max(need.committed_bytes, need.peak_bytes) + need.file_bytes
    return total


def rivals(spec: ProcessSpec, tenants: Iterable[Tenant]) -> tuple[str, ...]:
    """The other members of its exclusive group that run, or will run again by themselves: they are stopped for it."""
    if spec.unit.exclusive is None:
        return ()
    others = (t for t in tenants if t.spec.name != spec.name and t.spec.unit.exclusive == spec.unit.exclusive)
    return tuple(t.spec.name for t in others if t.life.alive or t.life.wanted)


def evict_for(
    spec: ProcessSpec, tenants: Iterable[Tenant], budgets: Mapping[str, int], available: Mapping[str, int]
) -> tuple[str, ...] | None:
    """Names to stop so that `spec` fits; None: not possible now. Raises LookupError when waiting cannot help.

    Bytes by device; `available`: what the system reports as free, for the devices that it knows.
    """
    holding = [t for t in tenants if t.spec.name != spec.name and t.holds_memory]
    residents = [tenant.resident() for tenant in holding]
    need = needs_bytes(spec.unit.memory)
    if not can_ever_fit(need, residents, budgets):
        raise LookupError(spec.name)
    limits = dict(budgets)
    for device, free in available.items():
        if device in limits:
            # what is loaded shows in the system's figure already, what is on its way does not yet
            loaded = sum(needs_bytes(t.spec.unit.memory).get(device, 0) for t in holding if not t.is_coming)
            limits[device] = min(limits[device], free + loaded)
    return choose_victims(need, residents, limits)


def devices_left(tenants: Iterable[Tenant], now: float) -> frozenset[str]:
    """Where one of `tenants` had memory that ended less than `GIVE_BACK_S` before `now`."""
    ended = (t for t in tenants if t.life.ended_at is not None and now - t.life.ended_at < GIVE_BACK_S)
    return frozenset(need.device for t in ended for need in t.spec.unit.memory)


def not_given_back(need: Mapping[str, int], devices: Collection[str], cards: Mapping[str, HostGpu]) -> dict[str, int]:
    """Bytes that `need` lacks of those of `devices` that are cards; `cards` is what their drivers say.

    A card that is smaller than the need is left out: its driver does not count all that is used as its memory.
    """
    asked = {device: need[device] for device in devices if device in need and device in cards}
    return {
        device: size - cards[device].free_bytes
        for device, size in asked.items()
        if cards[device].free_bytes < size <= cards[device].vram_bytes
    }


def choose_victims(
    target: Mapping[str, int], running: Iterable[Resident], budget: Mapping[str, int]
) -> tuple[str, ...] | None:
    """Names to stop, in order, so that `target` (bytes by device) fits into `budget`; None when it cannot.

    Least recently used first, weighed by the time to reload (`Resident.keep_value`). No server is stopped in vain:
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
    """Whether `target` fits beside the pinned processes alone; if not, waiting does not help."""
    pinned = [r for r in running if r.pinned]
    return all(
        need + sum(r.needs.get(device, 0) for r in pinned) <= budget[device]
        for device, need in target.items()
        if device in budget
    )


def _freed(chosen: Iterable[Resident], device: str) -> int:
    return sum(r.needs.get(device, 0) for r in chosen)


def _covers(chosen: list[Resident], lacking: Mapping[str, int]) -> bool:
    return all(_freed(chosen, device) >= short for device, short in lacking.items())
