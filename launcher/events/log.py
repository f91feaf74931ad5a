"""Every event of one runtime: numbered, kept, and passed on to listeners. I/O."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from heapq import merge
from itertools import takewhile
from operator import attrgetter
from pathlib import Path

from launcher.events.store import Store, orchestration_file, read_records
from launcher.ir.events import ORCHESTRATION, Happened, Record

FILE_NAME = "events.jsonl"
KEPT = 1000
"""Events kept in memory, of the fleet, and as many of its orchestration: for pages that open or reconnect."""

Listener = Callable[[Record], None]


class EventLog:
    """The events of one runtime. All methods are called in the runtime's loop."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        """`path`: the store; None: memory alone. A damaged store is read as far as possible."""
        self._clock = clock
        known = read_records(path) if path is not None else []
        self._kept: dict[bool, deque[Record]] = {
            of_requests: deque((r for r in known if (r.kind in ORCHESTRATION) is of_requests), maxlen=KEPT)
            for of_requests in (False, True)
        }
        self._stores = {} if path is None else {False: Store(path), True: Store(orchestration_file(path))}
        self._last = known[-1].id if known else 0
        self._listeners: set[Listener] = set()

    def add(self, happened: Happened) -> Record:
        """Number an event, keep it, and pass it on."""
        now = self._clock()
        # Milliseconds, so that numbers grow even where the store was lost; one more where the clock does not.
        self._last = max(self._last + 1, int(now * 1000))
        record = Record(
            id=self._last,
            at=now,
            kind=happened.kind,
            name=happened.name,
            message=happened.message,
            cause=happened.cause,
            details=happened.details,
        )
        of_requests = record.kind in ORCHESTRATION
        self._kept[of_requests].append(record)
        if self._stores:
            self._stores[of_requests].append(record)
        for listener in tuple(self._listeners):
            listener(record)
        return record

    def after(self, number: int = 0, *, since: float = 0.0) -> tuple[Record, ...]:
        """Events after number `number` and not before Unix time `since`, oldest first."""
        newest = merge(*(reversed(kept) for kept in self._kept.values()), key=attrgetter("id"), reverse=True)
        found = [record for record in takewhile(lambda record: record.id > number, newest) if record.at >= since]
        return tuple(reversed(found))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event from now on; returns a function that ends this."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def close(self) -> None:
        """Close the store."""
        for store in self._stores.values():
            store.close()
