"""The client connections of one front: limits on their number, and on the bytes that they hold together. I/O.

Room is made before anything is refused: a connection beyond the limit closes the one that has been idle for longest; an
upload that finds the memory taken is paused until others have ended.
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
"""How long the pipelined requests of one connection are answered before other connections have a turn."""
_TURN_BYTES = 1 << 20
"""Body bytes read before other connections have a turn: about a millisecond. Without it the loop reads 8 MB of one
connection at once."""
_READ_BYTES = 64 * 1024
"""Bytes per read. Four times that is usual, and would be held for each client that sends requests and does not read
answers."""
_UNREAD_BYTES = 336 * 1024
"""Held for a client that does not read: 256 KiB of the server's answer, 16 KiB in its transport, 64 KiB of its next
requests."""
_LOOK_S = 5.0
_LEAST_BYTES = 64 * 1024
"""While other uploads wait for memory, one that brings less than this in `_LOOK_S` is refused."""

_SPOOL_BYTES = 2 << 20
"""Body bytes held in memory, of all requests together, above which big bodies go to files."""

FULL = HttpError(
    503, "too_many_connections", "there are too many connections (max_connections)", retry_after_s=1, close=True
)


class Member(Protocol):
    """A client connection, as `Clients` and `Held` see it."""

    client: str
    """Address whose number of connections is limited."""

    @property
    def transport(self) -> asyncio.Transport:
        """The transport; aborting it ends the connection."""

    @property
    def idle_since(self) -> float | None:
        """When the deadline of a connection without a request passes (loop time); None: it has a request."""

    @property
    def uploaded(self) -> int:
        """Counted bytes of the body that is arriving; 0: none is."""

    def read_on(self) -> None:
        """Resume reading: there is memory for the body."""

    def refuse_upload(self, error: HttpError) -> None:
        """Refuse the request whose body is arriving."""

    def take_turn(self) -> bool:
        """Answer one more pipelined request; returns whether another can be answered now."""

    def abort(self) -> None:
        """Reset the connection."""


class Clients:
    """All client connections of one front, and what they share."""

    def __init__(self, unit: FrontUnit, handle: Callable[..., Any]) -> None:
        """`unit` has the limits. `handle(connection, head, body=None)` makes the handler of a request."""
        self.unit = unit
        self.handle = handle
        self.buffer = memoryview(bytearray(_READ_BYTES))
        """Read buffer of all connections; each copies its bytes out at once."""
        self.connections: set[Any] = set()
        self.none_left = asyncio.Event()
        """Set when the last connection ends while `stopping`."""
        self.stopping = False
        self.date = b""
        """The Date header line of answers, or b""."""
        self.held = Held(self)
        self.refused: Counter[str] = Counter()
        """Refused connections and bodies, by error code."""
        self._of_client: Counter[str] = Counter()
        self._unread: dict[Member, None] = {}
        """Connections that do not read their answer, the longest paused first."""
        self._pipelining: dict[Member, None] = {}
        self._turning = False
        self._read_bytes = 0
        """Body bytes read since all connections had a turn."""
        self._paused_uploads: list[Member] = []

    def stop(self) -> None:
        """Begin to drain: busy connections end with the answers under way, idle ones now."""
        self.stopping = True
        for connection in tuple(self.connections):
            connection.drain()
        if not self.connections:
            self.none_left.set()

    # --- how many ---------------------------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """Connections allowed: `max_connections`, or fewer where this process may open fewer descriptors."""
        return min(self.unit.max_connections, descriptors())

    def admit(self, connection: Member) -> bool:
        """Whether a new connection is allowed; an idle one is closed where that makes room."""
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
        """Forget a connection that was closed."""
        self.reads_again(connection)
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

    def stopped_reading(self, connection: Member) -> None:
        """Its answer stays in memory; if all such answers take too much, the longest paused one is reset."""
        self._unread[connection] = None
        if len(self._unread) * _UNREAD_BYTES > self.held.most:
            next(iter(self._unread)).abort()

    def reads_again(self, connection: Member) -> None:
        """It reads again, or was closed."""
        self._unread.pop(connection, None)

    def has_read_enough(self, connection: Member, count: int) -> bool:
        """Count `count` more body bytes; returns whether the rest must wait for other connections' turns."""
        self._read_bytes += count
        if self._read_bytes < _TURN_BYTES:
            return False
        if not self._paused_uploads:
            asyncio.get_running_loop().call_soon(self._resume_uploads)
        self._paused_uploads.append(connection)
        return True

    def _resume_uploads(self) -> None:
        self._read_bytes = 0
        resting, self._paused_uploads = self._paused_uploads, []
        for connection in resting:
            connection.read_on()

    def take_turns_with_others(self, connection: Member) -> None:
        """Answer the pipelined requests of `connection` in turn with others."""
        self._pipelining[connection] = None
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._give_turns)

    def _give_turns(self) -> None:
        """Give turns for a while; then let the loop see to others."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TURN_S
        behind = self._pipelining
        while behind:
            connection = next(iter(behind))
            del behind[connection]
            if connection.take_turn():
                behind[connection] = None
            if loop.time() > until:
                break
        self._turning = bool(behind)
        if behind:
            loop.call_soon(self._give_turns)


class Held:
    """Bytes of request bodies, of all clients together. Beyond `_SPOOL_BYTES` big ones go to files.

    Above half of the limit all uploads but one pause, so that some complete; above the limit further ones are refused.
    Uploads that are next to stalled meanwhile are refused as well.
    """

    def __init__(self, clients: Clients) -> None:
        """Start at zero."""
        self.arriving = 0
        """Bytes of bodies that are still arriving."""
        self.complete = 0
        """Bytes of whole bodies whose requests are not answered yet."""
        self.waiting: dict[Member, float] = {}
        """Paused uploads, and since when (loop time)."""
        self.spools = Spools()
        self._clients = clients
        self._unpaused: Member | None = None
        """The one upload that is never paused."""
        self._before: dict[Member, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def most(self) -> int:
        """The limit: `max_held_bytes`, or two of the biggest bodies if that is more."""
        unit = self._clients.unit
        return max(unit.max_held_bytes, 2 * unit.max_body_bytes)

    def add_arriving(self, count: int) -> None:
        """Count bytes of a body that is arriving."""
        self.arriving += count

    def drop_arriving(self, count: int) -> None:
        """Uncount bytes of an arriving body that was dropped."""
        self.arriving -= count
        self._freed()

    def spool(self, data: bytearray) -> Spool | None:
        """A file that begins with `data` and takes the rest of its body; None while memory has room for it."""
        return self.spools.begin(data) if self.arriving + self.complete > _SPOOL_BYTES else None

    def add_whole(self, count: int, *, arrived: int = 0) -> None:
        """Count a whole body of `count` bytes, `arrived` of which were counted as arriving."""
        self.arriving -= arrived
        self.complete += count

    def drop_whole(self, count: int) -> None:
        """Uncount the body of a request that no longer needs it."""
        self.complete -= count
        self._freed()

    def ended(self, connection: Member) -> None:
        """The connection's upload is over: the body is whole, or will never be."""
        self.waiting.pop(connection, None)
        if self._unpaused is connection:
            self._unpaused = None
            self._freed()

    def admits(self, connection: Member) -> bool:
        """Whether to read on now; if not, `read_on` or `refuse_upload` is called later."""
        total, half = self.arriving + self.complete, self.most // 2
        if total <= half or connection is self._unpaused:
            return True
        if self._unpaused is None and self.complete <= half:
            self._unpaused = connection
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
            if self.arriving + self.complete > half:
                if self._unpaused is not None or self.complete > half:
                    return
                self._unpaused = next(iter(self.waiting))
            connection = next(iter(self.waiting))
            del self.waiting[connection]
            connection.read_on()

    def _look(self) -> None:
        """While uploads wait: refuse those that stall, and those that have waited too long."""
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
