"""A key that nobody has to think of. I/O."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from launcher.files.atomic import discard, stage

KEY_BYTES = 32


def make_key_file(path: Path) -> bool:
    """Write a random key for its owner alone, unless something is at `path`; whether it was written. Raises OSError."""
    if os.path.lexists(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = stage(path, f"{secrets.token_urlsafe(KEY_BYTES)}\n", 0o600)
    try:
        os.link(temporary, path)  # unlike a rename it leaves alone what came in between
    except FileExistsError:
        return False
    finally:
        discard(temporary)
    return True
