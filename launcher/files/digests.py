"""SHA-256 of big files, computed once: a digest is kept as long as nothing about its file has changed."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from launcher.base.regular import read_regular
from launcher.files.atomic import write_atomic

_BLOCK_BYTES = 4 * 1024**2
_SETTLED_NS = 2 * 10**9
"""A file that changed this short before it was read may change again without its times showing it."""


class _Known(msgspec.Struct, frozen=True, array_like=True):
    """A digest, and what the file was like: device, inode, bytes, mtime and ctime in ns."""

    facts: tuple[int, int, int, int, int]
    digest: str


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """`sha256:…` of a file and its size; `error` says why there is none."""

    path: str
    size_bytes: int = 0
    digest: str = ""
    error: str = ""


def file_digests(
    paths: Iterable[str], cache: Path, *, on_file: Callable[[str, int], None] = lambda _path, _bytes: None
) -> dict[str, FileDigest]:
    """The digest of every file in `paths`, symlinks followed; those in `cache` (a JSON file) need no reading.

    `on_file(path, size in bytes)` is called, from a thread of our own, before a file is read. Never raises for a
    file; a cache that cannot be read or written is done without.
    """
    known = _read(cache)
    wanted = sorted(set(paths))
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        found = list(pool.map(lambda path: _digest(path, known.get(path), on_file), wanted))
    fresh = {path: kept for path, (_, kept) in zip(wanted, found, strict=True) if kept is not None}
    merged = {path: entry for path, entry in {**known, **fresh}.items() if os.path.exists(path)}  # noqa: PTH110 - str
    if merged != known:
        _write(cache, merged)
    return {digest.path: digest for digest, _ in found}


def _digest(path: str, known: _Known | None, on_file: Callable[[str, int], None]) -> tuple[FileDigest, _Known | None]:
    """The digest of one file, and what to keep of it."""
    try:
        with open(path, "rb", opener=_open) as file:
            begun, before = time.time_ns(), os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                return FileDigest(path=path, error="it is no regular file"), None
            if known is not None and known.facts == _facts(before):
                return FileDigest(path=path, size_bytes=before.st_size, digest=known.digest), known
            on_file(path, before.st_size)
            summed = hashlib.sha256()
            while block := file.read(_BLOCK_BYTES):
                summed.update(block)
            after = os.fstat(file.fileno())
    except OSError as error:
        return FileDigest(path=path, error=error.strerror or str(error)), None
    if _facts(before) != _facts(after):
        return FileDigest(path=path, size_bytes=after.st_size, error="it changed while it was read"), None
    digest = f"sha256:{summed.hexdigest()}"
    settled = begun - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS
    kept = _Known(facts=_facts(before), digest=digest) if settled else None
    return FileDigest(path=path, size_bytes=before.st_size, digest=digest), kept


def _open(path: str, flags: int) -> int:
    """A descriptor that does not wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _facts(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """What a file's content cannot change without; ctime cannot be set back."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(cache: Path) -> dict[str, _Known]:
    """What is known; nothing when the cache is missing or torn."""
    try:
        return msgspec.json.decode(read_regular(cache), type=dict[str, _Known])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _write(cache: Path, known: dict[str, _Known]) -> None:
    """Keep what is known, where that is possible."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(cache, msgspec.json.encode(known, order="sorted"), mode=0o600)
    except OSError:
        return
