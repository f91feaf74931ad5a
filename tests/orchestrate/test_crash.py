"""Kill -9 of the runtime, the worker and the validator at every step of a five-block generation."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from launcher.ir.config import OrchestrationConfig, ValidationConfig
from launcher.ir.fleet import RoutingTable
from launcher.manifest import encode_document
from launcher.orchestrate import FILE_NAME
from launcher.runtime import ControlClient, spawn_detached
from launcher.supervise import LOCK_NAME, stop_orphans
from tests.late import Late
from tests.locks import lock_owner
from tests.supervise.conftest import SUPERVISOR, manifest, routes, state_dir, unit

openai = Late("openai")

__all__ = ["state_dir"]  # the fixture
pytestmark = pytest.mark.timeout(400)
SERVER = Path(__file__).with_name("scripted_server.py")
WHOLE = [f"block {n}" for n in range(1, 6)]
MESSAGES: Any = [{"role": "user", "content": "Write."}]
BLOCKS = [(1, 3, 5), pytest.param((2, 4), marks=pytest.mark.slow)]
"""At which blocks something is killed; each takes a second or two."""


class Deployment:
    """A rendered fleet of scripted servers, run by a real runtime."""

    def __init__(self, folder: Path, state: Path, free_port: Callable[[], int]) -> None:
        """Written, not started."""
        self.folder, self.state = folder, state
        servers = []
        device = free_port()
        for role in ("router", "validator", "worker", "other_worker"):
            takes_turns = {"exclusive": "device", "default": role == "worker"} if role.endswith("worker") else {}
            port, model = device if takes_turns else free_port(), f"/models/{role}.gguf"
            argv = (sys.executable, "-S", str(SERVER), "--port", str(port), "--model", model)
            argv += ("--role", role, "--folder", str(folder))
            servers.append(unit(role, argv, port, model, n_ctx_per_slot=2048, **takes_turns))
        patient = msgspec.structs.replace(SUPERVISOR, crash_loop_failures=1000)
        self.manifest = manifest(*servers, supervisor=patient)
        front = free_port()
        self.url = f"http://127.0.0.1:{front}"
        orchestration = OrchestrationConfig(
            router="router", workers=("worker",), validation=ValidationConfig(validator="validator")
        )
        table: RoutingTable = msgspec.structs.replace(routes(self.manifest, front), orchestration=orchestration)
        (folder / "fleet.json").write_bytes(encode_document(self.manifest))
        (folder / "routes.json").write_bytes(encode_document(table))

    def start(self) -> None:
        """Start, or start again: the servers that live are adopted."""
        (self.folder / "runtime.pid").write_text(str(spawn_detached(self.folder)))

    def kill_at(self, role: str, block: int, when: str, victim: str) -> None:
        """Have `victim` killed when `role` is asked about `block`."""
        plan = {"role": role, "block": block, "when": when, "victim": victim}
        (self.folder / "kill.json").write_text(json.dumps(plan))

    def ask(self, generation: str, model: str = "worker") -> tuple[list[str], Exception | None, str | None]:
        """Five blocks as a stream with the public client: the blocks that came, the error, the finish reason."""
        blocks: list[str] = []
        reason = None
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)
        headers = {"X-Generation-Id": generation, "X-Validation-Policy": "block_by_block"}
        with client:
            try:
                stream = client.chat.completions.create(
                    model=model, messages=MESSAGES, stream=True, extra_headers=headers
                )
                for chunk in stream:
                    blocks += [chunk.choices[0].delta.content.strip()] if chunk.choices[0].delta.content else []
                    reason = chunk.choices[0].finish_reason or reason
            except (openai.APIError, httpx.TransportError) as error:
                return blocks, error, reason
        return blocks, None, reason

    def on_disk(self, generation: str) -> tuple[list[str], int, int]:
        """Committed blocks, their verdicts, their journal entries."""
        with contextlib.closing(sqlite3.connect(self.state / FILE_NAME)) as db:
            where = "FROM {} WHERE generation = ?"
            blocks = db.execute(f"SELECT text {where.format('block')} ORDER BY seq", (generation,)).fetchall()
            passed = f"SELECT count(*) {where.format('verdict')} AND committed = 1 AND kind = 'pass'"
            commits = f"SELECT count(*) {where.format('journal')} AND kind = 'commit'"
            counts = [db.execute(query, (generation,)).fetchone()[0] for query in (passed, commits)]
        return [row[0] for row in blocks], counts[0], counts[1]

    def done(self) -> bool:
        """Whether the kill that was asked for has happened."""
        return not (self.folder / "kill.json").exists()


@pytest.fixture
def deployment(tmp_path: Path, state_dir: Path, free_port: Callable[[], int], no_orphans: None) -> Iterator[Deployment]:
    """A fleet that runs; nothing of it is left at the end."""
    folder = tmp_path / "deployment"
    folder.mkdir(mode=0o700)
    made = Deployment(folder, state_dir, free_port)
    made.start()
    yield made
    owner = lock_owner(state_dir / LOCK_NAME)
    if owner is not None:
        with ControlClient(state_dir) as client:
            client.stop()
    wait_until(lambda: lock_owner(state_dir / LOCK_NAME) is None)
    stop_orphans(state_dir, grace_s=1)


def wait_until(holds: Callable[[], Any], timeout_s: float = 60) -> None:
    """Poll until `holds()`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps(blocks: tuple[int, ...]) -> list[tuple[str, int]]:
    """By whom which block is made, or judged."""
    return [(role, block) for block in blocks for role in ("worker", "validator")]


@pytest.mark.parametrize("killed_at", BLOCKS)
@pytest.mark.parametrize("victim", ["worker", "validator"])
def test_a_server_is_killed_at_every_step(deployment: Deployment, victim: str, killed_at: tuple[int, ...]) -> None:
    """Before each block and each verdict: it is started again, and the client gets all five blocks, once each.

    Where the client gets an error it has a code, and the same request goes on from what was committed.
    """
    for role, block in steps(killed_at):
        generation = f"{role}{block}"
        deployment.kill_at(role, block, "before", victim)
        blocks, error, reason = deployment.ask(generation)
        assert deployment.done(), (role, block)
        if error is not None:
            assert isinstance(error, openai.APIError)
            assert error.code
            assert reason is None
            assert deployment.on_disk(generation)[0] == blocks == WHOLE[: len(blocks)]
            blocks, error, reason = deployment.ask(generation)
        assert (blocks, error, reason) == (WHOLE, None, "stop"), (role, block)
        assert deployment.on_disk(generation) == (WHOLE, 5, 5)


@pytest.mark.parametrize("killed_at", BLOCKS)
def test_the_runtime_is_killed_at_every_step(deployment: Deployment, killed_at: tuple[int, ...]) -> None:
    """Before each block, before each verdict, and while each block is committed.

    The client has an error, never a clean end; what it got is on disk; the next start is clean, says `interrupted`, and
    the same request goes on: five blocks, one verdict and one entry each.
    """
    before, after = ((*step, "before") for step in steps(killed_at)), (("validator", b, "after") for b in killed_at)
    for role, block, when in (*before, *after):
        generation = f"{role}{block}{when}"
        deployment.kill_at(role, block, when, "runtime")
        blocks, error, reason = deployment.ask(generation)
        assert deployment.done(), generation
        assert error is not None, generation
        assert reason is None, generation
        wait_until(lambda: lock_owner(deployment.state / LOCK_NAME) is None)
        deployment.start()
        report = httpx.get(f"{deployment.url}/v1/generations/{generation}", timeout=10).json()
        assert (report["status"], report["blocks"][: len(blocks)]) == ("interrupted", blocks)
        assert len(report["blocks"]) in (block - 1, block)
        blocks, error, reason = deployment.ask(generation)
        assert (blocks, error, reason) == (WHOLE, None, "stop"), generation
        assert deployment.on_disk(generation) == (WHOLE, 5, 5)


def test_two_workers_take_turns_block_by_block(deployment: Deployment) -> None:
    """Answers of two workers that exclude each other, at the same time: both complete, each by its own worker."""
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(deployment.ask, model, model) for model in ("worker", "other_worker")]
        assert [a.result() for a in asked] == [(WHOLE, None, "stop")] * 2
    with contextlib.closing(sqlite3.connect(deployment.state / FILE_NAME)) as db:
        found = db.execute("SELECT DISTINCT generation, server FROM block").fetchall()
    assert sorted(found) == [("other_worker", "other_worker"), ("worker", "worker")]
