"""Servers that the shipped fleets may have and that others do not test: one that sleeps, and a reranker; both real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import SuperviseError
from launcher.ir.live import ServerState
from launcher.supervise import http
from tests.supervise.conftest import Fleet, real


async def test_a_sleeping_server_is_seen_and_woken(
    fleet: Fleet, free_port: Callable[[], int], llama_server: Path, tiny_models: Callable[..., Path]
) -> None:
    """SLEEPING follows idleness, looking does not end it, a request does; it stays READY for the fleet all along."""
    port = free_port()
    flags = ("--sleep-idle-seconds", "1", "--grammar", "root ::= [a-z]+")
    supervisor, _ = fleet(real("sleepy", port, llama_server, tiny_models("llama"), *flags))
    await supervisor.start()

    async def until(*states: ServerState) -> None:
        async with asyncio.timeout(30):
            await supervisor._runners["sleepy"].until(*states)

    (before,) = supervisor.status().processes
    for _ in range(2):
        await until("sleeping")
        assert supervisor.ready()
        await asyncio.sleep(1)  # several looks at its health
        assert supervisor.status().processes[0].state == "sleeping"
        body = {"prompt": "a", "n_predict": 2}
        answer = await http.request("127.0.0.1", port, "/completion", body=body, timeout_s=30)
        assert answer.status == 200
        await until("ready")
    (after,) = supervisor.status().processes
    assert (after.pid, after.restarts) == (before.pid, 0)
    await supervisor.stop(("sleepy",))
    assert supervisor.status().processes[0].state == "stopped"


async def test_a_reranker_is_proven_by_a_score(
    fleet: Fleet, free_port: Callable[[], int], llama_server: Path, tiny_models: Callable[..., Path]
) -> None:
    """Ready means that documents were scored; afterwards it scores two of them; one without scores never is ready."""
    port = free_port()
    bert = tiny_models("bert")
    supervisor, _ = fleet(real("rank", port, llama_server, bert, "--reranking", probe="rerank"))
    await supervisor.start()
    body = {"query": "a", "documents": ["a", "b"]}
    answer = await http.request("127.0.0.1", port, "/v1/rerank", body=body, timeout_s=30)
    assert sorted(result["index"] for result in answer.json()["results"]) == [0, 1]
    flags = ("--embedding", "--pooling", "cls")
    wrong, _ = fleet(real("wrong", free_port(), llama_server, bert, *flags, probe="rerank"))
    with pytest.raises(SuperviseError, match="gave no rerank"):
        await wrong.start()
