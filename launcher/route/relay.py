"""A question of a client's whose answer is passed on in another form, part by part, as fast as it is taken. I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from launcher.route.exchange import Exchange
from launcher.route.problem import HttpError
from launcher.route.question import Collector, Question, asked_by
from launcher.route.services import Services
from launcher.route.view import Route

_HELD_BYTES = 64 * 1024


class Relay(Collector):
    """A client that is read in parts."""

    def __init__(self, peer: str) -> None:
        """`peer`: the address of whose request it is."""
        super().__init__(peer)
        self.more = asyncio.Event()
        self._held = 0

    def write(self, data: bytes, done: bool) -> None:
        """Keep the part, and have no more come where there is much."""
        super().write(data, done)
        self._held += len(data)
        self.write_paused = self._held > _HELD_BYTES
        self.more.set()

    def answered(self) -> None:
        """There is no more."""
        super().answered()
        self.more.set()

    def taken(self) -> bytes:
        """What came since."""
        data = b"".join(self.parts)
        self.parts.clear()
        self._held = 0
        self.more.clear()
        return data


async def relayed(
    services: Services[Exchange], exchange: Exchange, route: Route, question: Question
) -> AsyncIterator[tuple[int, bytes]]:
    """The status and the parts of what a server of `route` answers to `question`, for the client of `exchange`.

    It counts as that client's request. Raises HttpError.
    """
    relay = Relay(exchange.client.peer)
    inner = asked_by(services, relay, question)
    inner.head.purpose = "forward"
    inner.start(route)
    try:
        while True:
            await relay.more.wait()
            over, was_paused, data = relay.ended.done(), relay.write_paused, relay.taken()
            if relay.refusal is not None:
                raise HttpError(
                    relay.refusal.status,
                    relay.refusal.code,
                    relay.refusal.message,
                    retry_after_s=relay.refusal.retry_after_s,
                )
            if data:
                yield relay.status, data
            if over:
                return
            if was_paused:
                relay.write_paused = False
                inner.progress()
    finally:
        inner.client_left()
        exchange.tokens = inner.tokens  # they are this client's
