"""Find the process that listens on a unix socket, and remove the file that a dead one left behind. I/O.

The kernel remembers which process made a socket listen, and tells every process that is connected (SO_PEERCRED): across
users, and from another network namespace. /proc/net/unix shows only the sockets of its own namespace.
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
    """The path exists and is no socket."""


def peer_pid(sock: Any) -> int:
    """Pid of the process that made the other end of a connected unix socket listen; 0: not visible from here.

    `sock`: a socket, or asyncio's wrapper of one. Raises OSError.
    """
    pid: int = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
    return pid


def listener(path: str) -> int | None:
    """Pid of the process that listens at `path` (0: not visible from here); None if there is none. Does not wait.

    None also where we may not look: a unit's folder belongs to another user until systemd has created it again. Raises
    NotASocketError if a file, a directory or a link has the path.
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
    """Remove a socket that no process listens on, and nothing else: a process leaves its socket when it ends.

    Errors are ignored: a start reports them.
    """
    with contextlib.suppress(OSError):
        before = os.lstat(path)
        if listener(path) is not None:
            return
        now = os.lstat(path)
        if (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino):
            Path(path).unlink()


def prepare_socket_path(path: str) -> None:
    """Prepare `path` for a server to listen at: create its folder, remove a dead socket. Raises OSError.

    A folder that is created (/run is empty after a boot) can be used by its owner only.
    """
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_stale(path)
