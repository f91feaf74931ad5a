"""Write a file so that readers see the old or the new content, never half, whatever crashes; and write errors. I/O."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import Finding, HostError, fault

_LEFT = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
_WRITES_S = 60


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` (str as UTF-8) with permission bits `mode`.

    Temporary file in the same directory, fsync, rename, fsync of the directory. Raises OSError; then `path` is
    as it was and no temporary file is left (only a crash leaves one, named `.NAME.*.tmp`, until `drop_leftovers`).
    """
    temporary = stage(path, data, mode)
    try:
        temporary.replace(path)
    except BaseException:
        remove_staged(temporary)
        raise
    sync_dir(path.parent)


def stage(path: Path, data: bytes | str, mode: int) -> Path:
    """Write `data` to a temporary file beside `path`, ready to be renamed. Raises OSError, leaving no file."""
    raw = data.encode() if isinstance(data, str) else data
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except BaseException:
        remove_staged(temporary)
        raise
    return temporary


def drop_leftovers(directory: Path) -> None:
    """Remove temporary files of killed writers in `directory` and its folders: those older than _WRITES_S seconds."""
    with contextlib.suppress(OSError):
        for path in (*directory.glob(".*.tmp"), *directory.glob("*/.*.tmp")):
            if _LEFT.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _WRITES_S and not path.is_dir():
                path.unlink()


def remove_staged(temporary: Path) -> None:
    """Remove a temporary file of `stage`, if it still exists."""
    with contextlib.suppress(OSError):
        temporary.unlink()


def sync_dir(directory: Path) -> None:
    """Make renames and removals in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path, *notes: str) -> Iterator[None]:
    """Turn an OSError in the block into HostError `host/cannot-write`, with the file (or `path`) and the reason.

    `notes` say what state is left; by default that a deployment is written as a whole or not at all.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(_named(error, path), error.strerror or str(error), *notes) from error


def cannot_write(path: Path | str, reason: str, *notes: str) -> HostError:
    """The error for a `path` that cannot be written because of `reason`."""
    return HostError(
        [
            fault(
                "host/cannot-write",
                "",
                f"cannot write {path}: {reason}",
                *(notes or ("a deployment's files are replaced only once all of them could be written",)),
            )
        ]
    )


def cannot_read(path: Path | str, reason: str, *notes: str) -> Finding:
    """The finding for state that cannot be read because of `reason`."""
    message = f"{path} cannot be read: {reason}"
    return fault("host/cannot-read", "", message, *notes)


def _named(error: OSError, path: Path) -> Path | str:
    """The file that `error` is about: for a rename its target, never a temporary file; else `path`."""
    named = [os.fsdecode(name) for name in (error.filename2, error.filename) if isinstance(name, str | bytes)]
    return next((name for name in named if not name.endswith(".tmp")), path)


class ChangedMeanwhileError(Exception):
    """The file has changed since it was read for the edit."""


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Lock the folder of `path` for the block, so that commands edit in turn; without file locks do nothing."""
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_if_unchanged(path: Path, before: bytes, after: bytes) -> None:
    """Replace the content of `path`, which must still be `before`; a link stays one, mode and owner stay.

    Raises OSError, and ChangedMeanwhileError if the content is not `before`; then it is unchanged.
    """
    place = path.resolve()
    was = place.stat()
    if not os.access(place, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(place))
    if place.read_bytes() != before:
        raise ChangedMeanwhileError
    write_atomic(place, after, mode=was.st_mode & 0o777)
    if os.geteuid() != was.st_uid:
        with contextlib.suppress(OSError):
            os.chown(place, was.st_uid, was.st_gid)


KEY_BYTES = 32


def make_key_file(path: Path) -> bool:
    """Write a random key, readable by its owner only, unless `path` exists; whether it did. Raises OSError."""
    if os.path.lexists(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = stage(path, f"{secrets.token_urlsafe(KEY_BYTES)}\n", 0o600)
    try:
        os.link(temporary, path)  # unlike a rename it leaves alone what came in between
    except FileExistsError:
        return False
    finally:
        remove_staged(temporary)
    return True
