"""The contents of a server's slots, kept across a swap: saved when it is swapped out, restored when it is back.

Only where `slot_save_path` is set, and only what the server itself confirms: a restore of another number of tokens than
was saved counts as none. The use of the cache afterwards depends on the model (measured): with a sliding window and no
`swa_full` the server discards it, with recurrent layers it serves exact continuations only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from launcher.supervise import http, readiness
from launcher.supervise.spec import ProcessSpec

_TIMEOUT_S = 60.0
"""Seconds for one slot: a gigabyte of K/V and a slow disk."""


async def save_slots(spec: ProcessSpec) -> dict[str, int]:
    """Make a server without requests write its slots to files; returns tokens by file, none if it cannot."""
    saved = {}
    for slot in range(spec.unit.slots if spec.unit.slot_save_path is not None else 0):
        tokens = await _act(spec, slot, "save", "n_saved")
        if tokens:
            saved[_file(spec, slot)] = tokens
    return saved


async def restore_slots(spec: ProcessSpec, saved: Mapping[str, int]) -> tuple[int, ...]:
    """Make the server read the slots in `saved`, if its command line is the same; then remove the files.

    Returns the tokens of each slot that the server confirms.
    """
    restored = []
    for slot in range(spec.unit.slots if saved else 0):
        expected = saved.get(_file(spec, slot))
        if expected and await _act(spec, slot, "restore", "n_restored") == expected:
            restored.append(expected)
    _remove(spec.unit.slot_save_path or "", saved)
    return tuple(restored)


def _remove(directory: str, files: Iterable[str]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            Path(directory, file).unlink()


def prepare(path: str) -> None:
    """Create the directory, readable by its owner only: it will hold users' prompts. Raises OSError."""
    Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)


def _file(spec: ProcessSpec, slot: int) -> str:
    """File name of a slot: of this server with this command line alone (a fallback has another cache)."""
    return f"{spec.name}-{spec.unit.argv_digest.rpartition(':')[2][:16]}-{slot}.bin"


async def _act(spec: ProcessSpec, slot: int, action: str, count: str) -> int:
    """Save or restore one slot; returns the tokens that the server confirms, 0 on failure."""
    try:
        reply = await http.request(
            spec.unit.host,
            spec.unit.port,
            f"/slots/{slot}?action={action}",
            body={"filename": _file(spec, slot)},
            headers=readiness.auth_headers(spec),
            timeout_s=_TIMEOUT_S,
        )
    except OSError:
        return 0
    answer = reply.json()
    tokens = answer.get(count, 0) if reply.status == 200 and isinstance(answer, dict) else 0
    return tokens if isinstance(tokens, int) else 0
