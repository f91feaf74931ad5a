"""How an answer shows that its server is out of memory. Pure."""

from __future__ import annotations

import re

_MAX_ERROR_BYTES = 64 * 1024
_SIGNS = re.compile(
    rb"std::bad_alloc|out of (?:device )?memory|OutOfDeviceMemory|insufficient memory|(?:failed|unable) to allocate",
    re.IGNORECASE,
)
"""From llama-server's error bodies (`decode() failed: std::bad_alloc`) and its backends' allocators."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_ERROR_EVENT = re.compile(rb'(?:event: ?error\r?\n)?(?:data|error): ?\{.{0,40}"error"')
_QUOTED = re.compile(rb'"message"\s*:\s*"((?:[^"\\]|\\.){1,300})')


def out_of_memory_message(body: bytes, *, is_events: bool, complete: bool) -> str | None:
    """The out-of-memory message in an error, or in a stream's first event; "" for any other answer.

    None: more of the answer must arrive to tell. A stream that fails before its first token has status 200 and an error
    as its first event.
    """
    if not complete and len(body) < _MAX_ERROR_BYTES and not (is_events and _EVENT_END.search(body)):
        return None
    is_error = _ERROR_EVENT.match(body) if is_events else complete
    if not is_error or not _SIGNS.search(body):
        return ""
    quoted = _QUOTED.search(body)
    return (quoted[1] if quoted else body[:300]).decode(errors="replace")
