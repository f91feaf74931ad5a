"""How a request gets to a server: which one is asked, what is held for it, and what each attempt results in. I/O.

Callbacks do everything while nothing has to be waited for: a request that finds a free slot and an idle connection
needs no task. Anything else runs in `_pursue`, until the request is sent or refused. `_settle` gives back what an
attempt held, and counts it.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

from launcher.ir.live import Lease, UnavailableError
from launcher.route.body import BIG_BYTES, for_target
from launcher.route.breaker import CLOSED
from launcher.route.faults import RequestTraits, traits_of
from launcher.route.media import TEXT_KINDS
from launcher.route.outside import Outside, body_for, is_form
from launcher.route.owners import Owner
from launcher.route.pings import STREAMING, Pings, waits_for
from launcher.route.problem import HttpError, may_be_escalated
from launcher.route.reply import Reply
from launcher.route.services import Services
from launcher.route.sticky import beginning, prefix_hashes
from launcher.route.target import NO_TOKENS, MovedError, Target, choose, why_none
from launcher.route.timeouts import LOOK_SHARE
from launcher.route.upstream import Connection, UpstreamError
from launcher.route.view import Route

LEFT = 499
"""Status noted for a client that disconnected (nginx's); never sent."""


class Attempt(Reply):
    """A request until it is sent; `Exchange` adds its answer."""

    __slots__ = (
        "_before",
        "_connection",
        "_heard_at",
        "_last",
        "_lease",
        "_route",
        "_sent_at",
        "_slot",
        "asked",
        "named",
        "target",
    )
    services: Services[Any]
    named: str
    """The model name in the request, as its client wrote it."""
    asked: str
    target: Target | None
    """The server asked last."""
    decision = ""
    """Why an orchestrator chose this server; "" without one."""
    beginning: bytes | None = None
    media: frozenset[str] | None = None
    """Beginning and media of a big prompt, read by the worker process."""
    _route: Route | None
    _granted = ""
    """The name that the caller's key must allow, where it is not the one asked."""
    _untried: tuple[Target, ...] = ()
    """Servers of the present tier that were not asked yet."""
    _tier = 0
    _failure: HttpError | None = None
    """The answer when no server is left to ask."""
    _stronger: tuple[str, ...] | None = None
    """Servers that may still answer what is refused; None: those of its first route."""
    _oom_retries = 0
    """Retries after its server ran out of memory."""
    _pings: Pings | None = None
    """Sends comments to a streaming client while its request waits."""
    _lease: Lease | None
    _slot: bool
    _connection: Connection | None
    _fresh = False
    """Its connection was made for it, not taken from the pool."""
    _sent_at: float
    _heard_at: float
    """When its server was asked, and when the last byte came from it (monotonic clock)."""
    _before: bytes
    _last: bytes
    """The last two parts of the answer."""

    def progress(self) -> None:
        """Called by the connection: a part of the answer came, or will not come."""
        raise NotImplementedError

    def start(self, route: Route, *, granted: str = "") -> None:
        """Send the request to a server of `route`, now or when one is available. Raises HttpError.

        `granted`: the name that the caller's key must allow, where it is another.
        """
        self.asked = route.name
        self._route = route
        if granted:
            self._granted = granted
        services = self.services
        if services.faults.guarded_until:
            self._require_harmless()
        if route.grows_above:
            services.grow(route)
        target, lease = self._first_target(route)
        if lease is None:
            if not self._reroutes(route):
                self.run(self._pursue, target, None)
            return
        self._ask_target(target, lease, route.timeouts_s[target.name])
        connection, body = None, self.body
        if target.passes_bodies:
            connection = target.pool.take()
        elif not self._needs_worker(target):
            body = self._changed(target)
            connection = target.pool.take()
        if connection is None:
            self.run(self._pursue, target, None)
        else:
            self._send(connection, body)

    def _first_target(self, route: Route) -> tuple[Target, Lease | None]:
        """The server to ask first and a lease with a slot on it; None: to be waited for. Raises HttpError."""
        target, lease, upstreams = route.only_target, None, self.services.upstreams
        if target is not None and target.breaker is CLOSED and self.head.grant.models is None:
            lease = upstreams.try_lease(target.name)  # there is nothing to choose
        if target is None or lease is None:
            self._untried = route.tiers[0]
            target = self._choose()
            lease = upstreams.try_lease(target.name)
        if lease is not None and self.head.takes_slot and not target.gate.try_acquire():
            lease.release(ok=False)
            lease = None
        return target, lease

    def _require_harmless(self) -> None:
        """Raises HttpError for a request like those that crashed servers."""
        faults = self.services.faults
        if monotonic() < faults.guarded_until and not self.is_question:
            faults.require_harmless(self._traits())

    def start_at(self, target: Target) -> None:
        """Send the request to `target`, which is no server of the table."""
        self._ask_target(target, Lease(target.name), math.inf)
        self._slot = False
        self.run(self._pursue, target, None)

    def _reroutes(self, route: Route) -> bool:
        """Send a chat with images or audio to a server that accepts them. Raises HttpError if there is none."""
        is_read = route.lacks and self.head.kind in TEXT_KINDS
        found = self.services.route_for_media(self, route) if is_read else None
        if found is None:
            return False
        self._abandon()
        self._start_anew(found)
        return True

    def _escalates(self, connection: Connection) -> bool:
        """Send what this server refused to a stronger one, if the routing names one. Raises HttpError."""
        route, target = self._route, self.target
        if self._stronger is None:
            self._stronger = route.stronger if route is not None and self.head.kind in STREAMING else ()
        if not self._stronger or target is None or not may_be_escalated(connection.status, b"".join(connection.chunks)):
            return False
        name, self._stronger = self._stronger[0], self._stronger[1:]
        found = self.view.routes[name]
        if choose(found.tiers[0], self.services.upstreams.state) is None:
            return False
        if target.breaker is not CLOSED:
            target.succeeded()
        self._settle(connection.status)
        self.escalated(target.name, name, "refused")
        self._start_anew(found)
        return True

    def _start_anew(self, route: Route) -> None:
        """Send the request by another route. Raises HttpError."""
        self._tier, self._untried, self._fresh = 0, (), False
        self.start(route, granted=self._granted or self.asked)

    def escalated(self, server: str, to: str, why: str) -> None:
        """Record that `to` answers in place of `server`: in metrics, journal, and headers not yet sent."""
        self.services.escalations[server, to, why] += 1
        step = f"escalation={server}>{to}; why={why}"
        self.decision = f"{self.decision}; {step}" if self.decision else step
        self.extra_lines += b"x-launch-escalation: from=%b; to=%b; why=%b\r\n" % tuple(
            map(str.encode, (server, to, why))
        )

    # --- admission --------------------------------------------------------------------------------------------

    def _choose(self) -> Target:
        """The next server to ask. Raises HttpError if none is left, or the caller's key does not allow it."""
        route, services, is_safe = self._route, self.services, self.head.is_safe
        assert route is not None  # noqa: S101  # `start` found it
        beginnings: list[int] = []
        if route.has_replicas:
            beginnings = prefix_hashes(beginning(self.body) if self.beginning is None else self.beginning)
        preferred = services.sticky.server(beginnings) if beginnings else None
        if route.has_replicas and self.head.conversation:
            preferred = services.conversations.server(self.head.conversation, self.head.grant.name) or preferred
        while True:
            target = choose(self._untried, services.upstreams.state, preferred, not is_safe)
            if target is not None and (target.outside is None or self._is_offered(target.outside)):
                break
            if target is not None:
                self._untried = without(self._untried, target)
                continue
            self._tier += 1
            if is_safe or self._tier >= len(route.tiers):
                raise self._failure or why_none(route.tiers[0], services.upstreams.state, monotonic())
            self._untried = route.tiers[self._tier]
        self._untried = without(self._untried, target)
        grant = self.head.grant
        if grant.models is not None and not grant.may_ask(self._granted or self.asked, target.name):
            raise HttpError(403, "model_not_allowed", f"this API key may not ask {self.asked!r}", param="model")
        if beginnings:
            services.sticky.remember(beginnings, target.name)
        return target

    def _is_offered(self, outside: Outside) -> bool:
        """Whether an outside server may be asked; if not, its refusal is kept as the answer of last resort."""
        refusal = outside.refusal(self.head)
        self._failure = self._failure or refusal
        return refusal is None

    def _ask_target(self, target: Target, lease: Lease, timeout_s: float) -> None:
        """Ask `target`: a lease on it is held, and a slot where one is needed."""
        self.target = target
        self._lease = lease
        self._slot = self.head.takes_slot
        if (lease.address or target.address) != target.pool.address:
            target.move(lease.address or target.address)
        if target.breaker is not CLOSED:
            target.begin()
        if self.head.conversation:
            self.services.conversations.remember(self.head.conversation, self._owner(target))
        now = self._sent_at = self._heard_at = monotonic()
        self.client.set_answer_deadline(now + timeout_s * LOOK_SHARE)

    async def _admit(self, target: Target) -> None:
        """Wait for a lease on `target` and one of its slots. Raises UnavailableError, HttpError.

        A request that queues for a slot holds no lease: a server that takes turns with others may have to stop
        meanwhile. Once the request has a slot, the server is started again.
        """
        assert self._route is not None  # noqa: S101  # `start` found it
        upstreams, front, gate = self.services.upstreams, self.view.table.front, target.gate
        timeout_s = self._route.timeouts_s[target.name]
        lease = upstreams.try_lease(target.name) or await upstreams.acquire(target.name, timeout_s)
        if self.head.takes_slot and not gate.try_acquire():
            lease.release(ok=False)
            if self._route.grows_above:
                self.services.grow(self._route)  # of a burst each is counted when it waits
            await gate.acquire(
                queue_size=front.queue_size,
                timeout_s=front.queue_timeout_s,
                others=tuple(t.name for t in self._untried),
                priority=self.head.grant.priority,
            )
            try:
                lease = upstreams.try_lease(target.name) or await upstreams.acquire(target.name, timeout_s)
            except BaseException:
                gate.release()
                raise
        self._ask_target(target, lease, timeout_s)

    async def _pursue(self, target: Target, error: UpstreamError | None) -> None:
        """Send the request to `target`, or to others if that fails. `error`: it has failed already."""
        every_s, services = self.view.table.front.ping_after_s, self.services
        may_stream = self._route is not None and self.head.kind in STREAMING and not self.is_question
        if self._pings is None and every_s > 0 and may_stream:
            self._pings = Pings(self, every_s, lambda t: waits_for(t, services.upstreams), services.body_reader)
        if self._pings is not None:
            self._pings.watch()
        try:
            await self._seek(target, error)
        finally:
            if self._pings is not None:
                self._pings.stop()
                if self.ended or not self._pings.begun:
                    self._pings = None  # a circle with this

    async def _seek(self, target: Target, error: UpstreamError | None) -> None:
        while True:
            if error is not None:
                target, error = await self._after(target, error), None
            if self._pings is not None:
                self._pings.target = target
            try:
                is_admitted = self._lease is not None
                if not is_admitted:
                    await self._admit(target)
                big = self._needs_worker(target)
                changed = self.services.body_reader.for_target(self.body, target.unit, self.asked) if big else None
                body = await changed if changed is not None else self._changed(target)
                connection = None if is_admitted else target.pool.take()
                self._fresh = connection is None
                if connection is None:
                    connection = await target.pool.connect(self.view.table.front.connect_timeout_s)
            except UnavailableError as unavailable:
                code, message = unavailable.code, unavailable.message
                self._failure = HttpError(503, code, message, retry_after_s=unavailable.retry_after_s)
                target = self._choose()
            except UpstreamError as unreachable:
                error = unreachable
            except MovedError:
                self._untried = (*self._untried, target)
                target = self._choose()
            else:
                self._send(connection, body)
                return

    async def _after(self, target: Target, error: UpstreamError) -> Target:
        """The server to ask after `target` failed before its answer began. Raises HttpError if there is none.

        A server that ran out of memory is asked again, at most once for each step by which it can be reduced.
        """
        since = 0.0 if self._lease is None else self._lease.granted_at
        self._failure = self._settle_failure(error)
        if self._oom_retries < target.unit.rungs and error.reason in ("died", "out_of_memory", "unreachable"):
            self._oom_retries += 1
            error_text = str(error) if error.reason == "out_of_memory" else ""
            if await self.services.upstreams.retry_after_oom(target.name, since, error_text):
                self._untried = (target, *self._untried)
                return self._choose()
        if error.reason not in ("unreachable", "wrong_server", "refused") or target.is_control:
            raise self._failure
        return self._choose()

    def _needs_worker(self, target: Target) -> bool:
        """Whether the body must be changed for `target` and is too big to do that in this process."""
        is_changed_here = target.outside is not None and is_form(self.head.content_type)
        return target.changes_bodies and self.head.takes_slot and len(self.body) > BIG_BYTES and not is_changed_here

    def _changed(self, target: Target) -> bytes:
        """The body as `target` gets it. Raises HttpError."""
        is_changed = target.changes_bodies and self.head.takes_slot
        if target.outside is not None:
            return body_for(self.body, target.unit, self.asked, self.head.content_type)
        return for_target(self.body, target.unit, self.asked) if is_changed else self.body

    def _send(self, connection: Connection, body: bytes) -> None:
        """Send the whole request; `progress` is called from then on."""
        head, target = self.head, self.target
        assert target is not None  # noqa: S101  # it was admitted
        self._connection = connection
        if target.outside is None:
            lines = head.for_upstream(target.authority, self.id, target.authorization, len(body))
        else:
            lines = target.outside.head_for(head, self.id, target.authorization, len(body))
        connection.send(self, lines, body, head.method == "HEAD")

    @property
    def is_sent(self) -> bool:
        """Whether a server works on it."""
        return self._connection is not None

    def _owner(self, target: Target) -> Owner:
        return Owner(target.name, self._granted or self.asked or target.name, self.head.grant.name)

    # --- what it comes to -------------------------------------------------------------------------------------

    def _settle_failure(self, error: UpstreamError) -> HttpError:
        """Account for a failure of the server; returns what the client is told."""
        target = self.target
        assert target is not None  # noqa: S101  # it was asked
        problem = error.as_http(target.name)
        # it may have ended the server, unless its answer had begun, or the server may be started with less
        innocent = self.started or target.unit.rungs or self.is_question
        self.services.faults.failed(target, error, None if innocent else self._traits())
        self._settle(problem.status, ok=False)
        return problem

    def _traits(self) -> RequestTraits:
        return traits_of(f"{self.head.grant.name} {self.client.peer}", self.head.path, self.body)

    def _abandon(self) -> None:
        """Account for an attempt given up through no fault of the server."""
        if self._lease is not None and self.target is not None:
            self.target.abandoned()
            self._settle(LEFT)

    def _settle(self, status: int, ok: bool = True, tokens: tuple[int, int] = NO_TOKENS) -> None:
        """Give back what this attempt held, and count it."""
        lease, target = self._lease, self.target
        if lease is None or target is None:
            return
        if self._connection is not None:
            target.pool.put_back(self._connection)
        if self._slot:
            self._slot = False
            target.gate.release()
        self._lease = self._connection = None
        lease.release(ok=ok)
        if not target.is_control:
            seconds = monotonic() - self.began
            target.by_status[status] += 1
            target.seconds += seconds
            if self.services.has_journal:
                self.services.note_attempt(self, status, seconds, tokens)


def without(targets: tuple[Target, ...], target: Target) -> tuple[Target, ...]:
    """`targets` without `target`."""
    return tuple(t for t in targets if t is not target)
