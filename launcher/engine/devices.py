"""Which devices a llama-server build sees on this host: its own `--list-devices`. I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from launcher.base.processes import signal_name
from launcher.engine.asking import NoAnswerError, ask
from launcher.sizes import MIB

_DEVICE = re.compile(r"^  (\w+): (.*?)(?: \((\d{1,9}) MiB, (\d{1,9}) MiB free\))?\s*$", re.MULTILINE)
LIST_TIMEOUT_S = 30.0
"""A CUDA build opens every card first."""


class SeenDevice(NamedTuple):
    """A device by its name for `--device` (`CUDA0`, `Vulkan1`, `RPC0`); sizes are 0 where the build gives none."""

    name: str
    model: str
    total_bytes: int
    free_bytes: int


def list_devices(binary: Path, *, rpc: str = "", env: Mapping[str, str] | None = None) -> tuple[SeenDevice, ...] | None:
    """The devices that `binary` sees, with the servers `rpc` (`host:port,…`) added to them.

    None when the build does not say: it fails, or is too old for the flag. Raises NoAnswerError.
    """
    words = [str(binary), *(("--rpc", rpc) if rpc else ()), "--list-devices"]
    try:
        status, said, _ = ask(words, env, timeout_s=LIST_TIMEOUT_S)
    except OSError:
        return None
    if status < 0:
        raise NoAnswerError(f"was killed by signal {-status} ({signal_name(-status)})")
    if status or "Available devices:" not in said:
        return None
    found = _DEVICE.findall(said.partition("Available devices:")[2])
    return tuple(
        SeenDevice(name, _printable(model), int(total or 0) * MIB, int(free or 0) * MIB)
        for name, model, total, free in found
    )


def _printable(text: str) -> str:
    """What a terminal may be given."""
    return "".join(filter(str.isprintable, text))
