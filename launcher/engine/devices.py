"""Which devices a llama-server build sees on this host: its own `--list-devices`. I/O."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

_DEVICE = re.compile(r"^  (\w+): ", re.MULTILINE)
LIST_TIMEOUT_S = 60.0
"""A CUDA build opens every card first."""


def list_devices(binary: Path, *, rpc: str = "", env: Mapping[str, str] | None = None) -> tuple[str, ...] | None:
    """Names for `--device` (`CUDA0`, `Vulkan1`, `RPC0`), with the servers `rpc` (`host:port,…`) added to them.

    None when the build does not say: it fails, hangs, or is too old for the flag.
    """
    words = [str(binary), *(("--rpc", rpc) if rpc else ()), "--list-devices"]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            timeout=LIST_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode or "Available devices:" not in done.stdout:
        return None
    return tuple(_DEVICE.findall(done.stdout.partition("Available devices:")[2]))
