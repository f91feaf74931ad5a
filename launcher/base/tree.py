"""Access files below a root step by step from its descriptor, so that no link leads anywhere else. I/O.

Otherwise a user who may write a directory on the way could put a link there between a check and a write. Every step is
an `openat` that does not follow links (Linux has `openat2` with RESOLVE_NO_SYMLINKS for it, Python has not).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

_DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags for a directory on the way, which need not be readable, only searchable."""
_FILE_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class FoundFile(msgspec.Struct, frozen=True):
    """Content and permission bits of a file; for a link, `data` is `link to TARGET`, which no file of ours contains."""

    data: bytes
    mode: int


class Tree:
    """The files below `root`. Paths are absolute and below it; `..` in a path is refused with ValueError.

    If `root` is /, links on the way that belong to root or to our user are followed, because /var may be one; in any
    other tree none is followed, because it would lead out of the tree. A link at a path's end is never followed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._follows = root == Path("/")

    @contextlib.contextmanager
    def directory(self, path: Path, *, make: bool = False) -> Iterator[int]:
        """Open the directory `path` (O_PATH) within the block, creating it with `make`. Raises OSError."""
        if make:
            self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root, _DIRECTORY_FLAGS)
        try:
            for name in self._parts(path):
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=descriptor)
                below = self._step(name, descriptor, path)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, path: Path) -> FoundFile | None:
        """The file or link at `path`; None if there is nothing. Raises OSError, also for any other kind of file."""
        try:
            with self.directory(path.parent) as parent:
                try:
                    descriptor = os.open(path.name, os.O_RDONLY | _FILE_FLAGS, dir_fd=parent)
                except OSError as error:
                    if error.errno != errno.ELOOP:
                        raise
                    return FoundFile(f"link to {os.readlink(path.name, dir_fd=parent)}".encode(errors="replace"), 0o777)
                with os.fdopen(descriptor, "rb") as file:
                    facts = os.fstat(descriptor)
                    if not stat.S_ISREG(facts.st_mode):
                        raise OSError(errno.EINVAL, "it is no regular file", str(path))
                    return FoundFile(file.read(), facts.st_mode & 0o7777)
        except FileNotFoundError:
            return None

    def text(self, path: Path) -> str:
        """Text of the file at `path`, "" if there is none; bytes that are no text are replaced. Raises OSError."""
        found = self.read(path)
        return "" if found is None else found.data.decode(errors="replace")

    def names(self, path: Path) -> tuple[str, ...]:
        """Names in the directory `path`, sorted; () if it does not exist. Raises OSError."""
        try:
            with self.directory(path) as descriptor, os.scandir(f"/proc/self/fd/{descriptor}") as entries:
                return tuple(sorted(entry.name for entry in entries))
        except FileNotFoundError:
            return ()

    def missing(self, path: Path) -> tuple[Path, ...]:
        """Directories above `path`, below the root, that a write would create, the outermost first. Raises OSError."""
        for position, part in enumerate(above := [p for p in reversed(path.parents) if self.root in p.parents]):
            try:
                with self.directory(part):
                    pass
            except FileNotFoundError:
                return tuple(above[position:])
        return ()

    def write(self, path: Path, data: bytes, mode: int) -> None:
        """Replace `path` by `data` with permission bits `mode`, whole or not at all. Raises OSError."""
        temporary = f".{path.name[:200]}.{secrets.token_hex(6)}.tmp"
        with self.directory(path.parent, make=True) as parent:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS
            descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fchmod(file.fileno(), mode)
                    os.fsync(file.fileno())
                os.rename(temporary, path.name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
                raise
            synced = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fsync(synced)
            finally:
                os.close(synced)

    def link(self, path: Path, target: str) -> None:
        """Create the link `path` → `target`, unless something is at `path`. Raises OSError."""
        with self.directory(path.parent, make=True) as parent, contextlib.suppress(FileExistsError):
            os.symlink(target, path.name, dir_fd=parent)

    def remove(self, path: Path) -> None:
        """Remove the file or link `path`, if there is one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), self.directory(path.parent) as parent:
            os.unlink(path.name, dir_fd=parent)

    def remove_directory(self, path: Path, *, content: bool = False) -> None:
        """Remove the directory `path` if it is empty, or with its `content`. Errors are ignored."""
        with contextlib.suppress(OSError), self.directory(path.parent) as parent:
            if content:
                shutil.rmtree(path.name, ignore_errors=True, dir_fd=parent)
            else:
                os.rmdir(path.name, dir_fd=parent)

    def _parts(self, path: Path) -> tuple[str, ...]:
        """The names from the root to `path`. Raises ValueError for a path that does not stay below the root."""
        parts = path.relative_to(self.root).parts
        if ".." in parts:
            raise ValueError(f"not a path below {self.root}: {str(path)!r}")
        return parts

    def _step(self, name: str, parent: int, path: Path) -> int:
        """Open the directory `name` in `parent`, on the way to `path`. Raises OSError, also for a refused link."""
        try:
            return os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            facts = os.lstat(name, dir_fd=parent) if error.errno in (errno.ELOOP, errno.ENOTDIR) else None
            if facts is None or not stat.S_ISLNK(facts.st_mode):
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
            if self._follows and facts.st_uid in (0, os.geteuid()):
                return os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
            why = f"{name} is a symlink, and none is followed here"
            raise OSError(errno.ELOOP, why, str(path)) from None
