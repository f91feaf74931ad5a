"""All clients of one front: how many connections they may have, and how many bytes all of them together. I/O.

Nobody is refused while room can be made. A connection more than the limit ends an idle one, the one that has been so
for longest; a body that finds the memory taken is not read on before others have ended. Only then there is a refusal.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from launcher.ir.fleet import FrontUnit
from launcher.route.problem import HttpError
from launcher.route.sockets import descriptors
from launcher.route.spool import Spool, Spools

_TURN_S = 0.0005
"""How long requests that came at once on a connection are answered before others have their turn."""
_TURN_BYTES = 1 << 20
"""What is read of bodies before others have their turn: a millisecond. A loop reads 8 MB of one connection at once."""
_READ_BYTES = 64 * 1024
"""What is read at once. Four times that is usual, and would be held of each client that asks on and does not read."""
_UNREAD_BYTES = 336 * 1024
"""What a client that does not read has the front hold: 256 KiB of the server's answer, 16 KiB written to the client,
64 KiB of what it asks next."""
_LOOK_S = 5.0
_LEAST_BYTES = 64 * 1024
"""While others wait for memory, an upload that brings less than this in `_LOOK_S` is ended."""

_SPOOL_BYTES = 2 << 20
"""What all bodies together may take of memory before big ones go on in files."""

FULL = HttpError(
    503, "too_many_connections", "there are too many connections (max_connections)", retry_after_s=1, close=True
)


class Member(Protocol):
    """What is asked of a connection."""

    client: str
    """Whose it is, for the limit on connections of one client."""

    @property
    def transport(self) -> asyncio.Transport:
        """What ends when it is aborted."""

    @property
    def idle_since(self) -> float | None:
        """When its deadline passes, where it has no request; None: it has one."""

    @property
    def uploaded(self) -> int:
        """Counted bytes of the body that comes; 0: none comes."""

    def read_on(self) -> None:
        """There is room for what it sends."""

    def refuse_upload(self, error: HttpError) -> None:
        """There is none for its body."""

    def take_turn(self) -> bool:
        """Answer one more of the requests that came at once; whether there are more that can be answered now."""

    def abort(self) -> None:
        """Reset it."""


class Clients:
    """The connections of one front's clients, and what they share."""

    def __init__(self, unit: FrontUnit, handle: Callable[..., Any]) -> None:
        """`unit`: limits that hold now.

        `handle` makes a request's handler, of its connection, its head, and its body where that is here already.
        """
        self.unit = unit
        self.handle = handle
        self.buffer = memoryview(bytearray(_READ_BYTES))
        """Where each connection's next bytes go, to be taken out at once."""
        self.connections: set[Any] = set()
        self.none_left = asyncio.Event()
        """Set when the last connection ends while `stopping`."""
        self.stopping = False
        self.date = b""
        """The Date line of answers, or b""."""
        self.held = Held(self)
        self.refused: Counter[str] = Counter()
        """Connections and bodies that there was no room for, by the error's code."""
        self._of_client: Counter[str] = Counter()
        self._unread: dict[Member, None] = {}
        """Who does not read its answer, for longest first."""
        self._behind: dict[Member, None] = {}
        self._turning = False
        self._read_bytes = 0
        """Of bodies, since all were read on."""
        self._resting: list[Member] = []

    def stop(self) -> None:
        """Begin to drain: connections end with the answers under way, idle ones now."""
        self.stopping = True
        for connection in tuple(self.connections):
            connection.drain()
        if not self.connections:
            self.none_left.set()

    # --- how many ---------------------------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """Connections that there may be: as configured, and fewer than this process may have descriptors."""
        return min(self.unit.max_connections, descriptors())

    def admit(self, connection: Member) -> bool:
        """Whether there is a place for a new connection; an idle one goes where there was none."""
        client, own = connection.client, self.unit.max_connections_per_client
        if self._of_client[client] >= own:
            self._end_idle(c for c in self.connections if c.client == client)
        if len(self.connections) >= self.most:
            self._end_idle(self.connections)
        if self._of_client[client] >= own or len(self.connections) >= self.most:
            self.refused["too_many_connections"] += 1
            return False
        self.connections.add(connection)
        self._of_client[client] += 1
        return True

    def ended(self, connection: Member) -> None:
        """A connection is gone."""
        self.reads(connection)
        self.held.ended(connection)
        if connection in self.connections:
            self.connections.discard(connection)
            self._of_client[connection.client] -= 1
            if not self._of_client[connection.client]:
                del self._of_client[connection.client]
        if self.stopping and not self.connections:
            self.none_left.set()

    def _end_idle(self, connections: Iterable[Member]) -> None:
        """End some of those that have no request, whose deadline is nearest: heads that do not come go first."""
        idle = [(since, n, c) for n, c in enumerate(connections) if (since := c.idle_since) is not None]
        for _, _, connection in heapq.nsmallest(max(1, len(idle) // 32), idle):  # some: each look costs as much
            connection.transport.abort()  # somebody else needs its place
            self.ended(connection)

    # --- who waits for whom -----------------------------------------------------------------------------------

    def does_not_read(self, connection: Member) -> None:
        """What it is answered stays in memory; where that becomes too much, who has not read for longest goes."""
        self._unread[connection] = None
        if len(self._unread) * _UNREAD_BYTES > self.held.most:
            next(iter(self._unread)).abort()

    def reads(self, connection: Member) -> None:
        """It reads again, or is gone."""
        self._unread.pop(connection, None)

    def has_read_enough(self, connection: Member, count: int) -> bool:
        """`count` more bytes of a body were read: whether the rest has to wait until others had their turn."""
        self._read_bytes += count
        if self._read_bytes < _TURN_BYTES:
            return False
        if not self._resting:
            asyncio.get_running_loop().call_soon(self._rested)
        self._resting.append(connection)
        return True

    def _rested(self) -> None:
        self._read_bytes = 0
        resting, self._resting = self._resting, []
        for connection in resting:
            connection.read_on()

    def later(self, connection: Member) -> None:
        """Requests came at once: have `connection` answer the next ones in turn with others."""
        self._behind[connection] = None
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turns)

    def _turns(self) -> None:
        """Give turns for a while; then let the loop see to others."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TURN_S
        behind = self._behind
        while behind:
            connection = next(iter(behind))
            del behind[connection]
            if connection.take_turn():
                behind[connection] = None
            if loop.time() > until:
                break
        self._turning = bool(behind)
        if behind:
            loop.call_soon(self._turns)


class Held:
    """Bytes of request bodies, of all clients together. Beyond `_SPOOL_BYTES` big ones do not lie in memory.

    From half of the limit on bodies wait, all but one, so that some end; beyond the limit more are refused. Who sends
    next to nothing meanwhile is not waited for.
    """

    def __init__(self, clients: Clients) -> None:
        """Nothing is held."""
        self.incoming = 0
        """Of bodies that still come."""
        self.complete = 0
        """Of requests that are not answered yet."""
        self.waiting: dict[Member, float] = {}
        """Connections that are not read, and since when."""
        self.spools = Spools()
        self._clients = clients
        self._favoured: Member | None = None
        """May go on whatever there is."""
        self._before: dict[Member, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def most(self) -> int:
        """The limit: two of the biggest bodies at least."""
        unit = self._clients.unit
        return max(unit.max_held_bytes, 2 * unit.max_body_bytes)

    def came(self, count: int) -> None:
        """So many more of a body under way."""
        self.incoming += count

    def went(self, count: int) -> None:
        """So many of a body under way are dropped."""
        self.incoming -= count
        self._freed()

    def spool(self, data: bytearray) -> Spool | None:
        """See `launcher.route.reader`."""
        return self.spools.begin(data) if self.incoming + self.complete > _SPOOL_BYTES else None

    def kept(self, count: int, *, came: int = 0) -> None:
        """A request is whole, with so many bytes; `came` of them were counted as incoming."""
        self.incoming -= came
        self.complete += count

    def dropped(self, count: int) -> None:
        """The body of a whole request is not needed any more."""
        self.complete -= count
        self._freed()

    def ended(self, connection: Member) -> None:
        """Its upload is over: the body is whole, or will never be."""
        self.waiting.pop(connection, None)
        if self._favoured is connection:
            self._favoured = None
            self._freed()

    def admits(self, connection: Member) -> bool:
        """Whether to read more of its body now; else it is told when, or refused."""
        total, half = self.incoming + self.complete, self.most // 2
        if total <= half or connection is self._favoured:
            return True
        if self._favoured is None and self.complete <= half:
            self._favoured = connection
            return True
        if total > self.most:
            self._refuse(connection)
            return False
        loop = asyncio.get_running_loop()
        self.waiting[connection] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_S, self._look)
        return False

    def _freed(self) -> None:
        half = self.most // 2
        while self.waiting:
            if self.incoming + self.complete > half:
                if self._favoured is not None or self.complete > half:
                    return
                self._favoured = next(iter(self.waiting))
            connection = next(iter(self.waiting))
            del self.waiting[connection]
            connection.read_on()

    def _look(self) -> None:
        """While somebody waits: end what does not come, and waiting that lasts too long."""
        self._timer = None
        loop = asyncio.get_running_loop()
        if not self.waiting:
            self._before = {}
            return
        self._timer = loop.call_later(_LOOK_S, self._look)
        too_slow = HttpError(408, "request_timeout", "the body comes too slowly while others wait", close=True)
        before = self._before
        now = {c: c.uploaded for c in self._clients.connections if c.uploaded and c not in self.waiting}
        self._before = now
        for connection, count in now.items():
            if connection in before and count - before[connection] < _LEAST_BYTES:
                connection.refuse_upload(too_slow)
        long_ago = loop.time() - self._clients.unit.queue_timeout_s
        for connection in [c for c, since in self.waiting.items() if since <= long_ago]:
            self._refuse(connection)

    def _refuse(self, connection: Member) -> None:
        self._clients.refused["front_busy"] += 1
        message = "the bodies of other requests take the front's memory (max_held_bytes)"
        connection.refuse_upload(HttpError(503, "front_busy", message, retry_after_s=5, close=True))
