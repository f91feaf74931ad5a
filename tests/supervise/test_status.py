"""What `status` says: hooks and what became of them, memory shared and on GPUs, queues and speeds."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from launcher.base import procfs
from launcher.compiler import compile_fleet, render
from launcher.errors import SuperviseError
from launcher.ir.fleet import HookUnit
from launcher.ir.host import CardUse
from launcher.manifest import argv_digest
from launcher.runtime import ControlClient, spawn_detached
from launcher.supervise.measuring import Measurer
from launcher.supervise.status import left_s
from tests.supervise.conftest import Fleet, fake, manifest, real, write_deployment_dir

FreePort = Callable[[], int]


def hook(name: str, **changes: Any) -> HookUnit:
    """A hook with plain values."""
    base = HookUnit(name=name, server=None, path=None, body={}, command=(), python=None, timeout_s=5, on_failure="warn")
    return msgspec.structs.replace(base, **changes)


async def test_status_says_what_became_of_hooks(fleet: Fleet, free_port: FreePort) -> None:
    """In order, with kind, time and error; what was not reached is pending; a restarted server's hook runs again."""
    hooks = (
        hook("warmup", server="a", path="/completion"),
        hook("slow", command=("sleep", "60"), timeout_s=0.1),
        hook("entry", python="platform:node"),
        hook("must", command=("sh", "-c", "exit 3"), on_failure="fail"),
        hook("after", command=("true",)),
    )
    supervisor, _ = fleet(fake("a", free_port(), fatal=False), hooks=hooks)
    assert {h.state for h in supervisor.status().hooks} == {"pending"}
    with pytest.raises(SuperviseError, match="hook must failed: exit code 3"):
        await supervisor.start()
    shown = [(h.name, h.kind, h.state, h.error) for h in supervisor.status().hooks]
    assert shown == [
        ("warmup", "http", "done", None),
        ("slow", "command", "failed", "not done after 0.1 s"),
        ("entry", "python", "done", None),
        ("must", "command", "failed", "exit code 3"),
        ("after", "command", "pending", None),
    ]
    assert all(h.seconds is not None and h.finished_at for h in supervisor.status().hooks[:4])


@pytest.mark.parametrize(
    ("starting_s", "load_s", "planned", "measured", "expected"),
    [
        (10, None, {}, {}, None),
        (10, 30, {"ram": 100}, {}, 20),
        (40, 30, {"ram": 100}, {"ram": 4}, 0),  # too little is there to go by
        (10, 30, {"ram": 100}, {"ram": 25}, 30),
        (10, None, {"ram": 100, "cuda0": 300}, {"ram": 100, "cuda0": 100}, 10),
        (10, 30, {"ram": 100, "cuda0": 300}, {"ram": 100}, 20),  # nobody tells what is on the card
        (10, 30, {"ram": 100}, {"ram": 900}, 0),
    ],
)
def test_what_is_left_of_a_start(
    starting_s: float, load_s: float | None, planned: dict[str, int], measured: dict[str, int], expected: float | None
) -> None:
    """By what is loaded, else by the medium's speed; nothing where neither is known."""
    assert left_s(starting_s, load_s, planned, measured) == expected


async def test_a_reload_runs_hooks_where_they_are_needed(fleet: Fleet, free_port: FreePort, tmp_path: Path) -> None:
    """Those that ask a server that was restarted, and new ones; the others keep their result."""
    ports = {name: free_port() for name in "ab"}
    log = tmp_path / "ran"
    count = hook("count", command=("sh", "-c", f"echo x >> {log}"))
    ask = hook("ask", server="b", path="/completion")
    servers = [fake(name, port) for name, port in ports.items()]
    supervisor, watcher = fleet(*servers, hooks=(count, ask))
    await supervisor.start()
    changed = manifest(servers[0], fake("b", ports["b"], note="x"), hooks=(count, ask, hook("new", command=("true",))))
    await supervisor.reload(changed, ())
    assert [(h.name, h.state) for h in supervisor.status().hooks] == [
        ("count", "done"),
        ("ask", "done"),
        ("new", "done"),
    ]
    assert log.read_text() == "x\n"
    done = [e.name for e in watcher.events if type(e).__name__ == "HookDone"]
    assert done == ["count", "ask", "ask", "new"]


async def test_the_documents_hooks_run_in_its_order(
    fleet: Fleet,
    free_port: FreePort,
    llama_server: Path,
    tiny_models: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its steps as a user writes them around the shipped one: databases, seeds, a real embedding, tools."""
    own = {
        "memory_databases": "memory_databases:init",
        "repl_seeds": "seed_loader:init",
        "tool_registry": "orchestration.tools.executor:get_executor",
    }
    on = [f"+hooks.{name}.python={entry}" for name, entry in own.items()]
    units = render(compile_fleet(["hardware=epyc", "profile=hot_only", *on])).manifest.hooks
    names = ["embedder_warmup", *own]
    assert [unit.name for unit in units] == names
    log = tmp_path / "ran"
    for module, function in (u.python.split(":") for u in units if u.python):
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def {function}():\n    open({str(log)!r}, 'a').write({module!r} + '\\n')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    embedder = next(unit.server for unit in units if unit.name == "embedder_warmup")
    flags = ("--embedding", "--pooling", "mean")
    server = real(embedder or "", free_port(), llama_server, tiny_models("bert"), *flags, probe="embedding")
    supervisor, _ = fleet(server, hooks=units)
    await supervisor.start()
    assert [(h.name, h.state, h.error) for h in supervisor.status().hooks] == [(name, "done", None) for name in names]
    assert log.read_text().split() == ["memory_databases", "seed_loader", "orchestration.tools.executor"]


async def test_a_hook_that_returns_false_has_failed(
    fleet: Fleet, free_port: FreePort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that raises; what it returns else is its own affair."""
    (tmp_path / "answers.py").write_text("def no():\n    return False\ndef nothing():\n    return None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    units = [hook(name, python=f"answers:{name}") for name in ("no", "nothing")]
    supervisor, _ = fleet(fake("a", free_port()), hooks=tuple(units))
    await supervisor.start()
    no, nothing = supervisor.status().hooks
    assert (no.state, nothing.state) == ("failed", "done")
    assert "it returned False" in (no.error or "")


# --- memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def session(no_orphans: None) -> Iterator[int]:
    """The leader of a session with a child in it, as a server behind a wrapper is."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo up; wait"], stdout=subprocess.PIPE, start_new_session=True
    ) as p:
        assert p.stdout is not None
        p.stdout.readline()
        yield p.pid
        for member in procfs.session_members(p.pid):
            subprocess.run(["kill", "-9", str(member.pid)], check=False)


def test_memory_of_a_session_is_summed(session: int) -> None:
    """PSS of leader and child together, less than their RSS; the GPUs' bytes of both, strangers' left out."""
    members = [m.pid for m in procfs.session_members(session)]
    assert len(members) == 2
    first, second = members
    uses = [CardUse("cuda0", first, 100), CardUse("cuda0", second, 20), CardUse("cuda0", second, 3)]
    uses += [CardUse("rocm0", second, 5), CardUse("cuda0", 1, 9999), CardUse("cuda7", first, 9999)]
    asked: list[Collection[int]] = []

    def ask(pids: Collection[int]) -> list[CardUse]:
        asked.append(pids)
        return uses

    found = Measurer(("cuda0", "rocm0"), ask).measure({session: ()})[session]
    assert asked == [sorted(members)]
    assert found.gpu_bytes == {"cuda0": 123, "rocm0": 5}
    assert found.pss_bytes is not None
    resident = sum(m.rss_bytes for m in procfs.session_members(session))
    assert 0 < found.pss_bytes <= resident


def test_a_fleet_with_cards_that_no_driver_tells_of(session: int) -> None:
    """Who asks by default is every driver that is here: what a process takes of others is not known."""
    found = Measurer(("metal0", "rpc0")).measure({session: ()})[session]
    assert (found.gpu_bytes, found.pss_bytes is not None) == ({}, True)


# --- requests --------------------------------------------------------------------------------------------------


def test_queues_and_speeds_are_those_of_requests(
    state_dir: Path, tmp_path: Path, free_port: FreePort, llama_server: Path, smollm2: Path, no_orphans: None
) -> None:
    """A WARM server: who waits for its start or its slot is counted; then the speed that its answers reported."""
    front = free_port()
    unit, go = real("warm", free_port(), llama_server, smollm2, start="demand", tier="warm"), tmp_path / "go"
    argv = ("sh", "-c", f'while [ ! -e "{go}" ]; do sleep 0.05; done; exec "$0" "$@"', *unit.argv)
    fleet = manifest(msgspec.structs.replace(unit, argv=argv, argv_digest=argv_digest(argv)))
    spawn_detached(write_deployment_dir(tmp_path / "deployment", fleet, front))
    body = {"model": "warm", "prompt": "Once upon a time", "n_predict": 24, "ignore_eos": True}
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.post(f"http://127.0.0.1:{front}/completion", json=body, timeout=60).status_code)

    with ControlClient(state_dir) as client:
        (before,) = client.status().processes
        assert (before.tokens_per_second, before.queued) == (None, 0)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        most: dict[str, int] = {}
        while any(thread.is_alive() for thread in threads):
            (now,) = client.status().processes
            most[now.state] = max(most.get(now.state, 0), now.queued)
            if most.get("starting") == 4:
                go.touch()
            time.sleep(0.005)  # two cores: asking without a pause takes one of them from the server
        assert answers == [200] * 4
        assert most["starting"] == 4
        assert 1 <= most["ready"] <= 4  # one is computed, the others wait, as far as they were seen
        (after,) = client.status().processes
        assert after.queued == 0
        assert (after.tokens_per_second or 0) > 1
        client.stop()
