"""Templates as the compiler loads them, and a server that runs while a test looks at it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    """Text by path below templates/."""
    root = REPOSITORY / "templates"
    return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*.j2"))}


def get_json(url: str) -> Any:
    """JSON at `url`, or None while nothing good answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 # loopback
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


@contextmanager
def running(argv: tuple[str, ...], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server `argv`, ready at `url` (/health is 200), stopped at the end. Fails with its log when it exits."""
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as server:
        try:
            deadline = time.monotonic() + DEADLINE_S
            while get_json(f"{url}/health") is None:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"rc {server.poll()}: {log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield server
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
