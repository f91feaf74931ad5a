"""Servers on unix sockets: whose one is, what is sent again on a fresh connection, and moves to a port and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.base.unix_socket import peer_pid
from launcher.route import Front
from tests.route.fleet import (
    OK,
    FakeFleet,
    RawClient,
    Script,
    answering,
    ask,
    post,
    read_request,
    running,
    table,
    target,
)


class Doubting(FakeFleet):
    """Upstreams that note which process a connection leads to; `who` is what is said of it."""

    def __init__(self, who: str | None = None) -> None:
        """Nobody was asked."""
        super().__init__()
        self.who = who
        self.peers: list[int | None] = []

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:
        """As told; the server itself is not asked."""
        self.peers.append(peer)
        return self.who


@contextlib.asynccontextmanager
async def upstream(path: Path, script: Script) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """A server at `path`; yields the connections to it."""
    connections: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield connections
    finally:
        server.close()
        for writer in connections:
            writer.close()


async def always(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer whatever comes."""
    while True:
        assert (await read_request(reader)).header("host") == "localhost"
        writer.write(OK)


def at(path: Path) -> Any:
    """The entry of server `m` there."""
    return target("m", 0, host=str(path))


async def test_its_process_is_asked_for_once_a_connection(tmp_path: Path) -> None:
    """Who listens is what the kernel says of the connection itself; the second request is sent on the same one."""
    path, fleet = tmp_path / "m.sock", Doubting()
    async with upstream(path, always) as connections, running(Front(table(at(path)), fleet)) as port:
        async with RawClient(port) as client:
            assert [(await client.ask(post({"model": "m"}))).status for _ in range(2)] == [200, 200]
        assert len(connections) == 1
    assert fleet.peers == [os.getpid()]


async def test_a_stranger_is_never_asked(tmp_path: Path) -> None:
    """503 `wrong_server`, and no byte of the request."""
    path, heard = tmp_path / "m.sock", bytearray()

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read())

    async with upstream(path, listen), running(Front(table(at(path)), Doubting("thief (pid 7)"))) as port:
        answer = await ask(port, post({"model": "m"}))
        assert (answer.status, answer.code) == (503, "wrong_server")
        assert "another process has its path: thief (pid 7)" in answer.json()["error"]["message"]
    assert not heard


async def test_nobody_listens(tmp_path: Path) -> None:
    """A path without a socket, and one with a dead one."""
    path = tmp_path / "m.sock"
    for _ in range(2):
        async with running(Front(table(at(path)), FakeFleet())) as port:
            assert (await ask(port, post({"model": "m"}))).code == "upstream_unreachable"
        if not path.exists():
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))


class ClosesWhileAsked:
    """A server on plain sockets that answers once, and closes that connection at a stated moment."""

    def __init__(self, path: Path) -> None:
        """Listens."""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()

    def answer_one(self) -> socket.socket:
        """Accept, read one request, answer it."""
        sock, _ = self.listener.accept()
        while not sock.recv(1 << 16).endswith(b"}"):
            pass
        sock.sendall(OK)
        return sock


@pytest.mark.parametrize("read", ["nothing", "a part", "all"])
async def test_what_a_closed_connection_did_not_read_is_sent_once_more(tmp_path: Path, read: str) -> None:
    """A request of which bytes were left unread was not begun; one that was read whole may have been."""
    path = tmp_path / "m.sock"
    server = ClosesWhileAsked(path)
    with server.listener:
        async with running(Front(table(at(path)), FakeFleet())) as port, RawClient(port) as client:
            answered = asyncio.create_task(asyncio.to_thread(server.answer_one))
            assert (await client.ask(post({"model": "m"}))).status == 200
            with await answered as kept:
                assert peer_pid(kept) == os.getpid()
                client.send(post({"model": "m"}))
                await asyncio.to_thread(kept.recv, 1, socket.MSG_PEEK)
                await asyncio.to_thread(take, kept, read)
            if read == "all":
                assert (await client.answer()).code == "upstream_died"
                return
            with await asyncio.to_thread(server.answer_one):
                assert (await client.answer()).status == 200


def take(sock: socket.socket, how_much: str) -> None:
    """Read so much of a request."""
    if how_much == "a part":
        sock.recv(10)
    if how_much == "all":
        while not sock.recv(1 << 16).endswith(b"}"):
            pass


async def test_a_closed_connection_is_known_by_its_pipe(tmp_path: Path) -> None:
    """The server closed it before anything was sent, and the front has not looked yet: it is sent on a fresh one."""
    path = tmp_path / "m.sock"
    server = ClosesWhileAsked(path)
    with server.listener:
        async with running(Front(table(at(path)), FakeFleet())) as port, RawClient(port) as client:
            answered = asyncio.create_task(asyncio.to_thread(server.answer_one))
            assert (await client.ask(post({"model": "m"}))).status == 200
            with await answered as kept:
                # both happen before the front's loop looks: it reads the request first, and then that the server left
                os.write(client.writer.get_extra_info("socket").fileno(), post({"model": "m"}))
            assert kept.fileno() < 0
            with await asyncio.to_thread(server.answer_one):
                assert (await client.answer()).status == 200


async def test_from_a_port_to_a_path_and_back(tmp_path: Path) -> None:
    """The routes say the next address already; requests go where the process is that they are granted."""
    path, fleet = tmp_path / "m.sock", FakeFleet()
    async with answering(OK) as up, upstream(path, always) as connections:
        front = Front(table(target("m", up.port)), fleet)
        async with running(front) as port:

            async def asked() -> tuple[int, int]:
                """By port and by path so far."""
                assert (await ask(port, post({"model": "m"}))).status == 200
                return len(up.requests), len(connections)

            assert await asked() == (1, 0)
            known = front.view.targets["m"]
            front.replace_table(table(at(path)))
            fleet.addresses["m"] = ("127.0.0.1", up.port)
            assert await asked() == (2, 0)
            fleet.addresses["m"] = (str(path), 0)
            assert await asked() == (2, 1)
            front.replace_table(table(target("m", up.port)))
            assert await asked() == (2, 1)
            del fleet.addresses["m"]
            assert await asked() == (3, 1)
            assert front.view.targets["m"] is known
