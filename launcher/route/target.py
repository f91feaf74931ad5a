"""One upstream server as the front sees it: slots, connections, breaker, counts; and which of several to ask. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from time import monotonic

import msgspec

from launcher.base.addresses import address_text, is_path
from launcher.base.regular import server_key
from launcher.errors import Finding, HostError
from launcher.ir.fleet import BreakerUnit, RouteTarget
from launcher.ir.live import ServerState
from launcher.route import breaker
from launcher.route.body import changes_bodies
from launcher.route.head import AnswerHead, RawHeaders
from launcher.route.outside import Outside, answer_lines
from launcher.route.problem import HttpError
from launcher.route.upstream import Pool

SERVING: frozenset[ServerState] = frozenset({"ready", "sleeping"})
"""States in which the process answers; a sleeping llama-server wakes itself."""
_SPARE_CONNECTIONS = 4
"""Idle connections kept beyond one per slot, for requests that take no slot."""
_TAIL_BYTES = 2048
NO_TOKENS = (0, 0)
"""For an answer that reports none."""
_PROMPT = re.compile(rb'"(?:prompt_n|prompt_tokens|input_tokens)":\s*(\d{1,12})')
_OUTPUT = re.compile(rb'"(?:predicted_n|completion_tokens|output_tokens)":\s*(\d{1,12})')
_RATE = re.compile(rb'"predicted_per_second":\s*(\d{1,12}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,2})?)')
r"""In a JSON string a quote is written `\\"`: text that looks like these keys never matches."""


class MovedError(Exception):
    """A request that waits for a slot can have one at another server now."""


class Waiter(msgspec.Struct, frozen=True, eq=False):
    """A request that waits for a slot, until `turn` is set. `others`: servers that may answer it as well."""

    turn: asyncio.Future[None]
    others: tuple[str, ...]
    priority: int
    first_from: float
    """From then on (loop time) it goes before all that came later, whatever their priority."""


class Gate:
    """Slots of one upstream. `acquire` and `release` pair up.

    Waiters are served by priority, those of equal priority in order of arrival. None starves: one that has waited half
    of its timeout goes before all that came later. A slot that nobody waits for here is offered to those that wait at
    `siblings`, if this server may answer them.
    """

    __slots__ = ("in_flight", "name", "siblings", "slots", "waiters")

    def __init__(self, slots: int, name: str = "") -> None:
        """At least one slot, of the server `name`."""
        self.slots = max(1, slots)
        self.name = name
        self.in_flight = 0
        self.siblings: tuple[Gate, ...] = ()
        self.waiters: list[Waiter] = []
        """In order of arrival."""

    @property
    def free(self) -> int:
        """Slots that nobody holds or waits for; negative when requests queue."""
        return self.slots - self.in_flight - len(self.waiters)

    def try_acquire(self) -> bool:
        """Take a slot now, if one is free and nobody waits."""
        if self.in_flight < self.slots and not self.waiters:
            self.in_flight += 1
            return True
        return False

    async def acquire(
        self, *, queue_size: int, timeout_s: float, others: tuple[str, ...] = (), priority: int = 0
    ) -> None:
        """Take a slot, waiting at most `timeout_s` among at most `queue_size` others.

        Raises HttpError 503 `queue_full` or `queue_timeout`; MovedError where one of `others`, servers that may answer
        as well, has a slot first. A cancelled waiter leaves the queue.
        """
        if self.try_acquire():
            return
        if len(self.waiters) >= queue_size:
            raise HttpError(503, "queue_full", f"{queue_size} requests are waiting already", retry_after_s=1)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        entry = Waiter(waiter, others, priority, loop.time() + timeout_s / 2)
        self.waiters.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                if waiter.exception() is None:
                    self.release()
            else:
                with contextlib.suppress(ValueError):  # _grant drops cancelled waiters too
                    self.waiters.remove(entry)
            if isinstance(error, TimeoutError):
                message = f"no slot became free within {timeout_s:g} s"
                raise HttpError(503, "queue_timeout", message, retry_after_s=1) from None
            raise

    def release(self) -> None:
        """Give a slot back; the first waiter gets it, else the first of a sibling."""
        self.in_flight -= 1
        if self.waiters:
            self._grant()
        elif self.siblings:
            self.take_over(1)

    def take_over(self, count: int) -> None:
        """Take up to `count` waiters over from siblings, if they may be answered here."""
        for sibling in self.siblings:
            count -= sibling.hand_off(self.name, count)

    def hand_off(self, name: str, count: int) -> int:
        """Let up to `count` waiters, the next ones first, move to the server `name`; returns how many moved."""
        able = [waiter for waiter in self.waiters if name in waiter.others and not waiter.turn.done()]
        going = ranked(able)[: max(0, count)]
        for waiter in going:
            self.waiters.remove(waiter)
            waiter.turn.set_exception(MovedError())
        return len(going)

    def resize(self, slots: int) -> None:
        """Change the number of slots; holders keep theirs."""
        self.slots = max(1, slots)
        self._grant()

    def _grant(self) -> None:
        """Give free slots to waiters."""
        while self.waiters and self.in_flight < self.slots:
            waiter = ranked(self.waiters)[0]
            self.waiters.remove(waiter)
            if not waiter.turn.done():
                self.in_flight += 1
                waiter.turn.set_result(None)


def ranked(waiters: list[Waiter]) -> list[Waiter]:
    """The waiters, the next first."""
    if len({waiter.priority for waiter in waiters}) <= 1:
        return waiters
    now = asyncio.get_running_loop().time()
    return sorted(waiters, key=lambda w: (w.first_from > now, 0 if w.first_from <= now else -w.priority))


class Tokens:
    """Token counts and speeds that one server's answers reported."""

    __slots__ = ("first_s", "generated", "per_second", "prompt")

    def __init__(self) -> None:
        self.prompt = 0
        self.generated = 0
        self.per_second: float | None = None
        self.first_s: float | None = None
        """Seconds from request to first part of the last streamed answer."""

    def read(self, before: bytes, last: bytes) -> tuple[int, int]:
        """Add what the last two parts of an answer report; returns its prompt and generated tokens."""
        tail = last if len(last) >= _TAIL_BYTES or not before else before[-_TAIL_BYTES:] + last
        usage, timings = tail.find(b'"usage"', -_TAIL_BYTES), tail.find(b'"timings"', -_TAIL_BYTES)
        if usage < 0 and timings < 0:
            return NO_TOKENS
        tail = tail[min(at for at in (usage, timings) if at >= 0) :]  # where its sums begin
        prompt, output = _number(_PROMPT, tail), _number(_OUTPUT, tail)
        self.prompt += prompt
        self.generated += output
        rate = _RATE.search(tail)
        if rate is not None:
            self.per_second = float(rate[1])
        return prompt, output


def _number(pattern: re.Pattern[bytes], tail: bytes) -> int:
    """The last match: an answer's own totals come after those of its parts."""
    numbers = pattern.findall(tail)
    return max(map(int, numbers), default=0)


class Target:
    """One upstream server, with what the front knows of it."""

    __slots__ = (
        "_answer_head",
        "address",
        "authority",
        "authorization",
        "breaker",
        "by_status",
        "changes_bodies",
        "gate",
        "is_control",
        "may_fail",
        "name",
        "outside",
        "passes_bodies",
        "pool",
        "seconds",
        "tokens",
        "unit",
    )

    def __init__(self, unit: RouteTarget) -> None:
        """No connection is made before a request comes."""
        self.name = unit.name
        self.is_control = False
        """It is the control API, no server: not listed, not counted."""
        self.authority = authority_of(unit.host, unit.port)
        self.address = (unit.host, unit.port)
        """From the routes; during a reload its process may listen elsewhere."""
        self.pool = Pool(unit.host, unit.port, max_idle=unit.slots + _SPARE_CONNECTIONS)
        self.outside: Outside | None = None
        """Set for an upstream that is no llama-server of this fleet."""
        if unit.outside is not None:
            self.outside = Outside(unit.name, unit.outside)
            self.authority, self.pool.tls = self.outside.authority, self.outside.tls
        self.gate = Gate(unit.slots, unit.name)
        self.breaker = breaker.CLOSED
        self.by_status: defaultdict[int, int] = defaultdict(int, {200: 0})
        """Requests sent to it, by status of the answer."""
        self.seconds = 0.0
        """Their durations added up, from arrival to last byte."""
        self.tokens = Tokens()
        self._answer_head: AnswerHead | None = None
        self.unit = unit
        self.authorization = own_key(unit)
        self.changes_bodies = changes_bodies(unit)
        self.passes_bodies = not self.changes_bodies and self.outside is None
        self.may_fail = self.outside is not None or unit.rungs > 0

    def update(self, unit: RouteTarget) -> None:
        """Take over a new entry. Requests go to a new address once a lease on it is granted."""
        self.unit = unit
        self.address = (unit.host, unit.port)
        self.authorization = own_key(unit)
        self.changes_bodies = changes_bodies(unit)
        self.passes_bodies = not self.changes_bodies and self.outside is None
        self.may_fail = self.outside is not None or unit.rungs > 0
        self.gate.resize(unit.slots)
        self.pool.max_idle = unit.slots + _SPARE_CONNECTIONS

    def move(self, address: tuple[str, int]) -> None:
        """Its process listens at `address` now; requests that wait for a slot keep waiting."""
        old, self.pool = self.pool, Pool(*address, max_idle=self.unit.slots + _SPARE_CONNECTIONS)
        self.pool.check, self.pool.tls = old.check, old.tls
        self.authority = authority_of(*address)
        self.breaker = breaker.CLOSED
        old.close()

    def answer_for(self, status: int, came: RawHeaders) -> AnswerHead:
        """The head for clients of an answer with these header lines; kept for the next answer."""
        if self.outside is not None:
            came = answer_lines(came)
        known = self._answer_head
        if known is None or known.came != came or known.status != status:
            known = self._answer_head = AnswerHead(status, came, b"" if self.is_control else self.name.encode())
        return known

    def begin(self) -> None:
        """A request is sent: an open breaker counts it as its probe."""
        if self.breaker is not breaker.CLOSED:
            self.breaker = breaker.on_start(self.breaker)

    def succeeded(self) -> None:
        """A request was answered: close the breaker."""
        self.breaker = breaker.CLOSED

    def failed(self, now: float, unit: BreakerUnit) -> None:
        """A request failed: count it in the breaker."""
        self.breaker = breaker.on_failure(self.breaker, now, unit)

    def abandoned(self) -> None:
        """A request was given up before its answer: let the breaker probe again."""
        self.breaker = breaker.on_abandon(self.breaker)


def authority_of(host: str, port: int) -> bytes:
    """The Host header's value for an address."""
    return b"localhost" if is_path(host) else address_text(host, port).encode()


def own_key(unit: RouteTarget) -> bytes:
    """The header line with the server's own API key; b"" where it needs none. Raises HostError."""
    if unit.api_key_file is None:
        return b""
    outside = unit.outside
    key = f"upstreams.{unit.name}.key_file" if outside is not None else f"servers.{unit.name}.extra_args"
    try:
        found = server_key(unit.name, unit.api_key_file)
    except (OSError, UnicodeDecodeError) as error:
        message = f"the key file {unit.api_key_file} of {unit.name!r} cannot be read: {error}"
        raise HostError(
            [Finding(code="route/key-file-unreadable", severity="error", key=key, message=message)]
        ) from None
    if not found:
        message = f"the key file {unit.api_key_file} of {unit.name!r} holds no key: the server would ask for none"
        raise HostError([Finding(code="route/key-file-empty", severity="error", key=key, message=message)])
    if outside is not None and outside.key_header != "authorization":
        return b"%b: %b\r\n" % (outside.key_header.encode(), found.encode())
    return b"authorization: Bearer %b\r\n" % found.encode()


def choose(
    targets: Iterable[Target],
    state_of: Callable[[str], ServerState],
    preferred: str | None = None,
    may_wake: bool = True,
) -> Target | None:
    """The serving target with most free slots (the first of equals), else one worth waiting for, else None.

    `preferred`, which has the prompt's beginning in its cache, wins while it has a free slot. `may_wake` False: none is
    waited for. The breaker of a server that is not serving is closed, because it will prove its readiness anew.
    """
    best: Target | None = None
    asleep: Target | None = None
    for target in targets:
        state = state_of(target.name)
        if state in SERVING:
            if target.breaker is not breaker.CLOSED and not breaker.admits(target.breaker, monotonic()):
                continue
            if target.name == preferred and target.gate.free > 0:
                return target
            if best is None or target.gate.free > best.gate.free:
                best = target
            continue
        target.breaker = breaker.CLOSED
        if asleep is None and may_wake and can_wake(state, target.unit):
            asleep = target
    return best or asleep


def can_wake(state: ServerState, unit: RouteTarget) -> bool:
    """Whether waiting may help: it is on its way up, is started on demand, or takes turns with others."""
    on_demand = unit.start == "demand" or unit.exclusive is not None
    return state in ("starting", "backoff") or (on_demand and state in ("stopped", "stopping"))


def why_none(targets: Collection[Target], state_of: Callable[[str], ServerState], now: float) -> HttpError:
    """The error when neither a name's servers nor its fallbacks can be asked."""
    states = {t.name: state_of(t.name) for t in targets}
    waits = [t.breaker.open_until - now for t in targets if states[t.name] in SERVING and t.breaker.open_s]
    if waits:
        message = f"server {next(iter(states))!r} failed repeatedly and is given a pause"
        return HttpError(503, "breaker_open", message, retry_after_s=max(1.0, min(waits)))
    shown = ", ".join(f"{name} is {state}" for name, state in states.items())
    code = "server_failed" if "failed" in states.values() else "server_stopped"
    return HttpError(503, code, f"no server can answer: {shown}", retry_after_s=5)


def control_target(path: Path) -> Target:
    """The control API as one more upstream. It is asked seldom: no connection is kept."""
    unit = RouteTarget(
        name="control",
        host=str(path),
        port=0,
        slots=1,
        n_ctx_per_slot=0,
        model="",
        roles=(),
        aliases=(),
        start="boot",
        exclusive=None,
        request_timeout_s=0,
        request_defaults={},
        embedding=False,
        modalities=(),
    )
    target = Target(unit)
    target.is_control = True
    target.authority = b"localhost"
    target.pool.max_idle = 0
    return target
