"""A reload of where the front listens, with what certificate, for whose keys: done in one step, or refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from launcher.errors import ConfigError, HostError
from launcher.ir.fleet import FrontUnit
from launcher.manifest import front_changes
from launcher.route import Front, Listeners, StaticUpstreams, bind, bind_more, key_watch, serve
from launcher.route.doors import tls_context
from launcher.route.keys import read_keys
from tests.route.fleet import WAIT_S, Upstream, answering, front_unit, get, post, table, target, until

KEY = {"authorization": "Bearer the-key-1"}


async def test_refusals_are_counted_after_a_move() -> None:
    """Connections that a moved front refuses are in its metrics, too."""
    front = Front(table(target("m", 1)), StaticUpstreams())
    front.fresh_clients()
    front.clients.refused["too_many_connections"] += 1
    assert front.refused["too_many_connections"] == 1


@contextlib.asynccontextmanager
async def opened(unit: FrontUnit, port: int) -> AsyncIterator[tuple[Front, Listeners]]:
    """A front at `unit` with the one server at `port`, and its doors."""
    front = Front(table(target("m", port), front=unit), StaticUpstreams())
    doors = Listeners(front, bind(front, unit.host, unit.port), bind_more(front))
    shutdown = asyncio.Event()
    task = asyncio.create_task(
        serve(front, host=unit.host, port=unit.port, doors=doors, shutdown=shutdown, drain_timeout_s=0.2)
    )
    await asyncio.sleep(0)
    try:
        yield front, doors
    finally:
        shutdown.set()
        await asyncio.wait_for(task, WAIT_S)


async def move(front: Front, doors: Listeners, unit: FrontUnit) -> None:
    """As the runtime does it."""
    door = doors.prepare(unit)
    try:
        front.replace_table(msgspec.structs.replace(front.view.table, front=unit))
    except BaseException:
        door.close()
        raise
    await doors.take(door)


async def status(host: str, port: int, key: str = "", context: ssl.SSLContext | None = None) -> int:
    """What `GET /v1/models` is answered; 0 where nobody listens."""
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except OSError:
        return 0
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    writer.write(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}\r\n".encode())
    line = await asyncio.wait_for(reader.readline(), WAIT_S)
    writer.close()
    return int(line.split()[1])


async def certificate(directory: Path) -> tuple[Path, Path]:
    """One for localhost, and its key."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"]
    made = await asyncio.create_subprocess_exec(*argv, "/CN=localhost", "-keyout", key, "-out", cert, stderr=-3)
    assert await made.wait() == 0
    return cert, key


def unit_at(port: int, keys: Path | None, **changes: object) -> FrontUnit:
    """A front's unit."""
    unit = front_unit(port=port, api_key_file=None if keys is None else str(keys))
    return msgspec.structs.replace(unit, **changes)


def free() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def test_a_public_front_becomes_private_in_one_step(tmp_path: Path) -> None:
    """H1: to 127.0.0.1 without a key it answers this machine alone; a public one without a key is refused."""
    keys = tmp_path / "keys"
    keys.write_text("the-key-1\n")
    public = unit_at(free(), keys, host="0.0.0.0")
    async with opened(public, 1) as (front, doors):
        assert [await status(h, public.port) for h in ("127.0.0.1", "127.0.0.2")] == [401, 401]
        with pytest.raises(ConfigError, match="route/public-without-key"):
            await move(front, doors, msgspec.structs.replace(public, api_key_file=None))
        with pytest.raises(HostError, match="route/key-file-unreadable"):
            await move(front, doors, msgspec.structs.replace(public, host="127.0.0.1", api_key_file="/nowhere"))
        assert [await status(h, public.port) for h in ("127.0.0.1", "127.0.0.2")] == [401, 401]
        private = msgspec.structs.replace(public, host="127.0.0.1", api_key_file=None)
        assert front_changes(front.view.table, msgspec.structs.replace(front.view.table, front=private)) == (
            "host 0.0.0.0 → 127.0.0.1",
            f"api_key_file {keys} → none",
        )
        await move(front, doors, private)
        assert [await status(h, public.port) for h in ("127.0.0.1", "127.0.0.2")] == [200, 0]
        await move(front, doors, public)
        assert [await status(h, public.port, "the-key-1") for h in ("127.0.0.1", "127.0.0.2")] == [200, 200]


async def test_who_came_by_the_old_address_is_answered(tmp_path: Path) -> None:
    """An answer under way ends whole, an idle connection is closed, and one that nobody had accepted is answered."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    old, new = unit_at(free(), None), unit_at(free(), None)
    async with Upstream(slow) as upstream, opened(old, upstream.port) as (front, doors):
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", old.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", old.port)
        head = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n\r\n"
        writer.write(head + b'{"model":"m"}')
        await begun.wait()
        with socket.create_connection(("127.0.0.1", old.port)) as waiting:  # in the queue of the kernel
            await move(front, doors, new)
            assert await asyncio.wait_for(idle_reader.read(), WAIT_S) == b""
            assert await status("127.0.0.1", old.port) == 0
            assert await status("127.0.0.1", new.port) == 200
            go_on.set()
            answer = await asyncio.wait_for(reader.read(), WAIT_S)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()
            waiting.settimeout(WAIT_S)
            assert await asyncio.to_thread(waiting.recv, 1) == b""  # an end, not a reset
        idle.close()
        writer.close()
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HostError, match="route/cannot-listen"):
            await move(front, doors, msgspec.structs.replace(new, port=taken.getsockname()[1]))
        assert await status("127.0.0.1", new.port) == 200


async def test_a_certificate_comes_and_goes(tmp_path: Path) -> None:
    """TLS on the same port, off again; a pair that does not fit changes nothing."""
    cert, key = await certificate(tmp_path)
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    plain = unit_at(free(), None)
    secret = msgspec.structs.replace(plain, tls_cert_file=str(cert), tls_key_file=str(key))
    async with opened(plain, 1) as (front, doors):
        await move(front, doors, secret)
        assert await status("127.0.0.1", plain.port, context=context) == 200
        os.mkfifo(tmp_path / "pipe")
        for wrong in (cert, tmp_path / "pipe", tmp_path):
            with pytest.raises(HostError, match="route/tls-unusable"):
                await move(front, doors, msgspec.structs.replace(secret, tls_key_file=str(wrong)))
        assert await status("127.0.0.1", plain.port, context=context) == 200
        await move(front, doors, msgspec.structs.replace(secret, queue_size=7))
        assert await status("127.0.0.1", plain.port, context=context) == 200
        await move(front, doors, plain)
        assert await status("127.0.0.1", plain.port) == 200


async def test_more_connections_after_a_reload_have_descriptors(tmp_path: Path) -> None:
    """What the process may open grows with `max_connections`, not at its start alone."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    unit = msgspec.structs.replace(unit_at(free(), None), max_connections=100)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        async with opened(unit, 1) as (front, doors):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024
            await move(front, doors, msgspec.structs.replace(unit, max_connections=1000))
            assert front.clients.most == 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_certificate_comes_and_goes_at_every_address(tmp_path: Path) -> None:
    """Those beside the first have it too, and no other; a unix socket has none."""
    certs = {}
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        certs[name] = await certificate(tmp_path / name)
    path = tmp_path / "front.sock"
    plain = unit_at(free(), None, listen=("127.0.0.2", str(path)))
    async with opened(plain, 1) as (front, doors):
        for cert, key in certs.values():
            unit = msgspec.structs.replace(plain, tls_cert_file=str(cert), tls_key_file=str(key))
            await move(front, doors, unit)
            context = ssl.create_default_context(cafile=cert)
            context.check_hostname = False
            for host in ("127.0.0.1", "127.0.0.2"):
                assert await status(host, plain.port, context=context) == 200
        await move(front, doors, plain)
        for host in ("127.0.0.1", "127.0.0.2"):
            assert await status(host, plain.port) == 200
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(get("/health", "Connection: close"))
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
    assert not path.exists()


async def test_keys_are_read_again_when_their_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revoked key is refused; a file without a key lets nobody in; one that is no key file leaves what was."""
    monkeypatch.setattr(key_watch, "LOOK_S", 0.01)
    keys = tmp_path / "keys"
    keys.write_text("the-key-1\nthe-key-2\n")
    unit = unit_at(free(), keys)

    async def until(key: str, wanted: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while await status("127.0.0.1", unit.port, key) != wanted:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    async with opened(unit, 1):
        await until("the-key-1", 200)
        keys.write_text("the-key-2\nthe-key-3\n")
        await until("the-key-1", 401)
        await until("the-key-3", 200)
        keys.write_text("sha256:beef\n")
        await asyncio.sleep(0.1)
        assert await status("127.0.0.1", unit.port, "the-key-3") == 200
        keys.write_text("# nobody\n")
        await until("the-key-3", 401)
        assert await status("127.0.0.1", unit.port) == 401
        os.rename(keys, tmp_path / "gone")  # noqa: PTH104
        await asyncio.sleep(0.05)
        assert await status("127.0.0.1", unit.port, "the-key-2") == 401
        keys.write_text("the-key-4\n")
        await until("the-key-4", 200)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge"])
async def test_what_comes_in_place_of_the_key_file_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The keys are kept as they were, and that is said: at a start it is refused."""
    monkeypatch.setattr(key_watch, "LOOK_S", 0.01)
    keys, strange = tmp_path / "keys", tmp_path / "strange"
    keys.write_text("the-key-1\n")
    if kind == "pipe":
        os.mkfifo(strange)
    elif kind == "folder":
        strange.mkdir()
    elif kind == "device":
        strange.symlink_to("/dev/zero")
    else:
        with strange.open("wb") as sparse:
            sparse.truncate(1 << 40)
    unit = unit_at(free(), keys)
    async with opened(unit, 1):
        assert await status("127.0.0.1", unit.port, "the-key-1") == 200
        keys.unlink()
        strange.rename(keys)
        await until(lambda: "the keys are kept as they were" in caplog.text)
        assert await status("127.0.0.1", unit.port, "the-key-1") == 200
    with pytest.raises(HostError, match="route/key-file-unreadable"):
        Front(table(target("m", 1), front=unit), StaticUpstreams())


def test_who_asks_waits_for_no_other_key(tmp_path: Path) -> None:
    """A key, or none of them, is looked up among 20,000 as quickly as among one."""
    keys = tmp_path / "keys"
    keys.write_text("".join(f"sha256:{n:064x} name=k{n}\n" for n in range(20_000)) + "the-last-key name=last\n")
    found = read_keys(str(keys))
    began = time.process_time()
    for _ in range(500):
        assert found.grant(b"no-such-key") is None
        grant = found.grant(b"the-last-key")
        assert grant is not None
        assert grant.name == "last"
    assert time.process_time() - began < 1  # 10 ms where each is looked at: 10 s


class FewDescriptors:
    """A listening socket whose `accept` fails the first time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.failed = False

    def accept(self) -> tuple[socket.socket, object]:
        """As the system does without descriptors."""
        if not self.failed:
            self.failed = True
            raise OSError(errno.EMFILE, "Too many open files")
        return self.sock.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self.sock, name)


async def test_who_never_agrees_on_tls_takes_nobodys_place(tmp_path: Path) -> None:
    """Silent clients, and some who speak no TLS, are counted like others, make room, and end in a head's time."""
    cert, key = await certificate(tmp_path)
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    unit = unit_at(
        free(), None, tls_cert_file=str(cert), tls_key_file=str(key), max_connections=4, header_timeout_s=0.5
    )
    async with opened(unit, 1) as (front, _):
        silent = [await asyncio.open_connection("127.0.0.1", unit.port) for _ in range(12)]
        await until(lambda: len(front.clients.connections) == 4)
        assert await status("127.0.0.1", unit.port, context=context) == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", unit.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for each, its in (*silent, (reader, writer)):
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in await asyncio.wait_for(each.read(), WAIT_S)
            its.close()
        await until(lambda: not front.clients.connections)


async def test_what_a_client_over_tls_does_not_read_is_as_little_as_without(tmp_path: Path) -> None:
    """64 KiB, and what one read of the server's brings."""
    cert, key = await certificate(tmp_path)
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    unit = unit_at(free(), None, tls_cert_file=str(cert), tls_key_file=str(key))
    size = 16 << 20
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    async with answering(answer) as up, opened(unit, up.port) as (front, _):
        _, writer = await asyncio.open_connection("127.0.0.1", unit.port, ssl=context)
        cast("asyncio.Transport", writer.transport).pause_reading()
        writer.write(post({"model": "m"}))
        await until(lambda: any(getattr(c, "write_paused", False) for c in front.clients.connections))
        (connection,) = front.clients.connections
        assert connection.transport.get_write_buffer_size() <= (64 + 256 + 16) * 1024
        writer.transport.abort()
        await until(lambda: not front.clients.connections)


async def test_nobody_is_asked_for_a_keys_passphrase(tmp_path: Path) -> None:
    """OpenSSL would ask at the terminal, and a reload would hold everybody up until somebody types."""
    cert, key = await certificate(tmp_path)
    locked = tmp_path / "locked.pem"
    argv = ("openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    assert await (await asyncio.create_subprocess_exec(*argv)).wait() == 0
    with pytest.raises(HostError, match="the key has a passphrase"):
        tls_context(unit_at(1, None, tls_cert_file=str(cert), tls_key_file=str(locked)))


def test_a_unix_socket_whose_owner_accepts_nothing_is_left_alone(tmp_path: Path) -> None:
    """It is stopped, and its queue is full: who wants its path is told, and does not wait."""
    path = tmp_path / "front.sock"
    front = Front(table(target("m", 1), front=unit_at(free(), None, listen=(str(path),))), StaticUpstreams())
    with socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as waiting:
        owner.bind(str(path))
        owner.listen(0)
        waiting.connect(str(path))
        with pytest.raises(HostError, match="the front cannot listen on"):
            bind_more(front)
    assert path.exists()


async def test_the_next_fronts_unix_socket_stays(tmp_path: Path) -> None:
    """A front that drains has given its path up: another one may have taken it when the drain is over."""
    path = tmp_path / "front.sock"
    front = Front(table(target("m", 1), front=unit_at(free(), None, listen=(str(path),))), StaticUpstreams())
    doors = Listeners(front, bind(front, front.unit.host, front.unit.port), bind_more(front))
    await doors.open()
    doors.close()
    assert not path.exists()
    next_one = bind_more(front)
    doors.close()
    assert path.exists()
    for sock in next_one:
        sock.close()


async def test_tls_without_descriptors_goes_on_when_there_are_some(tmp_path: Path) -> None:
    """Who connects meanwhile waits. A client that says nothing holds up no end of the front."""
    cert, key = await certificate(tmp_path)
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    unit = unit_at(free(), None, tls_cert_file=str(cert), tls_key_file=str(key))
    front = Front(table(target("m", 1), front=unit), StaticUpstreams())
    bound = FewDescriptors(bind(front, unit.host, unit.port))
    shutdown = asyncio.Event()
    doors = Listeners(front, cast("socket.socket", bound))
    serving = asyncio.create_task(
        serve(front, host=unit.host, port=unit.port, doors=doors, shutdown=shutdown, drain_timeout_s=60)
    )
    assert await status("127.0.0.1", unit.port, context=context) == 200
    assert bound.failed
    _, writer = await asyncio.open_connection("127.0.0.1", unit.port)
    await until(lambda: bool(front.clients.connections))
    shutdown.set()
    await asyncio.wait_for(serving, WAIT_S)
    writer.close()
