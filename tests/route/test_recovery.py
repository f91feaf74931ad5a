"""How out-of-memory is told from an answer that talks about it: answers in parts, errors, streams."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from launcher.ir.live import Lease
from launcher.route import Front
from launcher.route.oom import out_of_memory_message
from tests.route.fleet import OK, SSE_HEAD, FakeFleet, Upstream, ask, chunked, post, running, table, target

WORDS = rb"decode() failed: std::bad_alloc"


def told(parts: list[bytes], *, is_events: bool) -> tuple[str | None, int]:
    """What an answer that comes in these parts says at last, and after how many of them that is known."""
    for seen in range(1, len(parts) + 1):
        complete = seen == len(parts)
        said = out_of_memory_message(b"".join(parts[:seen]), is_events=is_events, complete=complete)
        if said is not None:
            return said, seen
    return None, len(parts)


@pytest.mark.parametrize(
    ("is_events", "parts"),
    [
        (False, [b'{"error":{"code":500,"message":"', WORDS, b'","type":"server_error"}}']),
        (True, [b'data: {"error":{"code":500,"message":"', WORDS + b'"}}\n\n', b"data: [DONE]\n\n"]),
        (True, [b'error: {"error":{"message":"' + WORDS + b'"}}\r\n\r\n']),
        (True, [b'event: error\ndata: {"type":"error","error":{"message":"' + WORDS + b'"}}\n\n']),
    ],
)
def test_a_server_that_says_so_is_out_of_memory(is_events: bool, parts: list[bytes]) -> None:
    """Whole errors, first events of both APIs, cut anywhere: what it says is passed on as the reason."""
    assert "bad_alloc" in (told(parts, is_events=is_events)[0] or "")


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
def test_any_other_answer_passes(is_events: bool, parts: list[bytes], held: int) -> None:
    """Other errors, text that only talks of memory, an error after the first token, a body too big to look at."""
    assert told(parts, is_events=is_events) == ("", held)


GRANTED_AT = 17.0


class Stepping(FakeFleet):
    """Servers that can be started with less, once."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        super().__init__()
        self.said: list[str] = []

    def try_lease(self, name: str) -> Lease | None:
        """Granted before it is sent."""
        lease = super().try_lease(name)
        return None if lease is None else msgspec.structs.replace(lease, granted_at=GRANTED_AT)

    async def retry_after_oom(self, name: str, since: float, said: str = "") -> bool:
        """Yes."""
        assert since == GRANTED_AT
        self.said.append(said)
        return True


ERROR = b'{"error":{"code":500,"message":"%b"}}'
EVENT = SSE_HEAD + chunked(b'data: {"error":{"message":"', WORDS, b'"}}\n\n', b"data: [DONE]\n\n") + b"0\r\n\r\n"


def failed(message: bytes) -> bytes:
    """A 500 that says so."""
    body = ERROR % message
    return b"HTTP/1.1 500 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("first", "status", "said"),
    [
        (failed(WORDS), 200, [WORDS.decode()]),
        (EVENT, 200, [WORDS.decode()]),
        (failed(b"no such thing"), 500, []),
    ],
    ids=["an error", "a first event", "another error"],
)
async def test_a_request_is_asked_again(first: bytes, status: int, said: list[str]) -> None:
    """Whose server says that it is out of memory, byte by byte too; every other answer is passed on as it is."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await up.read(reader)
        parts = [first[:200], *(bytes([b]) for b in first[200:260]), first[260:]]
        for part in parts if len(up.requests) == 1 else [OK]:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    fleet = Stepping()
    up = Upstream(script)
    async with up, running(Front(table(target("m", up.port, rungs=1)), fleet)) as port:
        answer = await ask(port, post({"model": "m"}))
    assert (answer.status, answer.clean, fleet.said) == (status, True, said)
    assert answer.body == (b'{"ok":true}' if status == 200 else first.partition(b"\r\n\r\n")[2])
