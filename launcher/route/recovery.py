"""A request whose server ran out of memory: how that is seen in an answer, and asking again. I/O."""

from __future__ import annotations

import re

from launcher.ir.live import Upstreams
from launcher.route.client import Turn
from launcher.route.target import Target
from launcher.route.upstream import Connection, UpstreamError

_MAX_ERROR_BYTES = 64 * 1024
_SIGNS = re.compile(
    rb"std::bad_alloc|out of (?:device )?memory|OutOfDeviceMemory|insufficient memory|(?:failed|unable) to allocate",
    re.IGNORECASE,
)
"""What llama-server's error bodies say (`decode() failed: std::bad_alloc`), and its backends' allocators."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_ERROR_EVENT = re.compile(rb'(?:event: ?error\r?\n)?(?:data|error): ?\{.{0,40}"error"')
_QUOTED = re.compile(rb'"message"\s*:\s*"((?:[^"\\]|\\.){1,300})')


async def held_back(connection: Connection, *, is_events: bool) -> bytes:
    """The body of an error, or the first event of a stream, read to see what it says; to be passed on before the rest.

    For servers that can be started with less. Raises UpstreamError when it says out of memory (a stream that fails
    before its first token has status 200, and an error as its first event).
    """
    body = b""
    while len(body) < _MAX_ERROR_BYTES and not connection.drained:
        body += await connection.read()
        if is_events and _EVENT_END.search(body):
            break
    is_error = _ERROR_EVENT.match(body) if is_events else connection.drained
    if is_error and _SIGNS.search(body):
        quoted = _QUOTED.search(body)
        raise UpstreamError("out_of_memory", (quoted[1] if quoted else body[:300]).decode(errors="replace"))
    return body


async def another_chance(upstreams: Upstreams, target: Target, error: UpstreamError, turn: Turn) -> bool:
    """Whether the request may be sent to `target` once more: nothing was answered, and its server starts with less.

    At most once a rung, so there is an end.
    """
    rungs = target.unit.rungs
    if turn.reply.status or turn.chances >= rungs or error.reason not in ("died", "out_of_memory", "unreachable"):
        return False
    turn.chances += 1
    said = str(error) if error.reason == "out_of_memory" else ""
    return await turn.client.unless_gone(upstreams.retry_after_oom(target.name, turn.sent_at, said))
