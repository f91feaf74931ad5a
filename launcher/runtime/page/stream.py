"""The stream `/v1/launch/events`: every change of the fleet as server-sent events, while it is read. I/O.

`event: event` is a Record, with its number as `id`: a reader that reconnects with `Last-Event-ID` gets those that it
missed. The others are states, sent whole at first and then where they changed: `status` (the fleet), `processes` (those
that changed), `requests` (those that run or wait now, and those that ended since). Without readers nothing is polled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from launcher.ir.events import Record
from launcher.ir.live import FleetStatus, ProcessStatus

if TYPE_CHECKING:
    from launcher.runtime.paging import Pages


LOOK_S = 0.5
"""Seconds between two looks at the fleet."""
_APART_S = 0.2
"""Least seconds between two looks, however many events arrive: a look at fifty servers costs more than an event."""
_ALIVE_S = 15.0
"""Seconds of silence after which the stream gets a comment."""


async def stream(host: Pages, after: int | None) -> AsyncIterator[bytes]:
    """The bytes of the stream; `after`: the number of the last event that the reader has."""
    changed = asyncio.Event()
    end = host.listen(lambda _: changed.set())
    loop = asyncio.get_running_loop()
    try:
        yield b"retry: 1000\n\n"
        if after and not host.events(after - 1):
            after = 0  # a number of another log: its clock was ahead of ours, or our store was lost
        state = _State()
        last = after or 0
        for record in host.events(last):
            last = record.id
            yield _event(record)
        said_at, looked_at = loop.time(), -_APART_S
        while True:
            wait_s = looked_at + _APART_S - loop.time()
            parts: list[bytes] = []
            if wait_s <= 0:
                parts, looked_at, wait_s = state.changes(host), loop.time(), LOOK_S
            if not parts and loop.time() - said_at > _ALIVE_S:
                parts.append(b": alive\n\n")
            if parts:
                said_at = loop.time()
                yield b"".join(parts)
            try:
                async with asyncio.timeout(wait_s):
                    await changed.wait()
            except TimeoutError:
                continue
            changed.clear()
            for record in host.events(last):
                last = record.id
                yield _event(record)
    finally:
        end()


class _State:
    """The state last sent to one reader."""

    def __init__(self) -> None:
        self._fleet: FleetStatus | None = None
        self._processes: dict[str, ProcessStatus] = {}
        self._requests: list[Any] | None = None
        self._ended = 0

    def changes(self, host: Pages) -> list[bytes]:
        """The changes since the last call, as events of the stream."""
        parts: list[bytes] = []
        status = host.status()
        processes = {process.name: process for process in status.processes}
        bare = msgspec.structs.replace(status, processes=())
        if bare != self._fleet or processes.keys() != self._processes.keys():
            parts.append(_part("status", status))
        else:
            changed = [p for name, p in processes.items() if p != self._processes[name]]
            if changed:
                parts.append(_part("processes", changed))
        self._fleet, self._processes = bare, processes
        running, ended = host.running(), host.ended(self._ended)
        if running or ended or self._requests is None or self._requests != running:
            self._requests = running
            self._ended = ended[-1].number if ended else self._ended
            parts.append(_part("requests", {"now": running, "ended": ended}))
        return parts


def _event(record: Record) -> bytes:
    return b"id: %d\n" % record.id + _part("event", record)


def _part(kind: str, value: object) -> bytes:
    """One event of the stream; JSON has no line breaks of its own."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"
