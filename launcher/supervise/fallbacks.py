"""How far a server has fallen back after out-of-memory, and which of its specs is in use.

Level 0 is the plan; level n is the n-th fallback of the manifest. A server goes down one level per out-of-memory, and
never below the last: after as many as there are fallbacks it has failed. It is restored one level at a time, after a
pause that doubles with every restoration that did not hold, so that a server which cannot stay up there is not
restarted for ever. `degrade`, `restore` and `may_restore` are pure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from launcher.supervise.scheduler import needs_bytes
from launcher.supervise.spec import ProcessSpec

RESTORE_FIRST_S = 60.0
RESTORE_MAX_S = 3600.0
OUT_OF_MEMORY = "supervise/out-of-memory"
OUT_OF_MEMORY_CODES = frozenset(
    {
        OUT_OF_MEMORY,
        "supervise/crashed-loading",
        "supervise/kv-out-of-memory",
        "supervise/no-context",
        "supervise/oom-killed",
        "supervise/vram-out-of-memory",
    }
)
"""Diagnoses after which the same start would most likely fail again, and a smaller one would not."""


class Degradation(msgspec.Struct, frozen=True, kw_only=True):
    """The fallback `level` in use, and how often the server was degraded in total (`count`).

    The times (`_at`) are on the clock of `now` (loop time). `restore_at`: when the level above may be tried (None on
    level 0, and where an operator chose the level). `pause_s`: seconds from the next degradation to its `restore_at`.
    """

    level: int = 0
    count: int = 0
    degraded_at: float | None = None
    restored_at: float | None = None
    restore_at: float | None = None
    pause_s: float = RESTORE_FIRST_S


def degrade(now_at: Degradation, levels: int, now: float) -> Degradation | None:
    """The state one level further down; None on the last of `levels`.

    A degradation soon after a restoration doubles the pause, up to an hour; one after a restoration that had held for a
    whole pause sets it back to a minute.
    """
    if now_at.level >= levels:
        return None
    restored, pause = now_at.restored_at, now_at.pause_s
    if restored is not None:
        pause = RESTORE_FIRST_S if now - restored > pause else min(RESTORE_MAX_S, pause * 2)
    return Degradation(
        level=now_at.level + 1, count=now_at.count + 1, degraded_at=now, restore_at=now + pause, pause_s=pause
    )


def restore(now_at: Degradation, now: float) -> Degradation:
    """The state one level up; the next level may be tried after another pause."""
    level = max(0, now_at.level - 1)
    restore_at = now + now_at.pause_s if level else None
    return msgspec.structs.replace(now_at, level=level, restored_at=now, restore_at=restore_at)


def may_restore(
    now_at: Degradation, now: float, here: Mapping[str, int], above: Mapping[str, int], available: Mapping[str, int]
) -> bool:
    """Whether the level above may be tried: its pause is over, and the memory that it needs in addition is available.

    Bytes by device; `here`: what the server holds now (empty when it does not run). A device whose available memory is
    unknown is not considered: then the pause alone decides.
    """
    if now_at.level == 0 or now_at.restore_at is None or now < now_at.restore_at:
        return False
    more = {device: size - here.get(device, 0) for device, size in above.items()}
    return all(size <= available[device] for device, size in more.items() if size > 0 and device in available)


class Fallbacks:
    """The planned spec, its fallbacks, and the level in use. All calls are made in the event loop."""

    def __init__(self, planned: ProcessSpec) -> None:
        self.planned = planned
        self.degradation = Degradation()
        self.spec = planned
        self._landed: tuple[str, int] | None = None

    def set_address(self, address: tuple[str, int] | None) -> None:
        """Set the address at which its process listens, if a scheduler chose it; None: that of the spec."""
        if address != self._landed:
            self._landed = address
            self._use(self.degradation)

    @property
    def label(self) -> str:
        """The level in use, for people: `1/4: q3_k_m`; "" as planned."""
        level = self.degradation.level
        return f"{level}/{len(self.planned.fallbacks)}: {self.spec.fallback_label}" if level else ""

    @property
    def left(self) -> int:
        """Number of levels below the one in use."""
        return len(self.planned.fallbacks) - self.degradation.level

    def take(self, planned: ProcessSpec) -> None:
        """Take over the spec of another manifest; the level stays if a fallback still has the same command line."""
        same = any(fallback.unit.argv == self.spec.unit.argv for fallback in planned.fallbacks)
        self.planned = planned
        if self.degradation.level and same:
            self._use(msgspec.structs.replace(self.degradation, level=_level_of(planned, self.spec.unit.argv)))
        else:
            self._use(Degradation(count=self.degradation.count))

    def adopt(self, argv: tuple[str, ...]) -> bool:
        """Whether `argv` is a command line of this server, planned or fallback; its level is then in use."""
        if argv == self.spec.unit.argv:
            return True
        level = _level_of(self.planned, argv)
        if level:
            now = asyncio.get_running_loop().time()
            above = Degradation(level=level - 1)
            self._use(degrade(above, len(self.planned.fallbacks), now) or above)
        return bool(level)

    def degrade(self) -> bool:
        """Go one level down. Returns False on the last level."""
        lower = degrade(self.degradation, len(self.planned.fallbacks), asyncio.get_running_loop().time())
        if lower is None:
            return False
        self._use(lower)
        return True

    def restore(self, available: Mapping[str, int], *, running: bool) -> bool:
        """Go one level up if its pause is over and there is room. Returns whether it did."""
        level, now = self.degradation.level, asyncio.get_running_loop().time()
        if not level:
            return False
        here = needs_bytes(self.spec.unit.memory) if running else {}
        if not may_restore(self.degradation, now, here, needs_bytes(self._at(level - 1).unit.memory), available):
            return False
        self._use(restore(self.degradation, now))
        return True

    def by_hand(self, *, down: bool) -> None:
        """Go one level down, or back to the plan, for an operator: the level is not restored automatically."""
        level = self.degradation.level + 1 if down else 0
        self._use(msgspec.structs.replace(self.degradation, level=level, restore_at=None))

    def degraded_since(self, since: float) -> bool:
        """Whether the server was degraded at or after `since` (loop time)."""
        return self.degradation.degraded_at is not None and self.degradation.degraded_at >= since

    def _use(self, degradation: Degradation) -> None:
        self.degradation = degradation
        spec = self._at(degradation.level)
        self.spec = spec if self._landed is None else spec.at(*self._landed)

    def _at(self, level: int) -> ProcessSpec:
        return self.planned.fallbacks[level - 1] if level else self.planned


def _level_of(planned: ProcessSpec, argv: tuple[str, ...]) -> int:
    """The level that has this command line; 0: none."""
    return next((n for n, fallback in enumerate(planned.fallbacks, 1) if fallback.unit.argv == argv), 0)
