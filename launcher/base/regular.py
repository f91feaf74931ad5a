"""Small files, read so that nothing that lies in their place (a pipe, a device) holds us up. I/O."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TypeVar

from launcher.base.decoding import decoded

T = TypeVar("T")

_MOST_BYTES = 64 * 1024**2
"""No manifest is as large; a larger file is refused."""


def read_regular(path: Path) -> bytes:
    """The content of the regular file at `path`. Raises OSError, also for any other kind of file or above 64 MiB."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if facts.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {_MOST_BYTES >> 20} MiB", str(path))
        return file.read(_MOST_BYTES + 1)


def read_json(path: Path, kind: type[T]) -> T | None:
    """Decode the JSON in a regular file as a `kind`; None if it is missing, or that fails."""
    try:
        return decoded(read_regular(path), kind)
    except OSError:
        return None


def server_key(server: str, path: str) -> str:
    """The first key in the key file `path` of `server`, or in the credential `key-SERVER` where there is one.

    systemd hands key files, which may be root's alone, to a unit as credentials (`LoadCredential=`). "" where there is
    none. Raises OSError, UnicodeDecodeError.
    """
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent") / f"key-{server}"
    text = read_regular(credential if credential.exists() else Path(path)).decode()
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")
