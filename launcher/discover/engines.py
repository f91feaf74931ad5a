"""Find llama-servers: on PATH, in the usual places, built here, packaged. I/O: asks each for its version."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

VERSION_TIMEOUT_S = 20.0
_BUILD = re.compile(r"version:\s*(\d+)\s*\(([0-9a-f]+)\)")
_USUAL = ("/opt/llama.cpp/bin", "/usr/local/bin", "/usr/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin")
_AT_HOME = ("llama.cpp/build/bin", "llama.cpp", ".local/bin", "bin")


class FoundEngine(msgspec.Struct, frozen=True, kw_only=True):
    """A llama-server that runs here. `packaged`: it is the one that config uses when nothing is written."""

    binary: str
    build: int
    packaged: bool = False


def find_engines(env: Mapping[str, str], *, packaged: str | None, built: str | None) -> tuple[FoundEngine, ...]:
    """Every llama-server that answers `--version`: one's own in the order of PATH, then `built`, then `packaged`."""
    home = env.get("HOME") or str(Path.home())
    folders = [*env.get("PATH", "").split(os.pathsep), *_USUAL, *(f"{home}/{place}" for place in _AT_HOME)]
    candidates: dict[str, bool] = {}
    for path in _programs(folders):
        candidates.setdefault(path, False)
    for other in (built, packaged):
        if other and os.access(other, os.X_OK):
            candidates[other] = other == packaged
    engines, seen = [], set()
    for path, is_packaged in candidates.items():
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        match = _BUILD.search(_version(path) or "")
        if match:
            engines.append(FoundEngine(binary=path, build=int(match[1]), packaged=is_packaged))
    return tuple(engines)


def _programs(folders: Iterable[str]) -> Iterable[str]:
    for folder in folders:
        path = os.path.join(folder, "llama-server")  # noqa: PTH118 - strings throughout
        if folder and os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113 - as above
            yield os.path.abspath(path)  # noqa: PTH100 - as above


def _version(binary: str) -> str | None:
    """What a binary's `--version` writes; None when it does not run (a wrong CPU, a missing library)."""
    try:
        done = subprocess.run(
            [binary, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr if done.returncode == 0 else None
