"""One upstream server while the front runs: its slots, connections, breaker and figures; and which one to ask. I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from launcher.errors import Finding, HostError
from launcher.ir.fleet import BreakerUnit, RouteTarget
from launcher.ir.live import ServerState
from launcher.route import breaker
from launcher.route.body import changes_bodies
from launcher.route.gate import Gate
from launcher.route.tokens import Tokens
from launcher.route.upstream import Pool

if TYPE_CHECKING:
    from launcher.route.express import AnswerHead

SERVING: frozenset[ServerState] = frozenset({"ready", "sleeping"})
"""States in which the process answers; a sleeping llama-server wakes itself."""
_SPARE_CONNECTIONS = 4
"""Idle connections kept beyond one a slot, for requests that take none."""


class Tally:
    """Answered requests by status, and the seconds they took from arrival to last byte."""

    __slots__ = ("_others", "ok", "seconds")

    def __init__(self) -> None:
        """Nothing counted."""
        self.ok = 0
        """Those with status 200."""
        self._others: dict[int, int] = {}
        self.seconds = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count one. The lane does the same where it stands."""
        if status == 200:
            self.ok += 1
        else:
            self._others[status] = self._others.get(status, 0) + 1
        self.seconds += seconds

    @property
    def by_status(self) -> dict[int, int]:
        """How many there were of each status."""
        return {200: self.ok} | self._others


class Target:
    """One upstream server."""

    __slots__ = (
        "answer_head",
        "authority",
        "authorization",
        "breaker",
        "changes_bodies",
        "gate",
        "header",
        "name",
        "pool",
        "tally",
        "tokens",
        "unit",
    )

    def __init__(self, unit: RouteTarget) -> None:
        """Nothing is connected until a request comes."""
        host = f"[{unit.host}]" if ":" in unit.host else unit.host
        self.name = unit.name
        self.header = unit.name.encode()
        self.authority = f"{host}:{unit.port}".encode()
        self.pool = Pool(unit.host, unit.port, max_idle=unit.slots + _SPARE_CONNECTIONS)
        self.gate = Gate(unit.slots)
        self.breaker = breaker.CLOSED
        self.tally = Tally()
        self.tokens = Tokens()
        self.answer_head: AnswerHead | None = None
        self.unit = unit
        self.authorization = own_key(unit)
        self.changes_bodies = changes_bodies(unit)

    def update(self, unit: RouteTarget) -> None:
        """Take over a new entry for the same address."""
        self.unit = unit
        self.authorization = own_key(unit)
        self.changes_bodies = changes_bodies(unit)
        self.gate.resize(unit.slots)
        self.pool.max_idle = unit.slots + _SPARE_CONNECTIONS

    def same_address(self, unit: RouteTarget) -> bool:
        """Whether `unit` is served by the same host and port."""
        return (self.unit.host, self.unit.port) == (unit.host, unit.port)

    def begin(self) -> None:
        """A request goes to this server."""
        self.breaker = breaker.on_start(self.breaker)

    def succeeded(self) -> None:
        """It answered."""
        self.breaker = breaker.on_success(self.breaker)

    def failed(self, now: float, unit: BreakerUnit) -> None:
        """It did not; its idle connections are not to be trusted either."""
        self.breaker = breaker.on_failure(self.breaker, now, unit)
        self.pool.forget_idle()

    def abandoned(self) -> None:
        """The client left first."""
        self.breaker = breaker.on_abandon(self.breaker)


def own_key(unit: RouteTarget) -> bytes:
    """The header line that this server asks the front for; b"" when it asks for none. Raises HostError."""
    if unit.api_key_file is None:
        return b""
    try:
        lines = _key_file(unit.name, unit.api_key_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"the key file {unit.api_key_file} of server {unit.name!r} cannot be read: {error}"
        key = f"servers.{unit.name}.extra_args"
        raise HostError(
            [Finding(code="route/key-file-unreadable", severity="error", key=key, message=message)]
        ) from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        message = (
            f"the key file {unit.api_key_file} of server {unit.name!r} holds no key: the server would ask for none"
        )
        key = f"servers.{unit.name}.extra_args"
        raise HostError([Finding(code="route/key-file-empty", severity="error", key=key, message=message)])
    return b"authorization: Bearer %b\r\n" % keys[0].encode()


def _key_file(server: str, path: str) -> Path:
    """The key file at `path`, or the copy that systemd made of it for this process, because it may be root's alone."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    copy = Path(directory, f"key-{server}") if directory else None
    return copy if copy is not None and copy.exists() else Path(path)


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The server to ask, and whether it must be woken first."""

    target: Target
    asleep: bool = False


def choose(
    targets: Iterable[Target], state_of: Callable[[str], ServerState], now: float, preferred: str | None = None
) -> Choice | None:
    """The serving target with most free slots (the first of equals), else one that can be waited for, else None.

    `preferred` is taken before others while it has a free slot: it has the prompt's beginning in its cache.

    A server that is not serving will prove its readiness anew, so its breaker is closed.
    """
    best: Target | None = None
    asleep: Target | None = None
    for target in targets:
        state = state_of(target.name)
        if state in SERVING:
            if not breaker.admits(target.breaker, now):
                continue
            if target.name == preferred and target.gate.free > 0:
                return Choice(target)
            if best is None or target.gate.free > best.gate.free:
                best = target
            continue
        target.breaker = breaker.CLOSED
        if asleep is None and can_wake(state, target.unit):
            asleep = target
    if best is not None:
        return Choice(best)
    return None if asleep is None else Choice(asleep, asleep=True)


def can_wake(state: ServerState, unit: RouteTarget) -> bool:
    """Whether waiting may help: it is on its way up, or it is started on demand or takes turns with others."""
    on_demand = unit.start == "demand" or unit.exclusive is not None
    return state in ("starting", "backoff") or (on_demand and state in ("stopped", "stopping"))
