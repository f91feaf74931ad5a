"""Key files that systemd hands to a unit as credentials (`LoadCredential=`): the originals may be root's alone. I/O."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.base.regular import read_regular


def server_key(server: str, path: str) -> str:
    """The first key in the key file `path` of `server`, or in the credential `key-SERVER` where there is one.

    "" where there is none. Raises OSError, UnicodeDecodeError.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory or "/nonexistent") / f"key-{server}"
    text = read_regular(credential if credential.exists() else Path(path)).decode()
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")
