"""The front's keys, read again when their file changes. I/O: stat, once a second.

A file that can be read says who may come in: also one that has no key any more, and then nobody may. One that cannot
be read, or has a line that is no key, leaves what was, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
import os

from launcher.errors import LaunchError
from launcher.route.front import Front
from launcher.route.guard import Guard

_LOG = logging.getLogger("launch.route")
LOOK_S = 1.0

Facts = tuple[int, int, int, int, int]


async def watch_keys(front: Front) -> None:
    """Run until cancelled. A change counts once two looks agree: a file written in steps is not read halfway."""
    known: tuple[str | None, Facts | None] = (front.unit.api_key_file, facts_of(front.unit.api_key_file))
    before = known
    while True:
        await asyncio.sleep(LOOK_S)
        path = front.unit.api_key_file
        seen = (path, await asyncio.to_thread(facts_of, path))
        if path != known[0]:  # a reload has read the other
            known = before = seen
        elif seen != known and seen == before:
            known = seen
            await renew(front)
        before = seen


async def renew(front: Front) -> None:
    """Take over the keys now in the file; it is read in a thread, because there may be thousands."""
    unit = front.unit
    try:
        guard = await asyncio.to_thread(Guard, unit, may_be_empty=True)
    except LaunchError as error:
        _LOG.error("the keys are kept as they were: %s", error)
        return
    if front.unit is unit:  # else a reload has read them
        front.take_keys(guard)


def facts_of(path: str | None) -> Facts | None:
    """What changes with every change of a file's content; None where there is no file."""
    if path is None:
        return None
    try:
        found = os.stat(path)  # noqa: PTH116 - once a second
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
