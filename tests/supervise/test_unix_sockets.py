"""Servers on unix sockets: who listens there, what a dead one leaves, which paths there may be, strangers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.base.addresses import SOCKET_PATH_MAX_BYTES, socket_path_fault
from launcher.base.unix_socket import NotASocketError, listener, prepare_socket_path, remove_stale
from launcher.hardware.facts import address_taken
from launcher.ir.fleet import ServerUnit
from launcher.runtime import spawn_detached
from launcher.supervise import LOCK_NAME, events, offline_status, stop_orphans
from launcher.supervise.ports import port_owner
from tests.faults.conftest import sites
from tests.locks import lock_owner
from tests.supervise.conftest import FAKE, fake, real
from tests.supervise.test_runtime import deploy

__all__ = ["deploy", "sites"]


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """We listen there, until the end; the file stays, as a server's does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield sock


# --- who listens there -----------------------------------------------------------------------------------------


def test_who_listens_is_known_by_a_connection(tmp_path: Path) -> None:
    """Nobody where there is nothing, or a dead one's file; else its process, also while it accepts nobody."""
    path = tmp_path / "a.sock"
    assert listener(str(path)) is None
    with listening(path) as sock:
        assert listener(str(path)) == os.getpid()
        assert str(port_owner(0, str(path))).startswith("python")
        assert address_taken(str(path), 0, lambda *_: "us") == "is held by us"
        sock.listen(0)
        with contextlib.ExitStack() as waiting:
            refused = 0
            while not refused:  # until there is no room for one more
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                refused = one.connect_ex(str(path))
            assert listener(str(path)) == 0
    assert listener(str(path)) is None
    assert address_taken(str(path), 0) is None


def test_a_child_is_told_from_its_parent(tmp_path: Path) -> None:
    """The process that listens is named, whoever asks."""
    path = tmp_path / "a.sock"
    argv = [sys.executable, "-S", str(FAKE), "--socket", str(path)]
    with subprocess.Popen(argv) as child:
        try:
            wait_for(lambda: listener(str(path)) is not None)
            assert listener(str(path)) == child.pid
        finally:
            child.kill()


def wait_for(holds: Callable[[], Any]) -> None:
    """Look until `holds()`; the test's own limit ends it."""
    while not holds():
        time.sleep(0.01)


@pytest.mark.parametrize("what", ["file", "folder", "link", "living", "bound", "dead"])
def test_nothing_but_a_dead_socket_is_removed(tmp_path: Path, what: str) -> None:
    """A file, a folder, a link to a socket, one that somebody answers or that takes datagrams: all stay."""
    path, other = tmp_path / "a.sock", tmp_path / "other.sock"
    with contextlib.ExitStack() as open_:
        if what == "file":
            path.write_text("kept")
        elif what == "folder":
            path.mkdir()
        elif what == "link":
            with listening(other):
                pass
            path.symlink_to(other)
        elif what == "living":
            open_.enter_context(listening(path))
        elif what == "bound":
            open_.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(str(path))
        else:
            with listening(path):
                pass
        before = os.lstat(path)
        if what in ("file", "folder", "link"):
            with pytest.raises(NotASocketError):
                listener(str(path))
            assert "no socket" in str(port_owner(0, str(path)))
            assert "no socket" in (address_taken(str(path), 0) or "")
        remove_stale(str(path))
        prepare_socket_path(str(path))
        assert os.path.lexists(path) == (what != "dead")
        if what != "dead":
            assert os.lstat(path).st_ino == before.st_ino


def test_what_keeps_a_server_from_a_path(tmp_path: Path) -> None:
    """`check` finds a folder that nobody can make; one that is not there yet is made by the start."""
    (tmp_path / "file").write_text("")
    assert "is no folder" in (address_taken(str(tmp_path / "file/a.sock"), 0) or "")
    assert address_taken(str(tmp_path / "new/er/a.sock"), 0) is None
    if os.geteuid():
        assert "not ours" in (address_taken("/sys/new/a.sock", 0) or "")
    with pytest.raises(FileExistsError):
        prepare_socket_path(str(tmp_path / "file/a.sock"))
    prepare_socket_path(str(tmp_path / "new/er/a.sock"))
    assert (tmp_path / "new/er").stat().st_mode & 0o777 == 0o700


def test_where_nobody_may_look_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `launch up` of root left in /run is closed to an installed runtime, until systemd has made it its own."""

    def denied(path: str, **_: Any) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "lstat", denied)
    monkeypatch.setattr(os, "stat", denied)
    assert listener("/run/launch-a/http.sock") is None
    assert address_taken("/run/launch-a/http.sock", 0) == "cannot be bound: /run/launch-a"


# --- which paths there may be ----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["/", "a", "b.c", ".", "..", "é", " ", "$x", "%n", '"', "\n", "\0", "@", "_+-", ".sock", "x" * 60]
)


@given(st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=40).map(lambda text: f"/{text}.sock"))
def test_a_path_that_is_taken_needs_no_care(path: str) -> None:
    """Absolute, as short as the kernel wants it, itself when normalised, the same in a shell and in a unit."""
    if socket_path_fault(path) is None:
        assert path.startswith("/")
        assert path.endswith(".sock")
        assert len(path.encode()) <= SOCKET_PATH_MAX_BYTES
        assert os.path.normpath(path) == path
        assert shlex.quote(path) == path
        assert not set(path) & set("%$\"'\\ \t\n:;#{}")


@given(st.lists(st.text("abcXYZ019._@+-", min_size=1, max_size=9), min_size=1, max_size=6))
def test_an_ordinary_path_is_taken(names: list[str]) -> None:
    """Folders of such characters, but none that is here or one up."""
    path = "".join(f"/{name}" for name in names) + ".sock"
    plain = not {".", ".."} & set(names[:-1])
    assert (socket_path_fault(path) is None) == (plain and len(path) <= SOCKET_PATH_MAX_BYTES)


# --- a fleet ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(llama_server: Path, tiny_models: Callable[..., Path]) -> Callable[..., ServerUnit]:
    """`server(name, port, host=…)`: a real llama-server on a tiny model."""
    model = tiny_models("llama")

    def make(name: str, port: int, *flags: str, **changes: Any) -> ServerUnit:
        return real(name, port, llama_server, model, "--grammar", "root ::= [a-z]+", *flags, **changes)

    return make


async def test_a_real_server_on_a_unix_socket(sites: Any, tmp_path: Path, server: Callable[..., ServerUnit]) -> None:
    """Its folder is made; it is proven ready, answers, streams; killed, it is back; stopped, nothing is left of it."""
    path = tmp_path / "made/a.sock"
    async with sites(server("a", 0, host=str(path))) as site:
        shown = site.status("a")
        assert (shown.state, shown.port, shown.socket) == ("ready", 0, str(path))
        assert site.watcher.of(events.ServerStarting)[0].socket == str(path)
        assert listener(str(path)) == shown.pid
        assert await site.ask("a") == (200, "")
        assert await site.stream("a", asyncio.Event(), n_predict=8) == "clean"
        os.kill(shown.pid, signal.SIGKILL)
        await site.watcher.until(events.ServerReady, count=2)
        assert await site.ask("a") == (200, "")
        assert listener(str(path)) == site.pid("a") != shown.pid
    assert not path.exists()


async def test_a_stranger_on_the_path_before_the_start(sites: Any, tmp_path: Path) -> None:
    """It is named and left alone, as is a file that is no socket."""
    taken, odd = tmp_path / "taken.sock", tmp_path / "odd.sock"
    odd.write_text("kept")
    one = fake("one", 0, host=str(taken), fatal=False, start="demand")
    two = fake("two", 0, host=str(odd), fatal=False, start="demand")
    with listening(taken):
        async with sites(one, two) as site:
            assert await site.ask("one") == (503, "server_failed")
            assert await site.ask("two") == (503, "server_failed")
            said = {e.name: (e.code, e.cause) for e in site.watcher.of(events.ServerFailed)}
        assert said["one"][0] == said["two"][0] == "supervise/port-busy"
        assert f"{taken} is held by" in said["one"][1]
        assert f"(pid {os.getpid()})" in said["one"][1]
        assert f"{odd} is held by something that is no socket" in said["two"][1]
        assert listener(str(taken)) == os.getpid()
    assert odd.read_text() == "kept"


async def test_a_stranger_that_takes_the_path_answers_nobody(sites: Any, tmp_path: Path) -> None:
    """A fresh connection led to another process: 503 `wrong_server`; the connections of before are the server's."""
    path, away = tmp_path / "a.sock", tmp_path / "away.sock"
    unit = fake("a", 0, host=str(path))
    async with sites(unit) as site:
        path.rename(away)
        with listening(path) as stranger:
            stranger.settimeout(0)
            assert await site.ask("a") == (503, "wrong_server")
            assert b"completion" not in heard_by(stranger)
        path.unlink()
        away.rename(path)
        await site.until(lambda: site.status("a").state == "ready")
        assert await site.ask("a") == (200, "")


def heard_by(stranger: socket.socket) -> bytes:
    """What everybody who is connected to it has sent."""
    heard = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            with stranger.accept()[0] as connection:
                connection.settimeout(5)
                heard += connection.recv(1 << 16)
    return heard


async def test_a_stranger_answers_health_on_the_path(sites: Any, tmp_path: Path) -> None:
    """With our model, while our own process listens nowhere → not taken for ours, and it lives on."""
    path = tmp_path / "a.sock"
    sleeps = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
    async with sites(fake("one", 0, host=str(path), argv=sleeps, start="demand")) as site:
        asked = asyncio.create_task(site.ask("one"))
        await site.watcher.until(events.ServerStarting, "one")
        argv = (sys.executable, "-S", str(FAKE), "--socket", str(path), "--model", "/models/one.gguf")
        stranger = await asyncio.create_subprocess_exec(*argv)
        try:
            assert await asked == (503, "server_failed")
            assert f"{path} is answered by" in site.status("one").error
            assert f"(pid {stranger.pid})" in site.status("one").error
            assert stranger.returncode is None
        finally:
            stranger.kill()
            await stranger.wait()


def test_what_a_killed_runtime_leaves_is_ended(deploy: Any, state_dir: Path, tmp_path: Path) -> None:
    """Kill -9 of the runtime and of a server: what lives is shown and ended, and no socket is left of either."""
    paths = {name: tmp_path / f"{name}.sock" for name in ("a", "b")}
    os.kill(spawn_detached(deploy(*(fake(n, 0, host=str(path)) for n, path in paths.items()))), signal.SIGKILL)
    wait_for(lambda: lock_owner(state_dir / LOCK_NAME) is None)
    shown = {p.name: p for p in offline_status(state_dir).processes}
    assert {name: process.socket for name, process in shown.items()} == {n: str(path) for n, path in paths.items()}
    os.kill(shown["b"].pid or 0, signal.SIGKILL)
    assert [o.outcome for o in stop_orphans(state_dir, grace_s=5).stopped if o.name == "a"] == ["stopped"]
    assert not any(path.exists() for path in paths.values())
