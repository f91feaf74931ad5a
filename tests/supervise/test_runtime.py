"""The runtime as a process of its own: doors, locks, signals, adoption, reload, detaching."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from launcher.errors import ConfigError, HostError, SuperviseError
from launcher.files.state import deployment_state_dir
from launcher.ir.fleet import HookUnit, ServiceUnit
from launcher.runtime import ControlClient, NoRuntimeError, run, spawn_detached
from launcher.supervise import LOCK_NAME, events, offline_status, stop_orphans
from tests.children import killed_on_failure
from tests.locks import lock_owner
from tests.supervise.conftest import FAKE, SUPERVISOR, fake, manifest, real, write_deployment_dir

FreePort = Callable[[], int]
Deploy = Callable[..., Path]


@pytest.fixture
def deploy(tmp_path: Path, state_dir: Path, free_port: FreePort, no_orphans: None) -> Iterator[Deploy]:
    """`deploy(*servers, **manifest fields)` → the directory; what still runs at the end is stopped."""
    front = free_port()

    def make(*servers: Any, **changes: Any) -> Path:
        return write_deployment_dir(tmp_path / "deployment", manifest(*servers, **changes), front)

    make.front = f"http://127.0.0.1:{front}"  # type: ignore[attr-defined] # a handle for the tests
    yield make
    owner = lock_owner(state_dir / LOCK_NAME)
    if owner is not None:
        os.kill(owner.pid, signal.SIGKILL)
        wait_until(lambda: lock_owner(state_dir / LOCK_NAME) is None)
    stop_orphans(state_dir, grace_s=1)


def wait_until(holds: Callable[[], Any], timeout_s: float = 60) -> None:
    """Poll until `holds()`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int | None) -> bool:
    """Whether the process lives; a zombie does not."""
    return bool(pid) and psutil.pid_exists(pid or 0) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def foreground(directory: Path) -> subprocess.Popen[bytes]:
    """`python -m launcher.runtime`, as a terminal would run it."""
    return subprocess.Popen(
        [sys.executable, "-m", "launcher.runtime", str(directory)], stderr=subprocess.PIPE, start_new_session=True
    )


def pids(state_dir: Path) -> dict[str, int | None]:
    """Process by server, as the runtime says."""
    with ControlClient(state_dir) as client:
        return {p.name: p.pid for p in client.status().processes}


def test_a_detached_fleet_serves_shows_and_stops(
    deploy: Any, state_dir: Path, free_port: FreePort, llama_server: Path, smollm2: Path
) -> None:
    """A real model answers a chat through the front; status has figures; stop leaves nothing."""
    seen: list[Any] = []
    directory = deploy(real("small", free_port(), llama_server, smollm2))
    pid = spawn_detached(directory, on_event=seen.append)
    assert [type(e).__name__ for e in seen] == ["RuntimeStarted", "ServerStarting", "ServerReady", "FleetReady"]
    body = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{deploy.front}/v1/chat/completions", json=body, timeout=30)
    assert answer.json()["usage"]["completion_tokens"] == 4
    with ControlClient(state_dir) as client:
        status = client.status()
        assert (status.runtime_pid, status.front, status.ready) == (pid, deploy.front, True)
        assert status.processes[0].measured_bytes["ram"] > 100 * 1024**2
        with pytest.raises(KeyError, match="smal1"):
            client.stop(("smal1",))
        client.stop()
    assert not alive(status.processes[0].pid)
    with pytest.raises(NoRuntimeError):
        ControlClient(state_dir)


def test_the_front_answers_while_models_load(deploy: Any, free_port: FreePort) -> None:
    """/health is 200 and /ready 503 as soon as the runtime lives; SIGTERM then ends the start."""
    runtime = foreground(deploy(fake("slow", free_port(), "hang-loading")))
    assert runtime.stderr is not None
    for line in runtime.stderr:
        if b"ServerStarting" in line:
            break
    assert httpx.get(f"{deploy.front}/health").status_code == 200
    assert httpx.get(f"{deploy.front}/ready").status_code == 503
    runtime.send_signal(signal.SIGTERM)
    assert runtime.wait(10) == 0
    runtime.stderr.close()


def test_a_killed_runtime_is_survived_shown_and_adopted(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Kill -9 of the runtime: its servers go on, status shows them, the next runtime adopts the very same ones."""
    directory = deploy(fake("a", free_port()), fake("b", free_port()))
    runtime = spawn_detached(directory)
    before = pids(state_dir)
    os.kill(runtime, signal.SIGKILL)
    wait_until(lambda: lock_owner(state_dir / LOCK_NAME) is None)
    shown = offline_status(state_dir)
    assert ({p.name: p.pid for p in shown.processes}, shown.runtime_pid) == (before, None)
    seen: list[Any] = []
    spawn_detached(directory, on_event=seen.append)
    assert {e.name for e in seen if isinstance(e, events.ServerAdopted)} == {"a", "b"}
    assert pids(state_dir) == before
    os.kill(before["a"] or 0, signal.SIGKILL)
    wait_until(lambda: pids(state_dir)["a"] not in (None, before["a"]))
    with ControlClient(state_dir) as client:
        client.stop()
    assert offline_status(state_dir).processes == ()


def test_what_changed_meanwhile_is_not_adopted(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """A leftover with another argv, and one that is no longer compiled, are stopped; the same one is kept."""
    keep, change, gone = free_port(), free_port(), free_port()
    runtime = spawn_detached(deploy(fake("keep", keep), fake("change", change), fake("gone", gone)))
    before = pids(state_dir)
    os.kill(runtime, signal.SIGKILL)
    wait_until(lambda: lock_owner(state_dir / LOCK_NAME) is None)
    spawn_detached(deploy(fake("keep", keep), fake("change", change, note="new")))
    after = pids(state_dir)
    assert after["keep"] == before["keep"]
    assert after["change"] != before["change"]
    assert not alive(before["gone"])


def test_forged_state_is_reported_and_its_pid_spared(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """A state file with a reused pid: told as an event, the process lives, the server is started anew."""
    directory = deploy(fake("a", free_port()))
    runtime = spawn_detached(directory)
    path = state_dir / "servers/a.json"
    true = path.read_bytes()
    with ControlClient(state_dir) as client:
        client.stop()
    wait_until(lambda: not alive(runtime))
    with killed_on_failure(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])) as victim:
        path.write_bytes(msgspec.json.encode({**msgspec.json.decode(true), "pid": victim.pid}))
        seen: list[Any] = []
        spawn_detached(directory, on_event=seen.append)
        (ignored,) = [e for e in seen if isinstance(e, events.StateIgnored)]
        assert "another process" in ignored.reason
        assert pids(state_dir)["a"] != victim.pid
        assert victim.poll() is None
        victim.kill()


def test_a_second_runtime_is_refused_and_names_the_first(deploy: Any, free_port: FreePort) -> None:
    """HostError with the pid that holds the lock; the first goes on."""
    directory = deploy(fake("a", free_port()))
    pid = spawn_detached(directory)
    with pytest.raises(HostError, match=f"already run by process {pid}"):
        run(directory)
    with pytest.raises(HostError, match=f"already run by process {pid}"):
        spawn_detached(directory)
    assert httpx.get(f"{deploy.front}/ready").status_code == 200


def test_a_fatal_failure_reaches_who_detached(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """SuperviseError with the cause and the log; nothing runs afterwards."""
    with pytest.raises(SuperviseError) as caught:
        spawn_detached(deploy(fake("good", free_port()), fake("bad", free_port(), "exit-1")))
    (finding,) = caught.value.findings
    assert finding.code == "supervise/unknown-flag"
    assert any("--nonsense" in note for note in finding.notes)
    assert offline_status(state_dir).processes == ()


def test_a_taken_front_port_is_a_host_error(deploy: Any, free_port: FreePort) -> None:
    """Found before any server is started."""
    directory = deploy(fake("a", free_port()))
    port = int(deploy.front.rpartition(":")[2])
    with killed_on_failure(
        subprocess.Popen(
            [sys.executable, "-S", "-m", "http.server", "--bind", "127.0.0.1", str(port)], stderr=subprocess.DEVNULL
        )
    ) as stranger:
        wait_until(lambda: _answers(deploy.front))
        seen: list[Any] = []
        with pytest.raises(HostError, match=str(port)):
            run(directory, on_event=seen.append)
        assert [type(e).__name__ for e in seen] == ["FleetFailed"]
        stranger.kill()


def test_ctrl_c_drains_and_a_second_one_forces(deploy: Any, free_port: FreePort) -> None:
    """The first SIGINT waits for the grace of a server that ignores SIGTERM; the second does not."""
    directory = deploy(fake("stubborn", free_port(), "ignore-term", stop_grace_s=60))
    runtime = foreground(directory)
    wait_until(lambda: _answers(f"{deploy.front}/ready"))
    runtime.send_signal(signal.SIGINT)
    assert runtime.stderr is not None
    for line in runtime.stderr:
        if b"ServerStopping" in line:
            break
    assert runtime.poll() is None
    runtime.send_signal(signal.SIGINT)
    assert runtime.wait(10) == 0
    runtime.stderr.close()


def test_reload_restarts_only_what_changed(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Changed, new and gone servers are found; the rest keeps its process; drift is shown until reloaded."""
    keep, change, gone, new = (free_port() for _ in range(4))
    directory = deploy(fake("keep", keep), fake("change", change), fake("gone", gone))
    spawn_detached(directory)
    before = pids(state_dir)
    deploy(fake("keep", keep), fake("change", change, note="x"), fake("new", new))
    with ControlClient(state_dir) as client:
        assert client.reload(("keep",))["restarted"] == ["keep"]
        drift = {p.name: p.drift for p in client.status().processes}
        assert drift == {"keep": "", "change": "--note absent → x", "gone": "no longer compiled", "new": ""}
        changes = client.reload()
        assert changes == {
            "started": ["new"],
            "stopped": ["gone"],
            "restarted": ["change"],
            "kept": ["keep"],
            "reloaded": [],
            "front": [],
            "failed": {},
        }
        assert {p.name: (p.state, p.drift) for p in client.status().processes} == {
            "keep": ("ready", ""),
            "change": ("ready", ""),
            "new": ("ready", ""),
        }
        with pytest.raises(KeyError, match="nobody"):
            client.reload(("nobody",))
    assert pids(state_dir)["keep"] != before["keep"]
    assert not alive(before["gone"])


def test_a_manifest_that_cannot_be_read_is_a_config_error(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Torn or missing: ConfigError on start and on reload, and a running fleet goes on."""
    directory = deploy(fake("a", free_port()))
    spawn_detached(directory)
    (directory / "fleet.json").write_text("{")
    with pytest.raises(ConfigError, match=r"fleet\.json"):
        run(directory)
    with ControlClient(state_dir) as client:
        with pytest.raises(ConfigError, match=r"fleet\.json"):
            client.reload()
        assert client.status().ready
    with pytest.raises(ConfigError, match="cannot be read"):
        run(directory / "nowhere")


def test_a_long_state_path_still_has_a_control_socket(
    deploy: Any, tmp_path: Path, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unix socket addresses end at 108 bytes; ours do not have to fit."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / ("x" * 120)))
    spawn_detached(deploy(fake("a", free_port())))
    with ControlClient(deployment_state_dir("test")) as client:
        assert client.status().ready
        client.stop()


def hook(name: str, **changes: Any) -> HookUnit:
    """A hook with plain values."""
    base = HookUnit(name=name, server=None, path=None, body={}, command=(), python=None, timeout_s=5, on_failure="warn")
    return msgspec.structs.replace(base, **changes)


def test_hooks_run_after_ready_and_may_fail_softly(deploy: Any, free_port: FreePort, tmp_path: Path) -> None:
    """HTTP, command and entry point; an error and a timeout are told and do not stop the fleet."""
    mark = tmp_path / "mark"
    hooks = (
        hook("http", server="a", path="completion"),
        hook("command", command=("touch", str(mark))),
        hook("python", python="platform:node"),
        hook("bad", command=("sh", "-c", "echo no luck; exit 3")),
        hook("slow", command=("sleep", "60"), timeout_s=0.2),
        hook("absent", command=("/no/such/program",)),
    )
    seen: list[Any] = []
    spawn_detached(deploy(fake("a", free_port()), hooks=hooks), on_event=seen.append)
    errors = {e.name: e.error for e in seen if isinstance(e, events.HookDone)}
    assert [errors[n] for n in ("http", "command", "python")] == [None, None, None]
    assert errors["bad"] == "exit code 3 | no luck"
    assert errors["slow"] == "not done after 0.2 s"
    assert "/no/such/program" in (errors["absent"] or "")
    assert mark.exists()


def test_a_hook_that_must_not_fail_stops_the_fleet(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """on_failure=fail: SuperviseError, nothing left."""
    must = (hook("must", command=("false",), on_failure="fail"),)
    with pytest.raises(SuperviseError, match="hook must failed"):
        spawn_detached(deploy(fake("a", free_port()), hooks=must))
    assert offline_status(state_dir).processes == ()


def service(name: str, argv: tuple[str, ...], port: int, **changes: Any) -> ServiceUnit:
    """A service with plain values."""
    base = ServiceUnit(
        name=name,
        argv=argv,
        env={},
        host="127.0.0.1",
        port=port,
        health_path="/",
        start="boot",
        start_timeout_s=10,
        fatal=True,
        ram_bytes=0,
        builtin=None,
        container=None,
    )
    return msgspec.structs.replace(base, **changes)


def test_services_run_beside_the_servers(deploy: Any, state_dir: Path, free_port: FreePort, tmp_path: Path) -> None:
    """A command is started and watched, the builtin front is us, a missing container engine is told and survived."""
    port = free_port()
    web = (sys.executable, "-S", "-m", "http.server", "--bind", "127.0.0.1", str(port), "-d", str(tmp_path))
    services = (
        service("front", (), int(deploy.front.rpartition(":")[2]), builtin="front"),
        service("web", web, port),
        service("box", ("/no/such/podman", "run", "image"), free_port(), container="image"),
    )
    seen: list[Any] = []
    pid = spawn_detached(deploy(fake("a", free_port()), services=services), on_event=seen.append)
    with ControlClient(state_dir) as client:
        found = {p.name: p for p in client.status().processes}
    assert (found["front"].state, found["front"].pid) == ("ready", pid)
    assert (found["web"].kind, found["web"].state) == ("service", "ready")
    assert (found["box"].state, "not there" in (found["box"].error or "")) == ("failed", True)
    assert seen[-1].failed == ("box",)


def test_the_builtin_front_by_its_name(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Stopping it is refused in words, and what is beside it is stopped; a reload moves it, or changes nothing."""
    port = int(deploy.front.rpartition(":")[2])
    services = (service("front", (), port, builtin="front"),)
    fleet = manifest(fake("a", free_port()), fake("b", free_port()), services=services)
    directory = deploy(*fleet.servers, services=services)
    spawn_detached(directory)
    with ControlClient(state_dir) as client:
        before = pids(state_dir)
        with pytest.raises(SuperviseError, match=r"supervise/front-stays.*b stopped"):
            client.stop(("front", "b"))
        assert client.status().front is not None
        assert pids(state_dir)["b"] is None
        done = client.reload(("front",), directory)
        assert (done["reloaded"], done["restarted"]) == (["front"], [])
        assert pids(state_dir)["a"] == before["a"]
        elsewhere = free_port()
        moved = fleet
        write_deployment_dir(directory, moved, elsewhere)
        with httpx.Client() as kept_alive:
            assert kept_alive.get(f"{deploy.front}/health").status_code == 200
            done = client.reload((), directory)
            assert done["front"] == [f"port {port} → {elsewhere}"]
            assert done["restarted"] == []
            assert client.status().front == f"http://127.0.0.1:{elsewhere}"
            with pytest.raises(httpx.ConnectError):
                kept_alive.get(f"{deploy.front}/health")
        assert httpx.get(f"http://127.0.0.1:{elsewhere}/health").status_code == 200
        with socket.create_server(("127.0.0.1", 0)) as taken:
            write_deployment_dir(directory, moved, taken.getsockname()[1])
            with pytest.raises(HostError, match="route/cannot-listen"):
                client.reload((), directory)
        changed = msgspec.structs.replace(SUPERVISOR, state_dir=str(state_dir / "x"))
        write_deployment_dir(directory, msgspec.structs.replace(moved, supervisor=changed), elsewhere)
        with pytest.raises(SuperviseError, match="supervise/state-moved"):
            client.reload((), directory)
        assert httpx.get(f"http://127.0.0.1:{elsewhere}/health").status_code == 200
        assert pids(state_dir)["a"] == before["a"]


def test_the_runtime_imports_no_compiler() -> None:
    """Neither Hydra nor Jinja nor Typer, not even through others, and no httpx before it is needed."""
    code = (
        "import sys, launcher.runtime, launcher.route, uvloop; from launcher.route import api;"
        "bad = {'hydra', 'omegaconf', 'jinja2', 'typer', 'rich', 'yaml', 'httpx', 'psutil'} & set(sys.modules);"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_idle_and_exclusive_work_through_the_front(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """A request wakes a server on demand; it goes to sleep; concurrent requests to two exclusives all succeed."""
    port = free_port()
    quick = msgspec.structs.replace(SUPERVISOR, drain_timeout_s=5)
    directory = deploy(
        fake("a", port, exclusive="g", start="demand"),
        fake("b", port, exclusive="g", start="demand"),
        fake("warm", free_port(), start="demand", idle_timeout_s=0.3),
        supervisor=quick,
    )
    spawn_detached(directory)
    assert httpx.post(f"{deploy.front}/completion", json={"model": "warm"}, timeout=20).status_code == 200
    wait_until(lambda: pids(state_dir)["warm"] is None)
    from concurrent.futures import ThreadPoolExecutor

    def ask(name: str) -> int:
        return httpx.post(f"{deploy.front}/completion", json={"model": name, "sleep_s": 0.05}, timeout=30).status_code

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, "ababab")) == {200}


def test_the_front_alone_routes_to_servers_of_others(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Route only: no process is started, requests reach what already listens, SIGTERM ends it, the server lives."""
    port = free_port()
    directory = deploy(fake("a", port))
    serves = [sys.executable, "-S", str(FAKE), "--port", str(port), "--alias", "a"]
    routes = [sys.executable, "-m", "launcher.runtime", str(directory), "--route-only"]
    with (
        killed_on_failure(subprocess.Popen(serves)) as theirs,
        killed_on_failure(subprocess.Popen(routes, stderr=subprocess.DEVNULL)) as front,
    ):
        wait_until(lambda: _answers(f"{deploy.front}/health") and _answers(f"http://127.0.0.1:{port}/health"))
        assert httpx.post(f"{deploy.front}/completion", json={"model": "a"}).status_code == 200
        front.send_signal(signal.SIGTERM)
        assert (front.wait(10), theirs.poll()) == (0, None)
        assert offline_status(state_dir).processes == ()
        theirs.kill()


def _answers(url: str) -> bool:
    """Whether `url` gives 200."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
