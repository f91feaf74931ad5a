"""What a server's slots know, kept across a swap: saved when it is swapped out, restored when it is back.

Only where `slot_save_path` is set, and only what the server itself confirms: a restore that gives back other than was
saved counts as none. What the cache is worth then depends on the model (measured): with a sliding window and no
`swa_full` the server throws it away, with recurrent layers it serves exact continuations only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.supervise import events, http, readiness

if TYPE_CHECKING:
    from launcher.supervise.runner import Runner

_TIMEOUT_S = 60.0
"""For one slot: a gigabyte of K/V and a slow disk."""


async def save_slots(runner: Runner) -> None:
    """Have the server, which no request is in, write its slots; what was saved is noted with the runner.

    A server that cannot is stopped all the same.
    """
    runner.saved = {}
    spec = runner.spec
    if spec.slot_save_path is None or runner.life.state != "ready":
        return
    for slot in range(spec.slots):
        tokens = await _act(runner, slot, "save", "n_saved")
        if tokens:
            runner.saved[_file(runner, slot)] = tokens


async def restore_slots(runner: Runner) -> None:
    """Have the server read what was saved of it, if it is run with the same command; then the files are removed."""
    saved, runner.saved = runner.saved, {}
    restored = tokens = 0
    for slot in range(runner.spec.slots if saved else 0):
        expected = saved.get(_file(runner, slot))
        if expected and await _act(runner, slot, "restore", "n_restored") == expected:
            restored += 1
            tokens += expected
    _remove(runner.spec.slot_save_path or "", saved)
    if restored:
        runner.tell(events.SlotsRestored(name=runner.spec.name, slots=restored, tokens=tokens))


def _remove(directory: str, files: Iterable[str]) -> None:
    """Remove what has been read, or never will be."""
    for file in files:
        with contextlib.suppress(OSError):
            Path(directory, file).unlink()


def prepare(path: str) -> None:
    """The directory, for its owner alone: what is in it are the prompts of users. Raises OSError."""
    Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)


def _file(runner: Runner, slot: int) -> str:
    """Name of a slot's file: of this server, run with this command and no other (another rung has another cache)."""
    return f"{runner.spec.name}-{runner.spec.argv_digest.rpartition(':')[2][:16]}-{slot}.bin"


async def _act(runner: Runner, slot: int, action: str, count: str) -> int:
    """Save or restore one slot; how many tokens the server says, 0 when it does not."""
    spec = runner.spec
    try:
        reply = await http.request(
            spec.host,
            spec.port,
            f"/slots/{slot}?action={action}",
            body={"filename": _file(runner, slot)},
            headers=readiness.auth_headers(spec),
            timeout_s=_TIMEOUT_S,
        )
    except OSError:
        return 0
    answer = reply.json()
    tokens = answer.get(count, 0) if reply.status == 200 and isinstance(answer, dict) else 0
    return tokens if isinstance(tokens, int) else 0
