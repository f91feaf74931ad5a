"""How out-of-memory is told from an answer that talks about it: answers in parts, errors, streams."""

from __future__ import annotations

import pytest

from launcher.route.recovery import held_back
from launcher.route.upstream import UpstreamError

WORDS = rb"decode() failed: std::bad_alloc"


class Scripted:
    """An upstream's answer that comes in these parts."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)

    @property
    def drained(self) -> bool:
        """All of it was read."""
        return not self.parts

    async def read(self) -> bytes:
        """The next part."""
        return self.parts.pop(0)


@pytest.mark.parametrize(
    ("is_events", "parts"),
    [
        (False, [b'{"error":{"code":500,"message":"', WORDS, b'","type":"server_error"}}']),
        (True, [b'data: {"error":{"code":500,"message":"', WORDS + b'"}}\n\n', b"data: [DONE]\n\n"]),
        (True, [b'error: {"error":{"message":"' + WORDS + b'"}}\r\n\r\n']),
        (True, [b'event: error\ndata: {"type":"error","error":{"message":"' + WORDS + b'"}}\n\n']),
    ],
)
async def test_a_server_that_says_so_is_out_of_memory(is_events: bool, parts: list[bytes]) -> None:
    """Whole errors, first events of both APIs, cut anywhere: what it says is passed on as the reason."""
    with pytest.raises(UpstreamError, match="bad_alloc") as caught:
        await held_back(Scripted(*parts), is_events=is_events)  # type: ignore[arg-type] # what it reads of one
    assert caught.value.reason == "out_of_memory"


@pytest.mark.parametrize(
    ("is_events", "parts", "held"),
    [
        (False, [b'{"error":{"code":500,"message":"no such thing"}}'], 1),
        (False, [b""], 1),
        (True, [b'data: {"content":"\\"error\\": std::bad_alloc, out of memory"}\n\n', b"data: more\n\n"], 1),
        (True, [b'data: {"content":"a"}\n', b"\ndata: ", b'{"error":{"message":"std::bad_alloc"}}\n\n'], 2),
        (False, [b"x" * 70_000, b'{"error":{"message":"std::bad_alloc"}}'], 1),
    ],
)
async def test_any_other_answer_passes_whole(is_events: bool, parts: list[bytes], held: int) -> None:
    """Other errors, text that only talks of memory, an error after the first token, a body too big to look at."""
    connection = Scripted(*parts)
    body = await held_back(connection, is_events=is_events)  # type: ignore[arg-type] # as above
    assert body == b"".join(parts[:held])
    assert connection.parts == parts[held:]
