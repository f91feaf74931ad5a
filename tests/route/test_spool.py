"""What clients leave behind in memory: big bodies lie in files when many come, and who is gone is freed at once."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from launcher.route import Front
from launcher.route import spool as spooling
from launcher.route.connection import ClientConnection
from launcher.route.exchange import Exchange
from launcher.route.question import Question
from launcher.route.question import ask as ask_ourselves
from launcher.route.reader import RequestReader
from launcher.route.spool import Spool, Spools
from tests.route.fleet import (
    OK,
    SSE_HEAD,
    FakeFleet,
    RawClient,
    answering,
    ask,
    chunked,
    front_unit,
    get,
    post,
    running,
    table,
    until,
)
from tests.route.fleet import target as unit
from tests.route.test_strangers import CHAT, JSON, MIB, big, many

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from the first byte on that is too much for memory."""
    monkeypatch.setattr("launcher.route.clients._SPOOL_BYTES", MIB)


def front_of(port: int, folder: Path, **changes: Any) -> Front:
    """A front whose bodies lie in `folder`."""
    made = Front(table(unit("m", port, **changes), front=front_unit(max_body_bytes=8 * MIB)), FakeFleet())
    made.clients.held.spools.folder = folder
    return made


async def test_unfinished_bodies_take_no_memory_and_leave_no_file(tmp_path: Path, early: None) -> None:
    """Ten of 3 MB: all are counted, a few are in memory, none has a name, none stays."""
    front = front_of(1, tmp_path)
    held, spools = front.clients.held, front.clients.held.spools
    async with running(front) as port:
        tracemalloc.start()
        try:
            async with many(port, 10) as clients:
                body = post(b"a" * (3 * MIB), CHAT, JSON)[:-1]
                sent = tracemalloc.get_traced_memory()[0]
                for client in clients:
                    client.writer.write(body)
                    await client.writer.drain()
                await until(lambda: held.arriving >= 10 * (3 * MIB - 1))
                assert tracemalloc.get_traced_memory()[0] - sent < 8 * MIB
                assert len(spools.open) >= 8
                assert not os.listdir(tmp_path)  # noqa: PTH208 - names only
        finally:
            tracemalloc.stop()
        await until(lambda: held.arriving == 0)
        assert not spools.open


@pytest.mark.parametrize("given", [{}, {"seed": 1}])
async def test_a_body_in_a_file_arrives_as_it_was_sent(tmp_path: Path, early: None, given: dict[str, int]) -> None:
    """Whole, in chunks whose last are of one byte, and where a key is set in it."""
    body = big(2 * MIB, model="m")
    async with answering(OK) as up:
        front = front_of(up.port, tmp_path, request_set=given)
        async with running(front) as port, RawClient(port) as client:
            assert (await client.ask(post(body, CHAT, JSON))).status == 200
            head = post(b"", CHAT, JSON, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
            tail = chunked(*(body[n : n + 1] for n in range(len(body) - 1000, len(body))))
            client.send(head + chunked(body[:-1000]) + tail + b"0\r\n\r\n")
            assert (await client.answer()).status == 200
            await until(lambda: not front.clients.held.spools.open)
        first, second = (request.body for request in up.requests)
    assert first == second
    assert first == body if not given else len(first) > 2 * MIB - 1000


@pytest.mark.parametrize("fails_at", ["first", "later", "last"])
async def test_a_disk_that_takes_no_more_leaves_the_body_in_memory(
    tmp_path: Path, early: None, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """Full at once, within the body, or with its last bytes: it arrives."""
    body = big(2 * MIB, model="m")
    room = {"first": 0, "later": MIB + 500_005, "last": len(body) - 7}[fails_at]
    taken: list[int] = []

    def write(fd: int, data: memoryview) -> int:
        count = min(len(data), room - sum(taken))
        if count <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(count)
        return os.write(fd, data[:count])

    async with answering(OK) as up:
        front = front_of(up.port, tmp_path)
        async with running(front) as port:
            with monkeypatch.context() as patched:
                patched.setattr(spooling, "os", _Disk(write))
                assert (await ask(port, post(body, CHAT, JSON))).status == 200
            assert up.requests[0].body == body
            assert (await ask(port, post(body, CHAT, JSON))).status == 200  # it is left alone for a while
        assert up.requests[1].body == body
        assert not front.clients.held.spools.open


class _Disk:
    """The module `os`, with another `write`."""

    def __init__(self, write: Any) -> None:
        self.write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def test_files_have_a_limit_and_a_folder_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors are for others, too; memory has to do then."""
    monkeypatch.setattr(spooling, "_MOST", 2)
    spools = Spools(tmp_path)
    first, second = spools.begin(b"a"), spools.begin(b"b")
    assert first is not None
    assert second is not None
    assert spools.begin(b"c") is None
    del second
    assert spools.begin(b"c") is not None
    assert Spools(tmp_path / "missing").begin(b"a") is None


def test_a_file_system_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name goes at once."""

    def refuse(*_: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    disk = _Disk(os.write)
    disk.open = refuse  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(spooling, "os", disk)
        spool = Spools(tmp_path).begin(b"a" * 100_000)
    assert isinstance(spool, Spool)
    assert not list(tmp_path.iterdir())
    assert bytes(spool.whole()) == b"a" * 100_000


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only the collector would free stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "said",
    [b"", get("/health"), post({"model": "m"}), post(b"a" * 100_000)[:-1], b"GET / HTTP/1.1\r\nHo", b"\0\r\n\r\n"],
)
async def test_who_is_gone_is_freed_without_the_collector(no_collector: None, said: bytes) -> None:
    """A connection, its parser and its transport are no circle: 5,000 of them would wait for minutes."""
    async with answering(OK) as up:
        front = Front(table(unit("m", up.port)), FakeFleet())
        async with running(front) as port:
            async with RawClient(port) as client:
                client.send(said)
                if said.endswith((b"}", b"\r\n\r\n")):
                    await client.answer()
                else:
                    await until(lambda: bool(front.clients.connections))
            await until(lambda: not front.clients.connections)
            await until(lambda: not [o for o in gc.get_objects() if isinstance(o, ClientConnection | RequestReader)])


@pytest.mark.parametrize("how", ["a key with limits", "pings", "ollama", "question"])
async def test_an_answer_is_freed_without_the_collector(how: str, no_collector: None, tmp_path: Path) -> None:
    """The last parts of an answer, a quarter of a MiB each, go with its request: no end of one leaves a circle."""
    keys, slow = tmp_path / "keys", asyncio.Event()
    keys.write_text("alphaalpha requests_per_minute=9\n")
    keys.chmod(0o600)
    limits = front_unit(
        api_key_file=str(keys) if how == "a key with limits" else None, apis=("ollama",), ping_after_s=0.01
    )
    fleet = FakeFleet(m="stopped" if how == "pings" else "ready")

    async def wake(name: str) -> None:
        await slow.wait()
        fleet.states[name] = "ready"

    fleet.on_wake = wake
    said = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    async with answering(SSE_HEAD + chunked(said, b"data: [DONE]\n\n") + b"0\r\n\r\n") as up:
        front = Front(table(unit("m", up.port, start="demand"), front=limits), fleet)
        async with running(front) as port, RawClient(port) as client:
            chat: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
            if how == "question":
                question = Question(path=CHAT, body=b"{}", request_id=b"mine")
                assert (await ask_ourselves(front, "m", question, timeout_s=5)).status == 200
            else:
                client.send(post(chat, "/api/chat" if how == "ollama" else CHAT, "Authorization: Bearer alphaalpha"))
                assert (await client.head())[0] == 200
                slow.set()
                while await client.chunk():
                    pass
            await until(lambda: not [o for o in gc.get_objects() if isinstance(o, Exchange)])


async def test_who_reads_nothing_has_little_computed_for_it() -> None:
    """Neither the kernel nor we hold megabytes of answers, or of what is asked next: the front waits for its reader."""
    asked = 20_000
    front = Front(table(unit("m", 1)), FakeFleet())
    handle, begun = front.clients.handle, []

    def counted(*args: Any) -> Any:
        begun.append(1)
        return handle(*args)

    front.clients.handle = counted
    async with running(front) as port, RawClient(port) as client:
        cast("asyncio.Transport", client.writer.transport).pause_reading()
        client.send(b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * asked)
        await until(lambda: any(connection.write_paused for connection in front.clients.connections))
        (connection,) = front.clients.connections
        assert connection.transport.get_write_buffer_size() < 64 * 1024
        assert len(connection._reader.unread) <= 64 * 1024
        assert len(begun) < asked // 5
