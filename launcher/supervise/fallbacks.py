"""How far a server has fallen back after out-of-memory, and which of its specs is in use.

Level 0 is what was planned; level n is the n-th fallback of the manifest. A server goes down one level an out-of-memory
and never below the last: after as many as there are fallbacks it has failed. It is restored one level at a time, not
before a pause that doubles with every restoration that did not hold, so that a server which cannot stay up there is not
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
"""Diagnoses after which the same start would most likely end the same way, and a smaller one would not."""


class Degradation(msgspec.Struct, frozen=True, kw_only=True):
    """`level` in use; `count`: how often it was degraded, ever; the `_at` on the clock of `now`.

    `restore_at`: when the level above may be tried (None on level 0, and where somebody chose the level). `pause_s`:
    how long after the next degradation.
    """

    level: int = 0
    count: int = 0
    degraded_at: float | None = None
    restored_at: float | None = None
    restore_at: float | None = None
    pause_s: float = RESTORE_FIRST_S


def degrade(now_at: Degradation, levels: int, now: float) -> Degradation | None:
    """One level down of `levels`; None when there is none.

    Soon after a restoration it doubles the pause; after one that had held for a whole pause it begins anew.
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
    """One level up; the next one may be tried after another pause."""
    level = max(0, now_at.level - 1)
    restore_at = now + now_at.pause_s if level else None
    return msgspec.structs.replace(now_at, level=level, restored_at=now, restore_at=restore_at)


def may_restore(
    now_at: Degradation, now: float, here: Mapping[str, int], above: Mapping[str, int], available: Mapping[str, int]
) -> bool:
    """Whether the level above may be tried: its pause is over, and what it takes more is available.

    Bytes by device; `here` is what the server holds now (nothing when it does not run). A device whose available
    memory is not known does not stand in the way: the pause alone decides.
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

    def land(self, address: tuple[str, int] | None) -> None:
        """Where its process listens, as far as its spec does not say so before."""
        if address != self._landed:
            self._landed = address
            self._use(self.degradation)

    @property
    def label(self) -> str:
        """`1/4: q3_k_m`, or "" as planned."""
        level = self.degradation.level
        return f"{level}/{len(self.planned.fallbacks)}: {self.spec.fallback_label}" if level else ""

    @property
    def left(self) -> int:
        """Levels below."""
        return len(self.planned.fallbacks) - self.degradation.level

    def take(self, planned: ProcessSpec) -> None:
        """Another manifest's spec: on the same level where that is still the same command, else as planned."""
        same = any(fallback.unit.argv == self.spec.unit.argv for fallback in planned.fallbacks)
        self.planned = planned
        if self.degradation.level and same:
            self._use(msgspec.structs.replace(self.degradation, level=_level_of(planned, self.spec.unit.argv)))
        else:
            self._use(Degradation(count=self.degradation.count))

    def adopt(self, argv: tuple[str, ...]) -> bool:
        """Whether a process with `argv` is this server, as planned or fallen back; then that level is in use."""
        if argv == self.spec.unit.argv:
            return True
        level = _level_of(self.planned, argv)
        if level:
            now = asyncio.get_running_loop().time()
            above = Degradation(level=level - 1)
            self._use(degrade(above, len(self.planned.fallbacks), now) or above)
        return bool(level)

    def degrade(self) -> bool:
        """Go one level down; whether there was one."""
        lower = degrade(self.degradation, len(self.planned.fallbacks), asyncio.get_running_loop().time())
        if lower is None:
            return False
        self._use(lower)
        return True

    def restore(self, available: Mapping[str, int], *, running: bool) -> bool:
        """Go one level up if its time has come and there is room; whether it did."""
        level, now = self.degradation.level, asyncio.get_running_loop().time()
        if not level:
            return False
        here = needs_bytes(self.spec.unit.memory) if running else {}
        if not may_restore(self.degradation, now, here, needs_bytes(self._at(level - 1).unit.memory), available):
            return False
        self._use(restore(self.degradation, now))
        return True

    def by_hand(self, *, down: bool) -> None:
        """One level down, or as planned again, because somebody wants it: nothing restores it by itself."""
        level = self.degradation.level + 1 if down else 0
        self._use(msgspec.structs.replace(self.degradation, level=level, restore_at=None))

    def degraded_since(self, since: float) -> bool:
        """Whether it went down at or after `since`, a time of the loop."""
        return self.degradation.degraded_at is not None and self.degradation.degraded_at >= since

    def _use(self, degradation: Degradation) -> None:
        self.degradation = degradation
        spec = self._at(degradation.level)
        self.spec = spec if self._landed is None else spec.at(*self._landed)

    def _at(self, level: int) -> ProcessSpec:
        return self.planned.fallbacks[level - 1] if level else self.planned


def _level_of(planned: ProcessSpec, argv: tuple[str, ...]) -> int:
    """Which level has this command, 0 for none."""
    return next((n for n, fallback in enumerate(planned.fallbacks, 1) if fallback.unit.argv == argv), 0)
