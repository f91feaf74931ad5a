"""Who listens on a unix socket, and the file that one leaves behind. I/O.

The kernel keeps with a listening socket which process made it one, and tells it to whoever is connected (SO_PEERCRED):
across users, and from another network namespace. /proc/net/unix shows the sockets of its own namespace alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

_CREDENTIALS = struct.Struct("3i")
"""`struct ucred`: pid, uid, gid."""


class NotASocketError(OSError):
    """Something else has the path."""


def peer_pid(sock: Any) -> int:
    """The process at the other end of a connected unix socket, which made it listen; 0: none that is seen from here.

    `sock`: a socket, or what asyncio gives out as one. Raises OSError.
    """
    pid: int = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
    return pid


def listener(path: str) -> int | None:
    """The process that listens at `path` (0: one that cannot be seen from here); None when nobody does.

    Nobody also where we may not look: a unit's folder is another user's until systemd has made it anew. Does not wait.
    Raises NotASocketError where a file, a directory or a link has the path.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise NotASocketError(f"{path} is no socket")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            return peer_pid(probe)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError:  # it has no room for one more, is another user's, or no stream: somebody's in any case
            return 0


def remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on, and nothing else: a process leaves its own when it ends.

    What cannot be removed stays: a start says so.
    """
    with contextlib.suppress(OSError):
        before = os.lstat(path)
        if listener(path) is not None:
            return
        now = os.lstat(path)
        if (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino):
            Path(path).unlink()


def make_room(path: str) -> None:
    """Have a server be able to listen at `path`: its folder is there, no dead socket is. Raises OSError.

    A folder that is made (/run is empty after a boot) is its owner's alone.
    """
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_stale(path)
