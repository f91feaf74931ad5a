"""Judges failures of servers by their health, and refuses requests that crashed one. I/O.

A server that closes a connection, answers something else than HTTP, or nothing in time may have been made to by the
request. So the failure is no evidence against it; its `/health` is. If that answers, the request gets its error and the
server goes on. If not, the failure counts for its breaker, and a request without an answer yet becomes a suspect: the
same request is refused for a while. All requests of its kind are refused only after a second crash, since an agent may
send no other kind. While a breaker is open the server is asked again and again, and gets requests as soon as it
answers.
"""

from __future__ import annotations

import asyncio
import hashlib
from time import monotonic
from typing import NamedTuple, Protocol

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.live import Upstreams
from launcher.route.breaker import CLOSED
from launcher.route.identity import get
from launcher.route.peek import BOM
from launcher.route.problem import HttpError
from launcher.route.target import SERVING, Target
from launcher.route.upstream import UpstreamError
from launcher.route.view import View

_AGAIN_S = 0.25
"""Seconds between two health checks while a server's breaker is open."""
_AGAIN_OUTSIDE_S = 5.0
"""The same for a server outside of the fleet."""
_SETTLED_S = 0.05
"""Seconds after a broken connection until the owner of the process knows how it ended."""
_MAX_STRIKES = 1024
"""Limit of remembered bodies and kinds."""
_SMALL_BYTES = 1 << 18
"""A bigger body is identified by its length and both ends, and has no kind."""
_ORDINARY = frozenset(
    (
        *("cache_prompt", "frequency_penalty", "id_slot", "input", "max_completion_tokens", "max_output_tokens"),
        *("max_tokens", "messages", "metadata", "min_p", "model", "n", "n_predict", "presence_penalty", "prompt"),
        *("repeat_penalty", "return_progress", "seed", "stop", "store", "stream", "stream_options", "system"),
        *("temperature", "timings_per_token", "top_k", "top_p", "user"),
    )
)
"""Keys of nearly every request; they do not make a kind, because their effect depends on their values."""


class _FrontState(Protocol):
    """What is read of the front whose servers fail."""

    upstreams: Upstreams
    view: View


class RequestTraits(NamedTuple):
    """Digests that identify a request, and its kind."""

    body: bytes
    """Digest of its path and body without the model."""
    kind: bytes | None
    """Digest of its caller, its path and the names of its rarer keys; None: it has no such keys."""


class _Strike(msgspec.Struct):
    """What was there when a server ended: a body, or a kind of request."""

    points: int = 0
    """Two for each time that nothing else was there, one for each time that something was."""
    times: int = 0
    until: float = 0.0


class Faults:
    """Judges the failures of one front's servers."""

    def __init__(self, front: _FrontState) -> None:
        self.strikes: dict[bytes, _Strike] = {}
        self.guarded_until = 0.0
        """Until when some request may be refused (monotonic clock): only then must each be checked."""
        self._front = front
        self._suspects: dict[Target, list[RequestTraits]] = {}
        """By server whose health is being checked: the requests that failed."""
        self._failures: dict[Target, int] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}

    def failed(self, target: Target, error: UpstreamError, traits: RequestTraits | None) -> None:
        """Take in that `target` failed a request; `traits`: those of a request that may have crashed it."""
        is_busy = error.problem is not None and error.problem.code == "upstream_busy"
        if target.is_control or error.reason == "out_of_memory" or is_busy:
            target.abandoned()
            return
        target.pool.forget_idle()
        if error.reason in ("unreachable", "wrong_server", "refused"):
            target.failed(monotonic(), self._front.view.table.breaker)
            self._check_health(target)
            return
        self._failures[target] = self._failures.get(target, 0) + 1
        if traits is not None and error.reason == "died":
            self._suspects.setdefault(target, []).append(traits)
        self._check_health(target)

    def require_harmless(self, traits: RequestTraits) -> None:
        """Raise HttpError 422 for a request that crashed a server lately, or one of a kind that did so twice."""
        now = monotonic()
        for trait, held_from, what in ((traits.body, 2, "this request"), (traits.kind, 4, "requests of this kind")):
            strike = None if trait is None else self.strikes.get(trait)
            if strike is not None and strike.points >= held_from and now < strike.until:
                left = strike.until - now
                message = f"{what} ended a server: no further one is sent for {left:.0f} s"
                raise HttpError(422, "request_ended_server", message, retry_after_s=left)

    def reset(self) -> None:
        """Forget all evidence and close all breakers: servers and their settings may have changed."""
        self.strikes.clear()
        self.guarded_until = 0.0
        for target in self._front.view.targets.values():
            target.breaker = CLOSED

    def close(self) -> None:
        """Stop all health checks."""
        for task in self._tasks.values():
            task.cancel()

    def _check_health(self, target: Target) -> None:
        """Check the health of `target`, unless that is being done."""
        if target not in self._tasks and (target in self._failures or target.breaker.open_s):
            self._tasks[target] = asyncio.get_running_loop().create_task(self._judge(target))

    async def _judge(self, target: Target) -> None:
        """Check the health of `target` once after a failure, and as long as its breaker is open."""
        try:
            while target in self._failures or target.breaker.open_s:
                await self._look(target)
        finally:
            del self._tasks[target]

    async def _look(self, target: Target) -> None:
        """Ask once, and hold its failures against who is to blame."""
        failures, suspects = self._failures.pop(target, 0), self._suspects.pop(target, [])
        if await self._is_well(target):
            target.succeeded()
            return
        if suspects:
            await asyncio.sleep(_SETTLED_S)
        state = self._front.upstreams.state(target.name)
        # whoever stopped or killed it ended them, not they it
        if state not in ("stopped", "stopping") and not self._front.upstreams.ended_from_outside(target.name):
            self._accuse(suspects)
        for _ in range(failures):
            target.failed(monotonic(), self._front.view.table.breaker)
        if target.breaker.open_s:
            await asyncio.sleep(_AGAIN_S if target.outside is None else _AGAIN_OUTSIDE_S)
            if self._front.upstreams.state(target.name) not in SERVING:
                target.breaker = CLOSED  # it will prove itself before it serves

    async def _is_well(self, target: Target) -> bool:
        """Whether `target` answers its health path, and not with 503 (starting)."""
        timeout_s = self._front.view.table.front.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                connection = await target.pool.connect(timeout_s)
                try:
                    path = b"/health" if target.outside is None else target.outside.health
                    status, _ = await get(connection, target, path)
                finally:
                    connection.close()
        except (UpstreamError, TimeoutError):
            return False
        return status != 503 if target.outside is None else not target.outside.refuses_us(status)

    def _accuse(self, suspects: list[RequestTraits]) -> None:
        """Note evidence against requests that were being answered when a server crashed."""
        bodies, kinds = {traits.body for traits in suspects}, {traits.kind for traits in suspects}
        for body in bodies:
            self._strike(body, alone=len(bodies) == 1)
        for kind in kinds - {None}:
            self._strike(kind or b"", alone=len(kinds) == 1)
        while len(self.strikes) > _MAX_STRIKES:
            del self.strikes[next(iter(self.strikes))]

    def _strike(self, trait: bytes, *, alone: bool) -> None:
        unit, now = self._front.view.table.breaker, monotonic()
        strike = self.strikes.pop(trait, _Strike())
        if strike.until + unit.open_max_s < now:
            strike = _Strike()  # long ago
        self.strikes[trait] = strike
        strike.times += 1
        strike.points += 2 if alone else 1
        strike.until = now + min(unit.open_max_s, unit.open_s * 2 ** (strike.times - 1))
        self.guarded_until = max(self.guarded_until, strike.until)


def traits_of(caller: str, path: str, body: bytes) -> RequestTraits:
    """The digests that identify a request; bodies with the same rarer keys, such as `grammar`, are of one kind."""
    if len(body) > _SMALL_BYTES:
        body = b"%d" % len(body) + body[:_SMALL_BYTES] + body[-_SMALL_BYTES:]
    try:
        sent = msgspec.json.decode(body.removeprefix(BOM), type=dict[str, msgspec.Raw])
    except UNREADABLE:
        sent = {}
    rare = sorted(sent.keys() - _ORDINARY)
    kind = hashlib.sha256(msgspec.json.encode([caller, path, rare])).digest() if rare else None
    what = msgspec.json.encode({key: sent[key] for key in sorted(sent) if key != "model"}) if sent else body
    return RequestTraits(hashlib.sha256(path.encode() + b"\n" + what).digest(), kind)
