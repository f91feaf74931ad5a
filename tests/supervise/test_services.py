"""Services beside the llama-servers: the shipped ones, as programs and as containers that really run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from launcher.compiler import compile_fleet, render
from launcher.ir.fleet import FaceUnit, OutsideUnit, ServiceUnit
from launcher.route import Front
from launcher.supervise import Supervisor, events, stop_orphans
from launcher.supervise.process import engine_and_name, main_process
from tests.route.fleet import ask, post, running, table, target
from tests.supervise.conftest import Fleet, fake, real

FreePort = Callable[[], int]
NAME = "launch-nextplaid-code"


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_orphans: None) -> Iterator[Path]:
    """`podman` on PATH, of the fake kind; gives the directory of its containers, which must be gone at the end."""
    programs, boxes = tmp_path / "bin", tmp_path / "boxes"
    programs.mkdir()
    boxes.mkdir()
    source = Path(__file__).with_name("fake_podman.py")
    (programs / "podman").write_text(f'#!/bin/sh\nexec {sys.executable} -S {source} "$@"\n')
    (programs / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PODMAN_DIR", str(boxes))
    yield boxes
    assert [path.name for path in boxes.iterdir() if path.suffix != ".args"] == []


def retrieval(port: int) -> ServiceUnit:
    """The document's code retrieval as it is compiled, on `port`."""
    box = "services.nextplaid-code.container"
    overrides = [f"services.nextplaid-code.port={port}", f'{box}.ports=["{port}:8080"]', f"{box}.image=web:1"]
    services = render(compile_fleet(["hardware=epyc", "profile=hot_only", *overrides])).manifest.services
    return next(s for s in services if s.name == "nextplaid-code")


def box_pid(boxes: Path) -> int:
    """The process in the container."""
    return int((boxes / NAME).read_text())


def alive(pid: int) -> bool:
    """Whether the process lives."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def reaped(supervisor: Supervisor) -> None:
    """Wait for the container's client of a runtime that let go of it, as its parent."""
    process = supervisor._runners["nextplaid-code"]._process
    assert process is not None
    assert process.popen is not None
    await asyncio.to_thread(process.popen.wait)


async def shown(supervisor: Supervisor) -> dict[str, object]:
    """The container's line of `status`, measured now."""
    measurer = supervisor._measurer
    clients = {r.pid: r.spec.unit.argv for r in supervisor._runners.values() if r.pid}
    measurer.figures = await asyncio.to_thread(measurer.measure, clients)
    process = next(p for p in supervisor.status().processes if p.name == "nextplaid-code")
    return {"state": process.state, "planned": process.planned_bytes, "measured": process.measured_bytes}


async def test_a_container_lives_like_a_server(fleet: Fleet, free_port: FreePort, podman: Path) -> None:
    """Compiled, started with its arguments, counted with its own memory, healed after a kill, stopped whole."""
    port = free_port()
    unit = retrieval(port)
    supervisor, watcher = fleet(fake("a", free_port()), services=(unit,))
    await supervisor.start()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/health")).text == "ok"
    words = (podman / f"{NAME}.args").read_text().splitlines()
    assert words[-1] == "--int8"
    assert "--volume=nextplaid-code-index:/data/indices" in words
    first = box_pid(podman)
    line = await shown(supervisor)
    assert (line["state"], line["planned"]) == ("ready", {"ram": 1_200_000_000})
    assert line["measured"]["ram"] >= 32 << 20  # type: ignore[index] # the container's, not its client's
    # the client dies, the container does not: it is removed and started anew
    client_pid = supervisor._runners["nextplaid-code"].pid or 0
    os.kill(client_pid, signal.SIGKILL)
    await watcher.until(events.ServerReady, "nextplaid-code", count=2)
    assert not alive(first)
    assert box_pid(podman) != first
    await supervisor.stop(("nextplaid-code",))
    assert not (podman / NAME).exists()


async def test_a_container_that_was_left_is_replaced(
    fleet: Fleet, free_port: FreePort, podman: Path, state_dir: Path
) -> None:
    """Runtime and client killed together: the next runtime does not stumble over the port that is still held."""
    port = free_port()
    unit = retrieval(port)
    supervisor, _ = fleet(services=(unit,))
    await supervisor.start()
    first, client_pid = box_pid(podman), supervisor._runners["nextplaid-code"].pid or 0
    supervisor.abandon()
    os.kill(client_pid, signal.SIGKILL)
    await reaped(supervisor)
    assert alive(first)
    again, _ = fleet(services=(unit,))
    await again.recover()
    await again.start()
    assert not alive(first)
    assert alive(box_pid(podman))
    # and when nobody comes after: `launch stop` finds the client, and the container behind it
    last = box_pid(podman)
    again.abandon()
    stopped = await asyncio.to_thread(stop_orphans, state_dir, grace_s=0)
    assert [o.name for o in stopped.stopped] == ["nextplaid-code"]
    assert not alive(last)
    await reaped(again)


async def test_without_an_engine_the_fleet_starts_and_says_so(
    fleet: Fleet, free_port: FreePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finding with a code and a remedy; the servers serve, the service is failed."""
    monkeypatch.setenv("PATH", "/nowhere")
    supervisor, watcher = fleet(fake("a", free_port()), services=(retrieval(free_port()),))
    await supervisor.start()
    (failed,) = watcher.of(events.ServerFailed)
    assert (failed.code, failed.final) == ("supervise/container-engine-missing", True)
    assert failed.remedy
    assert {p.name: p.state for p in supervisor.status().processes} == {"a": "ready", "nextplaid-code": "failed"}


async def test_the_documents_ocr_runs_as_a_program(
    fleet: Fleet, free_port: FreePort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped command line starts the operators' own program, which is watched, restarted and counted."""
    port = free_port()
    program = tmp_path / "document-formalizer"
    source = Path(__file__).with_name("fake_podman.py")
    code = f"import sys; sys.path.insert(0, {str(source.parent)!r}); import fake_podman; exec(fake_podman.WEB)"
    program.write_text(f'#!/bin/sh\n[ "$6" = 8 ] && [ "$8" = 12 ] && exec {sys.executable} -S -c "{code}" "$4"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PODMAN_DIR", str(tmp_path))
    words = f"[document-formalizer,--host,127.0.0.1,--port,'{port}',--workers,'8',--threads,'12']"
    overrides = [f"services.document_formalizer.port={port}", f"services.document_formalizer.command={words}"]
    services = render(compile_fleet(["hardware=epyc", "profile=hot_only", *overrides])).manifest.services
    supervisor, watcher = fleet(services=[s for s in services if s.name == "document_formalizer"])
    await supervisor.start()
    (line,) = supervisor.status().processes
    assert (line.kind, line.state, line.model) == ("service", "ready", "LightOnOCR-2-1B")
    assert line.planned_bytes == {"ram": 16_000_000_000}
    assert line.measured_bytes["ram"] >= 32 << 20
    os.kill(line.pid or 0, signal.SIGKILL)
    await watcher.until(events.ServerReady, "document_formalizer", count=2)
    assert supervisor.status().processes[0].restarts == 1


def test_engines_and_names_are_read_from_the_command() -> None:
    """Podman and docker, by path too; anything else is no container."""
    run = ("run", "--rm", "--name=box", "image")
    assert engine_and_name(("podman", *run)) == ("podman", "box")
    assert engine_and_name(("/usr/bin/docker", *run)) == ("/usr/bin/docker", "box")
    assert engine_and_name(("podman", "ps")) is None
    assert engine_and_name(("podman", "run", "image")) is None
    assert engine_and_name(("llama-server", *run)) is None
    assert main_process(("podman", "ps")) is None


async def test_a_service_with_models_takes_turns(
    fleet: Fleet, free_port: FreePort, llama_server: Path, tiny_models: Callable[..., Path]
) -> None:
    """Asked by its model it is started in the place of the server of its group, and goes when that one is asked."""
    model = tiny_models("llama")
    other = real("other", free_port(), llama_server, model, "--alias", "theirs")
    service = ServiceUnit(
        name="other",
        argv=other.argv,
        env={},
        host="127.0.0.1",
        port=other.port,
        ram_bytes=1,
        health_path="/health",
        start="demand",
        start_timeout_s=20,
        fatal=False,
        builtin=None,
        container=None,
        exclusive="turns",
    )
    own = real("own", free_port(), llama_server, model, "--alias", "own", exclusive="turns", default=True)
    supervisor, watcher = fleet(own, services=(service,))
    await supervisor.start()
    how = OutsideUnit(url=f"http://127.0.0.1:{other.port}/v1", health_path="/health", supervised=True)
    faces = {"org/m:q4": FaceUnit(request_set={"model": "theirs"})}
    units = (
        target("own", own.port, exclusive="turns"),
        target("other", other.port, exclusive="turns", start="demand", outside=how, faces=faces),
    )
    names = {"own": ("own",), "other": ("other",), "org/m:q4": ("other",)}
    async with running(Front(table(*units, names=names), supervisor)) as port:
        said = [
            (await ask(port, post({"model": name, "prompt": "a", "max_tokens": 1}, "/v1/completions"))).json()["model"]
            for name in ("own", "org/m:q4", "own")
        ]
    assert said == ["own", "theirs", "own"]
    assert [(swap.name, swap.instead_of) for swap in watcher.of(events.Swapped)] == [
        ("other", ("own",)),
        ("own", ("other",)),
    ]
