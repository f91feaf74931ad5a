"""One server's ladder at work: which of its specs is in use, and what each step means for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import msgspec

from launcher.supervise.ladder import OUT_OF_MEMORY, Standing, climb, may_climb, slip
from launcher.supervise.ledger import needs_bytes
from launcher.supervise.spec import ProcessSpec

_NOTICE_S = 2.0
"""How long the end of a process may take to be noticed after its connection broke (it may write a core, or a trace)."""


class Rungs:
    """The planned spec and its rungs, and where the server stands. All calls are made in the event loop."""

    def __init__(self, planned: ProcessSpec) -> None:
        """As planned."""
        self.planned = planned
        self.standing = Standing()
        self.spec = planned
        self._slipped = asyncio.Event()

    @property
    def label(self) -> str:
        """`1/4: q3_k_m`, or "" as planned."""
        rung = self.standing.rung
        return f"{rung}/{len(self.planned.rungs)}: {self.spec.rung}" if rung else ""

    @property
    def left(self) -> int:
        """Rungs below."""
        return len(self.planned.rungs) - self.standing.rung

    def take(self, planned: ProcessSpec) -> None:
        """Another manifest's spec: on the same rung where that is still the same command, else as planned."""
        same = any(rung.argv == self.spec.argv for rung in planned.rungs)
        self.planned = planned
        if self.standing.rung and same:
            self._stand(msgspec.structs.replace(self.standing, rung=_rung_of(planned, self.spec.argv)))
        else:
            self._stand(Standing(slips=self.standing.slips))

    def adopt(self, argv: tuple[str, ...]) -> bool:
        """Whether a process with `argv` is this server, as planned or on a rung; then that is where it stands."""
        if argv == self.spec.argv:
            return True
        rung = _rung_of(self.planned, argv)
        if rung:
            now = asyncio.get_running_loop().time()
            below = Standing(rung=rung - 1)
            self._stand(slip(below, len(self.planned.rungs), now) or below)
        return bool(rung)

    def slip(self, code: str | None) -> bool:
        """Go one rung down if a failure with this `code` asks for it; whether there was one."""
        if code not in OUT_OF_MEMORY:
            return False
        lower = slip(self.standing, len(self.planned.rungs), asyncio.get_running_loop().time())
        if lower is None:
            return False
        self._stand(lower)
        slipped, self._slipped = self._slipped, asyncio.Event()
        slipped.set()
        return True

    def climb(self, available: Mapping[str, int], *, running: bool) -> bool:
        """Go one rung up if its time has come and there is room; whether it did."""
        rung, now = self.standing.rung, asyncio.get_running_loop().time()
        if not rung:
            return False
        here = needs_bytes(self.spec.needs) if running else {}
        if not may_climb(self.standing, now, here, needs_bytes(self._at(rung - 1).needs), available):
            return False
        self._stand(climb(self.standing, now))
        return True

    def slipped_since(self, since: float) -> bool:
        """Whether it went down at or after `since`, a time of the loop."""
        return self.standing.slipped_at is not None and self.standing.slipped_at >= since

    async def slips(self, since: float) -> bool:
        """Whether it went down since then, or does so within the time that an end takes to be noticed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_S):
                while not self.slipped_since(since):
                    await self._slipped.wait()
        return self.slipped_since(since)

    def _stand(self, standing: Standing) -> None:
        """Stand there from now on."""
        self.standing = standing
        self.spec = self._at(standing.rung)

    def _at(self, rung: int) -> ProcessSpec:
        """The spec on `rung`."""
        return self.planned.rungs[rung - 1] if rung else self.planned


def _rung_of(planned: ProcessSpec, argv: tuple[str, ...]) -> int:
    """Which rung has this command, 0 for none."""
    return next((n for n, rung in enumerate(planned.rungs, 1) if rung.argv == argv), 0)
