"""Templates as the compiler loads them, and a server that runs while a test looks at it."""

from __future__ import annotations

import json
import re
import shutil
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


def stub_root(directory: Path, units: dict[str, str]) -> list[Path]:
    """A root in `directory` for `systemd-analyze --root`: systemd's units, `units` by name, stubs for programs.

    Returns the paths of `units`.
    """
    for folder in ("etc/systemd/system", "usr/bin", "usr/lib/systemd"):
        (directory / folder).mkdir(parents=True)
    source = Path("/usr/lib/systemd/system")
    shutil.copytree(
        source if source.exists() else Path("/lib/systemd/system"), directory / "usr/lib/systemd/system", symlinks=True
    )
    programs = [p for text in units.values() for p in re.findall(r'^Exec\w+=\+?"?([^ "]+)', text, re.MULTILINE)]
    for program in {*programs, "/bin/sh"}:
        path = directory / (program[1:] if program.startswith("/") else f"usr/bin/{program}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    paths = [directory / "etc/systemd/system" / name for name in sorted(units)]
    for path in paths:
        path.write_text(units[path.name])
    return paths


def verify(directory: Path, units: dict[str, str]) -> tuple[int, str]:
    """Exit status and stderr of `systemd-analyze verify` for `units`; good is (0, "")."""
    paths = stub_root(directory, units)
    argv = ["systemd-analyze", "verify", "--man=no", f"--root={directory}", *paths]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def exposure(path: Path) -> float:
    """The exposure level that systemd computes for the unit at `path`, 0 (safe) to 10."""
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", path]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    level = re.search(r"Overall exposure level for .*: ([\d.]+)", text)
    assert level is not None
    return float(level[1])


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
