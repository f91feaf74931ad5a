"""What the data plane may ask of the processes that run here: implements `launcher.ir.live.Upstreams`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from launcher.base import claimed_name
from launcher.ir.live import Lease, ServerState, Upstreams
from launcher.supervise.causes import FROM_OUTSIDE
from launcher.supervise.owner import ProcessOwner
from launcher.supervise.ports import look_for_intruder, stranger_behind
from launcher.supervise.recovery import retry_after_oom
from launcher.supervise.runner import Runner
from launcher.supervise.waker import Waker


class Serving(Upstreams):
    """Answers for `runners`, by name. Each method: see `launcher.ir.live.Upstreams`."""

    def __init__(self, runners: dict[str, Runner], waker: Waker, owner: ProcessOwner) -> None:
        self._runners = runners
        self._waker = waker
        self._owner = owner

    def state(self, name: str) -> ServerState:
        """State of `name` now; an unknown name is stopped, one of which it is not known yet may run already."""
        runner = self._runners.get(name)
        state = "stopped" if runner is None else runner.routing_state
        return "starting" if state == "stopped" and runner is not None and self._waker.waits else state

    def left_s(self, name: str) -> float | None:
        """By its last start, else by its medium's speed."""
        runner = self._runners.get(name)
        if runner is None or runner.life.state not in ("starting", "stopped", "stopping", "backoff"):
            return None
        takes_s = runner.spec.unit.load_s if runner.took_s is None else runner.took_s
        return None if takes_s is None else max(0.0, takes_s - (runner.starting_s or 0.0))

    def ended_from_outside(self, name: str) -> bool:
        """Also while it is not known how it ended."""
        runner = self._runners.get(name)
        return runner is None or runner.life.usable or runner.ending.code in FROM_OUTSIDE

    def try_lease(self, name: str) -> Lease | None:
        """Of one that takes requests now."""
        runner = self._runners.get(name)
        return runner.grant(name) if runner is not None and runner.life.usable else None

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """See `launcher.supervise.waker`."""
        return await self._waker.acquire(name, timeout_s)

    async def unload(self, name: str) -> None:
        """See `launcher.supervise.waker`."""
        await self._waker.unload(name)

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:
        """Who owns processes here knows whose the port, or the other end, is."""
        runner = self._runners.get(name)
        if not self._owner.local:
            return claimed_name.stranger(name, await ask())
        if runner is None or runner.pid is None:
            raise ProcessLookupError
        if peer is not None:
            return stranger_behind(runner.pid, peer)
        return await look_for_intruder(runner.pid, runner.spec.unit.port, runner.spec.unit.host)

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:
        """See `launcher.supervise.recovery`."""
        runner = self._runners.get(name)
        return runner is not None and await retry_after_oom(runner, since, error_text, self._waker.drain_timeout_s)
