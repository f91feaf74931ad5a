"""The readiness gate of units, run by a real sh against a real server and against everything that is not it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.engine import recorded
from launcher.ir.plan import ServerPlan
from launcher.render import render_argv, render_fleet
from launcher.render.probes import proof_request
from tests.render.conftest import running
from tests.render.plan_factory import fleet_plan, server_plan

EMBEDDED = recorded("b10068")


@pytest.fixture
def gate(templates: dict[str, str], tmp_path: Path) -> Path:
    """The rendered script, executable."""
    rendered = render_fleet(fleet_plan(server_plan()), {"default": ("/bin/true", EMBEDDED)}, templates, "0.1.0")
    (file,) = [f for f in rendered.deployment.files if f.path == "libexec/launch-gate"]
    assert file.executable
    path = tmp_path / "launch-gate"
    path.write_text(file.text)
    path.chmod(0o755)
    return path


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives and serves nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def ready(
    llama_server: Path, smollm2: Path, free_port: Callable[[], int], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A real server named frontdoor that is ready: its process and URL."""
    server = server_plan(model_path=str(smollm2), port=free_port(), n_ctx=512, n_ctx_per_slot=256)
    url = f"http://127.0.0.1:{server.port}"
    argv, _ = render_argv(server, EMBEDDED, str(llama_server))
    with running(argv, url, tmp_path / "log") as process:
        yield process, url


def begin(gate: Path, pid: int, *words: str) -> subprocess.Popen[str]:
    """The gate as systemd starts it, with MAINPID."""
    return subprocess.Popen([gate, *words], env={**os.environ, "MAINPID": str(pid)}, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and stderr of a gate, once it has ended."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_the_script_is_plain_sh(gate: Path) -> None:
    """It parses without bash."""
    subprocess.run(["sh", "-n", gate], check=True)


@pytest.mark.parametrize("server", [server_plan(), server_plan(embedding=True), server_plan(pooling="rank")])
def test_every_kind_has_a_proof(server: ServerPlan) -> None:
    """A path and a JSON body, whatever the server does."""
    path, body = proof_request(server)
    assert path.startswith("/")
    assert json.loads(body)


def test_the_gate_opens_for_the_right_server_only(gate: Path, ready: tuple[subprocess.Popen[bytes], str]) -> None:
    """Open for the server that answers to its name and to the proof; shut where the proof is refused."""
    process, url = ready
    assert outcome(begin(gate, process.pid, "frontdoor", url, *proof_request(server_plan()))) == (0, "")
    refused = outcome(begin(gate, process.pid, "frontdoor", url, "/embedding", "{}"))
    assert refused == (1, "launch-gate: frontdoor does not answer on /embedding\n")


def test_a_stranger_on_the_port_is_not_ready(
    gate: Path, ready: tuple[subprocess.Popen[bytes], str], sleeper: subprocess.Popen[bytes]
) -> None:
    """Another server answers on the port of `coder`, whose own process lives a while and then dies."""
    waiting = begin(gate, sleeper.pid, "coder", ready[1])
    time.sleep(0.5)
    assert waiting.poll() is None
    sleeper.kill()
    sleeper.wait()
    assert outcome(waiting) == (1, "launch-gate: coder has exited\n")


def test_dead_from_the_start(gate: Path, sleeper: subprocess.Popen[bytes], free_port: Callable[[], int]) -> None:
    """A server that exited at once fails the gate at once, whatever the timeout."""
    sleeper.kill()
    sleeper.wait()
    gone = outcome(begin(gate, sleeper.pid, "x", f"http://127.0.0.1:{free_port()}"))
    assert gone == (1, "launch-gate: x has exited\n")
