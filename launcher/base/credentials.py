"""Key files that systemd hands to a unit as credentials (`LoadCredential=`): the originals may be root's alone. I/O."""

from __future__ import annotations

import os
from pathlib import Path


def server_key_file(server: str, path: str) -> Path:
    """Where the key file `path` of `server` is read: the credential `key-SERVER` where there is one."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory or "/nonexistent") / f"key-{server}"
    return credential if credential.exists() else Path(path)
