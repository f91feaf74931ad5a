"""How fast this host reads models, as `launch calibrate` measured it last: `read_speed.json` beside the state. I/O."""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.files.atomic import write_atomic
from launcher.files.refusal import writing
from launcher.files.state import state_root
from launcher.ir.speed import ReadSpeed


def read_speed_file() -> Path:
    """Where it is kept."""
    return state_root() / "read_speed.json"


def known_read_speed() -> ReadSpeed | None:
    """What was measured last; None where nothing was, or by an other version."""
    try:
        return msgspec.json.decode(read_speed_file().read_bytes(), type=ReadSpeed)
    except (OSError, msgspec.DecodeError):
        return None


def keep_read_speed(found: ReadSpeed) -> Path:
    """Keep it in the last one's place. Raises HostError."""
    path = read_speed_file()
    with writing(path, "a measurement that is not kept can be made again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n")
    return path
