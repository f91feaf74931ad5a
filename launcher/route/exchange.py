"""One request, from its head to the last byte of its answer: admission, upstream, streaming, accounts, errors. I/O.

Callbacks do it all where nothing has to be waited for: a request that finds a free slot and an idle connection needs
no task; all else runs in `_pursue`, until the request is sent or refused. `_settle` gives back what an attempt held
and counts it, `_finish` ends the exchange; each happens once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from time import monotonic

from launcher.ir.live import Lease, UnavailableError
from launcher.route.body import BIG_BYTES, for_target
from launcher.route.breaker import CLOSED
from launcher.route.faults import Traits, traits_of
from launcher.route.media import WRITTEN
from launcher.route.oom import said_out_of_memory
from launcher.route.owners import Owner
from launcher.route.problem import HttpError, answered_otherwise, stopping
from launcher.route.reply import Reply
from launcher.route.services import Services
from launcher.route.signs import STREAMING, Signs, waits_for
from launcher.route.silence import LOOK, judged
from launcher.route.sticky import beginning, hashes
from launcher.route.tap import Tap
from launcher.route.target import MovedError, Target, choose, why_none
from launcher.route.upstream import Connection, UpstreamError
from launcher.route.view import Route

_LOG = logging.getLogger("launch.route")
LEFT = 499
"""Counted for a client that left; never sent."""


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Exchange(Reply):
    """One request and its answer. Implements `launcher.route.connection.Handler`."""

    services: Services[Exchange]
    asked: str = ""
    decision: str = ""  # why it goes where it goes, where an orchestrator said so
    target: Target | None = None  # the server that was asked last
    orchestration: asyncio.Task[None] | None = None  # somebody else who answers, see `hand_over`
    tap: Tap | None = None  # keeps what passes of the answer
    beginning: bytes | None = None
    media: frozenset[str] | None = None  # its prompt's beginning and media, where it was read elsewhere
    _route: Route | None = None
    _granted: str = ""
    _tier: int = 0
    _left: list[Target] = dataclasses.field(init=False)  # of this tier, not asked yet
    _failure: HttpError | None = None  # what is said when nobody is left to ask
    _chances: int = 0  # how often it was asked again after its server ran out of memory
    _signs: Signs | None = None  # what its client gets while it waits
    _lease: Lease | None = None
    _slot: bool = False
    _connection: Connection | None = None
    _fresh: bool = False
    _sent_at: float = 0.0
    _silence_s: float = math.inf
    _heard_at: float = 0.0
    _heard: bytes = b""
    """How long its server may say nothing; when it was last seen to have said something, and what was its last then."""
    _is_events: bool = False
    _has_new_id: bool = False  # its answer's first part names the completion, and somebody may have to find it
    _before: bytes = b""
    _last: bytes = b""  # the last two parts of the answer
    first_at: float = 0.0
    parts: int = 0
    tokens: tuple[int, int] = (0, 0)
    """When its first part came (monotonic; 0: not yet), events of a stream so far, tokens as it reported."""

    # --- the request ------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Its head has come, perhaps its body too, and it is its turn."""
        self.has_turn = True
        try:
            if self._refusal is not None:
                self.refuse(self._refusal)
                return
            if self.head.passes is not self.view or self.length is not None:
                self.services.open(self)
            if self.complete and not self.ended:
                self.services.dispatch(self)
        except Exception as error:  # noqa: BLE001  # a bug of ours must not leave a client without an answer
            self.failed(error)

    def received(self) -> None:
        """Its body has come."""
        try:
            self.services.dispatch(self)
        except Exception as error:  # noqa: BLE001  # as above
            self.failed(error)

    def start(self, route: Route, *, granted: str = "") -> None:
        """Send the request to a server of `route`, now or else when it can be. Raises HttpError.

        `granted` is the name that the caller's key must allow, where it is another.
        """
        self.asked = route.name
        self._granted = granted or route.name
        self._route = route
        self._left = list(route.tiers[0])
        if self.services.faults.is_on_guard and not self.is_question:
            self.services.faults.require_harmless(self._traits())
        if route.grows_above:
            self.services.grow(route)
        target = self._choose()
        lease = self.services.upstreams.try_lease(target.name)
        if lease is not None and self.head.takes_slot and not target.gate.try_acquire():
            lease.release(ok=False)
            lease = None
        connection = None
        if lease is not None:
            self._admitted(target, lease)
            if not self._is_read_elsewhere(target):
                body = self._changed(target)
                connection = target.pool.take()
        elif self._goes_elsewhere(route):
            return
        if connection is not None:
            self._send(connection, body)
        else:
            self.run(self._pursue, target, None)

    def start_at(self, target: Target) -> None:
        """Have `target`, which is no server of the table, answer."""
        self._admitted(target, Lease(target.name), math.inf)
        self.run(self._pursue, target, None)

    # --- admission --------------------------------------------------------------------------------------------

    def _choose(self) -> Target:
        """The next server to ask. Raises HttpError when nobody is left, or the caller's key does not allow it."""
        route, services, only_looks = self._route, self.services, self.head.only_looks
        assert route is not None  # noqa: S101  # `start` found it
        beginnings: list[int] = []
        if route.has_replicas:
            beginnings = hashes(beginning(self.body) if self.beginning is None else self.beginning)
        preferred = services.sticky.server(beginnings) if beginnings else None
        if route.has_replicas and self.head.conversation:
            preferred = services.conversations.server(self.head.conversation, self.head.grant.name) or preferred
        now = monotonic()  # the loop's clock
        while True:
            target = choose(self._left, services.upstreams.state, now, preferred, not only_looks)
            if target is not None:
                break
            self._tier += 1
            if only_looks or self._tier >= len(route.tiers):
                raise self._failure or why_none(route.tiers[0], services.upstreams.state, now)
            self._left = list(route.tiers[self._tier])
        self._left.remove(target)
        grant = self.head.grant
        if grant.models is not None and not grant.may_ask(self._granted, target.name):
            raise HttpError(403, "model_not_allowed", f"this API key may not ask {self.asked!r}", param="model")
        if beginnings:
            services.sticky.remember(beginnings, target.name)
        return target

    def _admitted(self, target: Target, lease: Lease, timeout_s: float | None = None) -> None:
        """`target` is asked from now on: a lease on it is held, and a slot where one is needed."""
        if timeout_s is None:
            assert self._route is not None  # noqa: S101  # `start` found it
            timeout_s = self._route.timeouts_s[target.name]
            self._slot = self.head.takes_slot
        self.target = target
        if (lease.port or target.unit.port) != target.pool.port:
            target.move(lease.port or target.unit.port)
        self._lease = lease
        self._fresh = False
        self._sent_at = self._heard_at = monotonic()
        self._silence_s = timeout_s
        if target.breaker is not CLOSED:
            target.begin()
        if self.head.conversation:
            self.services.conversations.remember(self.head.conversation, self._owner(target))
        self.client.answer_by(self._sent_at + timeout_s * LOOK)

    async def _admit(self, target: Target) -> None:
        """Wait for a lease on `target` and a slot of it. Raises UnavailableError, HttpError.

        Who queues for a slot holds no lease: a server that takes turns with others may have to go meanwhile. It is
        started again for who then has a slot.
        """
        assert self._route is not None  # noqa: S101  # `start` found it
        upstreams, front, gate = self.services.upstreams, self.view.table.front, target.gate
        timeout_s = self._route.timeouts_s[target.name]
        lease = upstreams.try_lease(target.name) or await upstreams.acquire(target.name, timeout_s)
        if self.head.takes_slot and not gate.try_acquire():
            lease.release(ok=False)
            if self._route.grows_above:  # those that came in the same moment wait by now, and count
                self.services.grow(self._route)
            others = tuple(t.name for t in self._left)
            await gate.acquire(queue_size=front.queue_size, timeout_s=front.queue_timeout_s, others=others)
            try:
                lease = upstreams.try_lease(target.name) or await upstreams.acquire(target.name, timeout_s)
            except BaseException:
                gate.release()
                raise
        self._admitted(target, lease)

    async def _pursue(self, target: Target, error: UpstreamError | None) -> None:
        """Send the request to `target`, and where that fails to others; after `error`, if it failed before."""
        every_s, services = self.view.table.front.ping_after_s, self.services
        may_stream = self._route is not None and self.head.kind in STREAMING and not self.is_question
        if self._signs is None and every_s > 0 and may_stream:
            self._signs = Signs(self, every_s, lambda t: waits_for(t, services.upstreams), services.reading)
        if self._signs is not None:
            self._signs.watch()
        try:
            await self._seek(target, error)
        finally:
            if self._signs is not None:
                self._signs.rest()

    async def _seek(self, target: Target, error: UpstreamError | None) -> None:
        """As `_pursue`."""
        while True:
            if error is not None:
                target, error = await self._after(target, error), None
            if self._signs is not None:
                self._signs.target = target
            try:
                is_admitted = self._lease is not None
                if not is_admitted:
                    await self._admit(target)
                big = self._is_read_elsewhere(target)
                reading = self.services.reading.for_target(self.body, target.unit, self.asked) if big else None
                body = await reading if reading is not None else self._changed(target)
                connection = None if is_admitted else target.pool.take()
                if connection is None:
                    self._fresh = True
                    connection = await target.pool.connect(self.view.table.front.connect_timeout_s)
            except UnavailableError as unavailable:
                code, message = unavailable.code, unavailable.message
                self._failure = HttpError(503, code, message, retry_after_s=unavailable.retry_after_s)
                target = self._choose()
            except UpstreamError as unreachable:
                error = unreachable
            except MovedError:
                self._left.append(target)
                target = self._choose()
            else:
                self._send(connection, body)
                return

    async def _after(self, target: Target, error: UpstreamError) -> Target:
        """Whom to ask after `target` failed the request before it answered anything. Raises HttpError for nobody.

        One that ran out of memory is asked again, at most once for each step that it can be started with less.
        """
        self._failure = self._settle_failure(error)
        if self._chances < target.unit.rungs and error.reason in ("died", "out_of_memory", "unreachable"):
            self._chances += 1
            said = str(error) if error.reason == "out_of_memory" else ""
            if await self.services.upstreams.retry_after_oom(target.name, self._sent_at, said):
                self._left.insert(0, target)
                return self._choose()
        if error.reason not in ("unreachable", "wrong_server") or target.is_control:
            raise self._failure
        return self._choose()

    def _is_read_elsewhere(self, target: Target) -> bool:
        """Whether the body is changed for `target`, and too big for that to be done here."""
        return target.changes_bodies and self.head.takes_slot and len(self.body) > BIG_BYTES

    def _changed(self, target: Target) -> bytes:
        """The body as `target` gets it. Raises HttpError."""
        is_changed = target.changes_bodies and self.head.takes_slot
        return for_target(self.body, target.unit, self.asked) if is_changed else self.body

    def _send(self, connection: Connection, body: bytes) -> None:
        """Send the whole request; `progress` is called from then on."""
        head, target = self.head, self.target
        assert target is not None  # noqa: S101  # it was admitted
        self._connection = connection
        lines = head.for_upstream(target.authority, self.id, target.authorization, len(body))
        connection.send(self, lines, body, head.method == "HEAD")

    # --- the answer -------------------------------------------------------------------------------------------

    def progress(self) -> None:
        """Pass on what has come, as far as the client takes it."""
        connection = self._connection
        if self.client.write_paused:
            return
        if connection is None:
            self.drained()
            return
        try:
            if not self.started and not self._begin_answer(connection):
                return
            data = connection.take() if connection.chunks else b""
            done = connection.complete
            self._pass_on(data, done)
            if done:
                target = self.target
                assert target is not None  # noqa: S101  # it answered
                if target.breaker is not CLOSED:
                    target.succeeded()
                self.tokens = target.tokens.read(self._before, self._last)
                self._settle(self.status, True, self.tokens)
                self._finish(self.status)
            elif connection.error is not None:
                self._failed_late(connection.error)
        except Exception as bug:  # noqa: BLE001  # as above
            self.failed(bug)

    def _pass_on(self, data: bytes, done: bool) -> None:
        """Give the client what has come, and note what is to be known of it."""
        if data:
            if self._has_new_id:
                self._learn_id(data)
            self._before, self._last = self._last, data
            self.first_at = self.first_at or monotonic()
            self.parts += data.count(b"\n\n") if self._is_events else 0
        self.client.write(data, done)
        if self.tap is not None:
            self.tap.add(data, done=done)

    def _learn_id(self, data: bytes) -> None:
        """Remember who has the completion whose first part this is."""
        if self.target is not None:
            self._has_new_id = False
            self.services.completions.learn(data, self._owner(self.target))

    def _begin_answer(self, connection: Connection) -> bool:
        """Begin the answer, unless more of it must be seen first, or it is none to pass on."""
        target = self.target
        assert target is not None  # noqa: S101  # it was sent
        if not connection.head_done:
            if connection.error is not None:
                self._failed_early(connection.error)
            return False
        head = target.answer_for(connection.status, connection.headers)
        if target.unit.rungs and (head.is_events or connection.status >= 500):
            complete = connection.complete
            said = said_out_of_memory(b"".join(connection.chunks), is_events=head.is_events, complete=complete)
            if said is None and connection.error is not None:
                self._failed_early(connection.error)
            elif said:
                self._failed_early(UpstreamError("out_of_memory", said))
            if said is None or said:
                return False
        if connection.status >= 400 and self._route is not None and self._goes_elsewhere(self._route):
            return False
        if self._has_begun:
            return self._go_on(connection, is_events=head.is_events)
        self._is_events = head.is_events
        self._has_new_id = head.is_events and self.head.takes_slot and len(self.view.targets) > 1
        length = None if head.is_events else connection.length
        self.started = True
        if self.held:
            self.drop_body()  # nobody else is asked now
        self.status = connection.status
        self.client.begin(self.status, b"".join((head.lines, self.id, b"\r\n", self.head.cors, self.more)), length)
        return True

    def _go_on(self, connection: Connection, *, is_events: bool) -> bool:
        """The header is out already, an event stream's: whether the server's answer is one, too."""
        if connection.status == 200 and is_events:
            self._is_events = self.started = True
            self._has_new_id = len(self.view.targets) > 1
            self.drop_body()
            return True
        if connection.complete or connection.error is not None:
            problem = answered_otherwise(connection.status, b"".join(connection.chunks))
            self._settle(problem.status)
            self.refuse(problem)
        return False

    @property
    def _has_begun(self) -> bool:
        """The header of a stream went out while it waited."""
        return self._signs is not None and self._signs.begun

    def refuse(self, problem: HttpError) -> None:
        """As any reply; where the header is out already, with an event."""
        if self._has_begun and not (self.started or self.ended):
            self.end_events(problem, at_boundary=True)
        else:
            Reply.refuse(self, problem)

    def _goes_elsewhere(self, route: Route) -> bool:
        """Send a chat with images or audio to a server that takes them. Raises HttpError where none is named."""
        is_read = route.lacks and self.head.kind in WRITTEN
        found = self.services.elsewhere(self, route) if is_read else None
        if found is None:
            return False
        self._abandon()
        self._tier = 0
        self.start(found, granted=self._granted)
        return True

    def _owner(self, target: Target) -> Owner:
        """`target`, which generates for this caller."""
        return Owner(target.name, self._granted or target.name, self.head.grant.name)

    # --- the end ----------------------------------------------------------------------------------------------

    def _failed_early(self, error: UpstreamError) -> None:
        """The upstream failed before a byte was answered: ask again where that is safe, else say so."""
        target, connection = self.target, self._connection
        assert target is not None  # noqa: S101  # it was asked
        if error.reason == "stale" and not self._fresh:
            self._connection = None
            if connection is not None:
                target.pool.put_back(connection)
            self.run(self._pursue, target, None)
        elif self._chances < target.unit.rungs and error.reason in ("died", "out_of_memory"):
            if connection is not None:
                connection.watcher = None  # what it still says is not passed on
            self.run(self._pursue, target, error)
        else:
            self.refuse(self._settle_failure(error))

    def _failed_late(self, error: UpstreamError) -> None:
        """The upstream died within its answer: a stream says why it ends, another answer is cut."""
        tail = (self._before + self._last)[-4:]
        problem = self._settle_failure(error)
        if not self._is_events or self.client.write_paused:
            self._cut(problem)
            return
        self.end_events(problem, at_boundary=not tail or tail.endswith((b"\n\n", b"\r\n\r\n")))

    def failed(self, error: BaseException) -> None:
        """Answer what went wrong: a refusal of the front, or a bug."""
        self._abandon()
        Reply.failed(self, error)  # not super(): a dataclass with slots is another class than the one written here

    def _settle_failure(self, error: UpstreamError) -> HttpError:
        """Account for a failure of the server; what a client is told of it."""
        target = self.target
        assert target is not None  # noqa: S101  # it was asked
        problem = error.as_http(target.name)
        # it may have ended the server, unless its answer had begun, or the server may be started with less
        innocent = self.started or target.unit.rungs or self.is_question
        self.services.faults.failed(target, error, None if innocent else self._traits())
        self._settle(problem.status, ok=False)
        return problem

    def _traits(self) -> Traits:
        return traits_of(f"{self.head.grant.name} {getattr(self.client, 'peer', '')}", self.head.path, self.body)

    def _abandon(self) -> None:
        """Account for an attempt that was given up for no fault of the server."""
        if self._lease is not None and self.target is not None:
            self.target.abandoned()
            self._settle(LEFT)

    def _settle(self, status: int, ok: bool = True, tokens: tuple[int, int] = (0, 0)) -> None:
        """Give back what this attempt held, and count it."""
        lease, target, connection = self._lease, self.target, self._connection
        if lease is None or target is None:
            return
        self._lease = self._connection = None
        self._before = self._last = self._heard = b""
        if connection is not None:
            target.pool.put_back(connection)
        if self._slot:
            self._slot = False
            target.gate.release()
        lease.release(ok=ok)
        if not target.is_control:
            seconds = monotonic() - self.began
            target.tally.add(status, seconds)
            if self.services.has_journal:
                self.services.note_attempt(self, status, seconds, tokens)

    # --- from outside -----------------------------------------------------------------------------------------

    def client_left(self) -> None:
        """Nobody waits for the answer: closing the upstream's connection cancels the generation."""
        if self.ended:
            return
        self.gone = True
        self._stop_waiting(UpstreamError("client_gone", "the client left"))
        if self.orchestration is not None:
            self.orchestration.cancel()
        self._abandon()
        self._finish(LEFT)

    def overdue(self) -> None:
        """See whether the server has said nothing for too long, or its answer taken too long in all."""
        target = self.target
        if self.ended or self._lease is None or target is None:
            return
        now = monotonic()
        if self._last is not self._heard:
            self._heard, self._heard_at = self._last, now
        verdict = judged(now, self._heard_at, self._silence_s, self._sent_at, target.unit.total_timeout_s)
        if isinstance(verdict, float):
            self.client.answer_by(verdict)
            return
        error = UpstreamError("timeout", verdict)
        self._stop_waiting(error)
        if self.started:
            self._failed_late(error)
        else:
            self._failed_early(error)

    @property
    def is_sent(self) -> bool:
        """A server works on it."""
        return self._connection is not None

    def stop(self) -> None:
        """The front's drain is over."""
        self._end(UpstreamError("stopping", "the front is stopping"), stopping())

    def cancel(self) -> None:
        """Somebody who looks after the fleet ends it: its slot is free again."""
        by_hand = HttpError(503, "request_cancelled", "this request was ended by hand")
        self._end(UpstreamError("stopping", str(by_hand)), by_hand)

    def _end(self, error: UpstreamError, problem: HttpError) -> None:
        """End it from outside."""
        if self.ended:
            return
        if self.orchestration is not None and self._lease is None and self._task is None:
            self.orchestration.cancel()  # it says itself how far it came
            return
        self._stop_waiting(error)
        self._abandon()
        self.refuse(problem)

    def _stop_waiting(self, error: UpstreamError) -> None:
        """Wait for nothing any more, and have the upstream see its client leave."""
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort(error)
