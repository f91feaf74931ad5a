"""Small parts: logs, drift, reload decisions, ports, HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.supervise import http, logs, port_owner, process
from launcher.supervise.causes import cause_of_end, obstacle
from launcher.supervise.events import FleetReady, ServerFailed, decode_event, encode_event
from launcher.supervise.owner import Ending
from launcher.supervise.ports import intruder
from launcher.supervise.process import describe_exit
from launcher.supervise.readiness import UnfitError, auth_headers, prove, watch_progress
from launcher.supervise.reload import compare_specs
from launcher.supervise.spec import process_specs
from tests.supervise.conftest import fake, manifest


def test_a_tail_is_bounded_and_plain(tmp_path: Path) -> None:
    """The last lines, without colours, of any size of file; none of a file that is not there."""
    log = tmp_path / "x.log"
    assert logs.tail(log) == ()
    log.write_bytes(b"\xff\xfe\n" + b"line\n" * 100_000 + b"\x1b[31mred\x1b[0m\nlast")
    assert logs.tail(log, 3) == ("line", "red", "last")
    assert len(logs.tail(log)) == logs.TAIL_LINES


def test_logs_shift_and_keep_their_number(tmp_path: Path) -> None:
    """Each run has a file; the oldest is dropped; an empty one is not kept."""
    log = tmp_path / "x.log"
    for run in range(5):
        logs.shift(log, 3)
        log.write_text(str(run))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x.log": "4", "x.log.1": "3", "x.log.2": "2"}
    log.write_text("")
    logs.shift(log, 3)
    assert (tmp_path / "x.log.1").read_text() == "3"
    log.write_text("5")
    logs.shift(log, 1)
    assert not log.exists()


def test_a_log_that_is_written_is_cut_in_place(tmp_path: Path) -> None:
    """The writer's descriptor goes on; the last bytes are kept beside; the file is private."""
    log = tmp_path / "x.log"
    descriptor = logs.open_log(log)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    os.write(descriptor, b"a" * 50 + b"b" * 100)
    assert logs.cut(log, 3, 100)
    os.write(descriptor, b"c")
    os.close(descriptor)
    assert (log.read_bytes(), (tmp_path / "x.log.1").read_bytes()) == (b"c", b"b" * 100)
    assert not logs.cut(log, 3, 100)


def test_a_pipe_in_the_place_of_a_log_holds_nobody_up(tmp_path: Path) -> None:
    """Its server writes nowhere, and serves."""
    path = tmp_path / "a.log"
    os.mkfifo(path)
    logs.shift(path, 3)
    os.close(logs.open_log(path))
    assert logs.tail(path) == ()
    assert not logs.cut(path, 3, 0)


def test_a_reload_touches_what_it_must() -> None:
    """Timeouts change in place; argv restarts; a demand server that sleeps stays asleep; names narrow it."""
    old = process_specs(manifest(fake("a", 1), fake("b", 2), fake("c", 3, start="demand"), fake("d", 4)))
    new = process_specs(
        manifest(
            fake("a", 1, start_timeout_s=99),
            fake("b", 2, note="x"),
            fake("c", 3, note="x", start="demand"),
            fake("e", 5),
        )
    )
    running = {name: old[name].unit.argv for name in "abd"}
    changes = compare_specs(old, new, running, ())
    assert msgspec.to_builtins(changes) == {
        "started": ("e",),
        "stopped": ("d",),
        "restarted": ("b",),
        "kept": ("a", "c"),
        "failed": (),
    }
    narrow = compare_specs(old, new, running, ("a",))
    assert (narrow.restarted, narrow.started, narrow.stopped) == (("a",), (), ())
    assert compare_specs(old, old, {**running, "a": ("other",)}, ()).restarted == ("a",)


names = st.sets(st.sampled_from("abcd"))


@settings(deadline=None)
@given(before=names, after=names, chosen=names, alive=names)
def test_a_reload_sorts_every_name_once(before: set[str], after: set[str], chosen: set[str], alive: set[str]) -> None:
    """Every name of either manifest gets exactly one fate, and only what exists is restarted."""
    old = process_specs(manifest(*(fake(n, 1) for n in sorted(before))))
    new = process_specs(manifest(*(fake(n, 1) for n in sorted(after))))
    running = {n: old[n].unit.argv for n in alive & before}
    changes = compare_specs(old, new, running, tuple(chosen))
    fates = [*changes.started, *changes.stopped, *changes.restarted, *changes.kept]
    assert sorted(fates) == sorted(before | after)
    assert set(changes.restarted) <= set(running) & after
    assert set(changes.stopped) <= before


def test_a_port_is_traced_to_its_process() -> None:
    """IPv4 and IPv6; nobody on a port that was closed."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((host, 0), family=family) as sock:
            port = sock.getsockname()[1]
            owner = port_owner(port)
            assert owner is not None
            assert (owner.pid, f"(pid {os.getpid()})" in str(owner)) == (os.getpid(), True)
        assert port_owner(port) is None


def test_a_shared_port_has_an_intruder() -> None:
    """Two processes may listen on one port (SO_REUSEPORT), and the kernel gives connections to either."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        ours.listen()
        port = ours.getsockname()[1]
        assert intruder(os.getpid(), port, "127.0.0.1") is None
        code = (
            "import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1);"
            f" s.bind(('127.0.0.1', {port})); s.listen(); print('up', flush=True); sys.stdin.read()"
        )
        words = [sys.executable, "-c", code]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as thief:
            assert thief.stdout is not None
            assert thief.stdout.readline() == b"up\n"
            assert intruder(os.getpid(), port, "127.0.0.1") is not None
            assert intruder(thief.pid, port, "127.0.0.1") is not None
            assert thief.stdin is not None
            thief.stdin.close()
        assert intruder(os.getpid(), port, "127.0.0.1") is None
    with pytest.raises(ProcessLookupError):  # it ends, or has ended
        intruder(os.getpid(), port, "127.0.0.1")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", 503),
        (b"SSH-2.0-OpenSSH\r\n", None),
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 5_000_000, None),
    ],
)
async def test_the_http_client_takes_answers_and_survives_the_rest(answer: bytes, outcome: int | None) -> None:
    """Length, chunks; what is no HTTP, closes early or is endless is a connection error."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        if outcome is None:
            with pytest.raises(ConnectionError):
                await http.request("127.0.0.1", port, "/", timeout_s=5)
        else:
            reply = await http.request("0.0.0.0", port, "/", timeout_s=5, body={})
            assert (reply.status, reply.json()) == (outcome, {})


async def test_the_http_client_is_bounded_in_time() -> None:
    """A listener that never answers costs the timeout, no more."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        await http.request("127.0.0.1", silent.getsockname()[1], "/", timeout_s=0.1)


def test_an_api_key_file_is_used_and_never_shown(tmp_path: Path) -> None:
    """The first key that is no comment; none when the file is absent."""
    keys = tmp_path / "keys"
    keys.write_text("# comment\n\nsecret\nother\n")
    spec = process_specs(manifest(fake("a", 1, argv=("llama-server", "--api-key-file", str(keys)))))["a"]
    assert auth_headers(spec) == {"Authorization": "Bearer secret"}
    keys.unlink()
    assert auth_headers(spec) == {}


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x03\x00\x02\x02\x46"])
async def test_a_port_that_speaks_another_protocol_is_said(said: bytes) -> None:
    """By itself or by a stranger; it was `stalled` before, after minutes."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        spec = process_specs(manifest(fake("a", port)))["a"]
        with pytest.raises(UnfitError, match="by the server that was started, with what is not HTTP"):
            await asyncio.wait_for(prove(spec, os.getpid()), 20)
        with pytest.raises(UnfitError, match=f"pid {os.getpid()}"):
            await asyncio.wait_for(prove(spec, os.getppid()), 20)


async def test_progress_is_seen_after_a_look_that_could_not_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left for a moment: a server that loads on is not taken for one that has stalled."""

    class Talking:
        async def log_mark(self) -> object:
            return object()

    def refuse(_: int) -> None:
        monkeypatch.undo()
        raise OSError(24, "Too many open files")

    async def trim() -> None:
        """Nothing to trim."""

    seen = asyncio.Event()
    monkeypatch.setattr("launcher.base.procfs.proc_stat", refuse)
    watching = asyncio.create_task(
        watch_progress(cast("Any", Talking()), os.getpid(), 0.01, lambda _: seen.set(), trim)
    )
    try:
        await asyncio.wait_for(seen.wait(), 5)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.parametrize(
    ("props", "match"),
    [
        (b'{"model_path":"/models/\\u0000.gguf","total_slots":1}', "shows the model"),
        (b'{"model_path":["/models/a.gguf"],"total_slots":1}', "shows the model"),
        (b'{"model_path":"/models/a.gguf","total_slots":"1"}', "shows 1 slots"),
        (b'{"model_path":"/models/a.gguf","total_slots":1e999}', "/props answers 200"),
        (b"[" * 100_000, "/props answers 200"),
        (b"\xff", "/props answers 200"),
    ],
)
async def test_what_no_llama_server_says_of_itself_makes_it_unfit(props: bytes, match: str) -> None:
    """Whatever its `/props` are: it is said, not waited for until the start is overdue."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        body = props if asked.startswith(b"GET /props") else b"{}"
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        spec = process_specs(manifest(fake("a", server.sockets[0].getsockname()[1])))["a"]
        with pytest.raises(UnfitError, match=match):
            await asyncio.wait_for(prove(spec, os.getpid()), 20)


async def test_a_few_words_of_another_protocol_end_no_start() -> None:
    """A program may have the port for a moment before the server does."""
    asked = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(b"what?\r\n\r\n" if asked < 10 else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        spec = process_specs(manifest(fake("a", port, probe="health")))["a"]
        await asyncio.wait_for(prove(spec, os.getpid()), 20)
    assert asked >= 10


def test_who_has_a_port_may_be_hard_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor left to look with: that is in nobody's way, and an end is explained as far as its log does."""

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    spec = process_specs(manifest(fake("a", 1)))["a"]
    monkeypatch.setattr("launcher.supervise.ports.port_owner", refuse)
    assert obstacle(spec) is None
    assert cause_of_end(spec, Ending(code=1), starting=True).code == "supervise/exited"


def test_events_survive_the_pipe() -> None:
    """Each line decodes to the event that was sent."""
    for event in (
        FleetReady(seconds=1.5, front=None, ready=("a",)),
        ServerFailed(name="a", code="c", cause="é\n", tail=("x",), retry_s=0.1),
    ):
        line = encode_event(event)
        assert (decode_event(line), line.count(b"\n")) == (event, 1)


def test_exits_are_described() -> None:
    """Codes, signals by name, unknown ones."""
    assert describe_exit(1) == "exited with code 1"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-250) == "killed by signal 250"
    assert "unknown" in describe_exit(None)


def test_a_score_that_is_refused_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only root may lower it: one warning, however many servers start."""

    def refuse(_path: Path, _text: str) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    process._not_allowed.cache_clear()
    for _ in range(3):
        process._adjust_oom_score(os.getpid(), -500)
    assert [record.getMessage() for record in caplog.records] == [
        "servers are not protected from the OOM killer: oom_score_adjust -500 needs CAP_SYS_RESOURCE"
    ]
