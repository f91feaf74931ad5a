"""The route tests run on uvloop, as the runtime does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from tests.ports import free_port


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """One loop factory: uvloop's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def llama(llama_server: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of one real llama-server with SmolLM2, two slots, for the whole session."""
    port = free_port()
    log = tmp_path_factory.mktemp("llama") / "server.log"
    argv = [str(llama_server), "--model", str(smollm2), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-c", "1024", "--parallel", "2", "--threads", "1", "--n-gpu-layers", "0", "--no-webui", "--slots"]
    env = os.environ | {"LD_LIBRARY_PATH": str(llama_server.parent)}
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=env)
    try:
        deadline = time.monotonic() + 60
        while not _healthy(port):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _healthy(port: int) -> bool:
    """Whether the server there answers that it is well."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200
    except httpx.TransportError:
        return False
