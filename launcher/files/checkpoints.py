"""Checkpoints: a deployment as it was, digests of the files it runs with, which of them changed since. I/O.

Digests of big files are cached: each is valid as long as nothing about its file has changed.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.base.regular import read_json, read_regular
from launcher.errors import ConfigError, Finding, fault
from launcher.files.atomic import write_atomic, writing
from launcher.ir.deployment import content_digest
from launcher.ir.fleet import FleetManifest
from launcher.ir.live import FleetStatus

_FOLDER = "checkpoints"
_RECORD = "checkpoint.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,99}")

CoveredKind = Literal["model", "binary", "library", "file"]


class Covered(msgspec.Struct, frozen=True, kw_only=True):
    """A file that servers run with, as it was when the checkpoint was made; `servers`: their names."""

    path: str
    kind: CoveredKind
    size_bytes: int
    digest: str
    servers: tuple[str, ...]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `checkpoint.json`. `request`: what `up` was asked for; `contents`: path → sha256 of all other files.

    `executable`: the compiled files that are programs. `status`: None if nothing ran.
    """

    schema: Literal["launch.checkpoint/v1"] = "launch.checkpoint/v1"
    name: str
    deployment: str
    created_at: float
    """Unix time."""
    launch_version: str
    input_digest: str
    request: dict[str, Any] | None
    covered: tuple[Covered, ...]
    contents: dict[str, str] = {}
    executable: tuple[str, ...] = ()
    status: FleetStatus | None = None


def checkpoint_names(state_dir: Path) -> tuple[str, ...]:
    """Names of the checkpoints in `state_dir`, sorted."""
    return tuple(sorted(p.parent.name for p in (state_dir / _FOLDER).glob(f"*/{_RECORD}") if p.parent.name[0] != "."))


def checkpoint_dir(state_dir: Path, name: str) -> Path:
    """Directory of the checkpoint `name`. Raises ConfigError `checkpoint/bad-name`."""
    if _NAME.fullmatch(name) is None:
        message = f"{name!r} cannot be a checkpoint's name"
        raise ConfigError([_refused("bad-name", message, "letters, digits and . _ + @ = -, 100 at most")])
    return state_dir / _FOLDER / name


def save_checkpoint(state_dir: Path, checkpoint: Checkpoint, files: Mapping[str, bytes]) -> Path:
    """Write `checkpoint` with `files` (path in the checkpoint → bytes); returns its directory.

    `contents` is filled in here. Raises ConfigError `checkpoint/exists`, HostError if it cannot be written.
    """
    target = checkpoint_dir(state_dir, checkpoint.name)
    if target.exists():
        remedy = f"`launch checkpoint delete {checkpoint.name}`, or take another name"
        raise ConfigError([_refused("exists", f"there is a checkpoint {checkpoint.name} already", remedy)])
    contents = {path: content_digest(data) for path, data in sorted(files.items())}
    checkpoint = msgspec.structs.replace(checkpoint, contents=contents)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        staging = Path(tempfile.mkdtemp(prefix=f".{checkpoint.name}.", dir=target.parent))
        try:
            for path, data in files.items():
                place = staging / _inside(path)
                place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_atomic(place, data, mode=0o600)
            raw = msgspec.json.format(msgspec.json.encode(checkpoint, order="sorted"), indent=2) + b"\n"
            write_atomic(staging / _RECORD, raw, mode=0o600)
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return target


def read_checkpoint(state_dir: Path, name: str) -> Checkpoint:
    """Read the checkpoint `name`, and check that every file of it is as it was written.

    Raises ConfigError: `checkpoint/unknown` with the nearest name, `checkpoint/damaged` with what is wrong.
    """
    directory = checkpoint_dir(state_dir, name)
    if not directory.is_dir():
        known = checkpoint_names(state_dir)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ConfigError([_refused("unknown", f"{state_dir.name} has no checkpoint {name}", hint)])
    try:
        checkpoint = msgspec.json.decode(read_regular(directory / _RECORD), type=Checkpoint)
        found = {path: content_digest(read_regular(directory / _inside(path))) for path in checkpoint.contents}
        wrong = [path for path, digest in checkpoint.contents.items() if found[path] != digest]
    except (OSError, ValueError, *UNREADABLE) as error:
        raise ConfigError([_damaged(directory, str(error))]) from None
    if checkpoint.name != name or checkpoint.deployment != state_dir.name:
        wrong.append(f"{_RECORD} (it describes {checkpoint.name} of {checkpoint.deployment})")
    if wrong:
        raise ConfigError([_damaged(directory, f"changed since: {', '.join(wrong)}")])
    return checkpoint


def checkpoint_files(
    state_dir: Path, checkpoint: Checkpoint, part: Literal["deployment", "inputs"]
) -> dict[str, bytes]:
    """Path → bytes for one part of a checkpoint that was read."""
    directory = checkpoint_dir(state_dir, checkpoint.name)
    prefix = f"{part}/"
    paths = [path for path in checkpoint.contents if path.startswith(prefix)]
    return {path.removeprefix(prefix): (directory / path).read_bytes() for path in paths}


def delete_checkpoint(state_dir: Path, name: str) -> None:
    """Remove the checkpoint `name`, a damaged one too. Raises ConfigError `checkpoint/unknown`, HostError."""
    directory = checkpoint_dir(state_dir, name)
    if not directory.is_dir():
        read_checkpoint(state_dir, name)
    with writing(directory):
        # renamed first: whoever lists meanwhile sees it whole or not at all
        gone = Path(tempfile.mkdtemp(prefix=".deleted.", dir=directory.parent))
        directory.rename(gone / name)
        shutil.rmtree(gone)


def _inside(path: str) -> PurePosixPath:
    """Return `path` if it stays below its directory. Raises ValueError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or path == _RECORD:
        raise ValueError(f"not a path inside a checkpoint: {path!r}")
    return pure


def _damaged(directory: Path, why: str) -> Finding:
    return _refused("damaged", f"{directory} is not as it was written: {why}", "`launch checkpoint delete` removes it")


def _refused(code: str, message: str, note: str) -> Finding:
    return fault(f"checkpoint/{code}", "", message, note)


_BLOCK_BYTES = 4 * 1024**2
_SETTLED_NS = 2 * 10**9
"""Nanoseconds: a file that changed less than this before it was read may change again with the same times."""


class _CachedDigest(msgspec.Struct, frozen=True, array_like=True):
    """A cached digest, and its file's device, inode, bytes, mtime and ctime in ns."""

    facts: tuple[int, int, int, int, int]
    digest: str


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """`sha256:…` and size of a file; `error`: why there is none."""

    path: str
    size_bytes: int = 0
    digest: str = ""
    error: str = ""


def file_digests(
    paths: Iterable[str], cache: Path, *, on_file: Callable[[str, int], None] = lambda _path, _bytes: None
) -> dict[str, FileDigest]:
    """The digest of every file in `paths`, symlinks followed; unchanged files in `cache` (JSON) are not read.

    `on_file(path, size in bytes)` is called, from a worker thread, before a file is read. Never raises for a file (see
    `FileDigest.error`); a cache that cannot be read or written is ignored.
    """
    known = read_json(cache, dict[str, _CachedDigest]) or {}
    wanted = sorted(set(paths))
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        found = list(pool.map(lambda path: _digest(path, known.get(path), on_file), wanted))
    fresh = {path: kept for path, (_, kept) in zip(wanted, found, strict=True) if kept is not None}
    merged = {path: entry for path, entry in {**known, **fresh}.items() if os.path.exists(path)}  # noqa: PTH110 - str
    if merged != known:
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(cache, msgspec.json.encode(merged, order="sorted"), mode=0o600)
    return {digest.path: digest for digest, _ in found}


def _digest(
    path: str, known: _CachedDigest | None, on_file: Callable[[str, int], None]
) -> tuple[FileDigest, _CachedDigest | None]:
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
    except (OSError, ValueError) as error:  # ValueError: a NUL
        return FileDigest(path=path, error=getattr(error, "strerror", None) or str(error)), None
    if _facts(before) != _facts(after):
        return FileDigest(path=path, size_bytes=after.st_size, error="it changed while it was read"), None
    digest = f"sha256:{summed.hexdigest()}"
    settled = begun - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS
    kept = _CachedDigest(facts=_facts(before), digest=digest) if settled else None
    return FileDigest(path=path, size_bytes=before.st_size, digest=digest), kept


def _open(path: str, flags: int) -> int:
    """Open a file without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _facts(found: os.stat_result) -> tuple[int, int, int, int, int]:
    """Values of which one changes with the file's content; ctime cannot be set back."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


_SECRET_FLAGS = frozenset({"--api-key-file", "--ssl-key-file"})
_LIBRARY = re.compile(r"lib(llama|ggml|mtmd)[\w.+-]*\.so[\w.]*")
_ELF = b"\x7fELF"


def files_of(manifest: FleetManifest) -> dict[str, tuple[CoveredKind, tuple[str, ...]]]:
    """Path → kind and servers: model files, programs, llama.cpp's libraries, and files that argv names.

    Servers that never start are left out. So are key files: a digest of a short secret gives it away.
    """
    found: dict[str, tuple[CoveredKind, list[str]]] = {}
    for server in (server for server in manifest.servers if server.start != "never"):
        ways = [(server.files, server.argv), *((rung.files, rung.argv) for rung in server.rungs)]
        for files, argv in ways:
            models: list[tuple[str, CoveredKind]] = [(path, "model") for path in files]
            for path, kind in (*models, *_files_in_argv(argv, server.env)):
                found.setdefault(path, (kind, []))[1].append(server.name)
    for service in manifest.services:
        for path, kind in _files_in_argv(service.argv, service.env):
            found.setdefault(path, (kind, []))[1].append(service.name)
    return {path: (kind, tuple(dict.fromkeys(names))) for path, (kind, names) in found.items()}


def cover(
    manifest: FleetManifest, digests: Mapping[str, FileDigest]
) -> tuple[tuple[Covered, ...], tuple[Finding, ...]]:
    """Every file of `manifest` with its digest; a finding for each that cannot be read."""
    covered, findings = [], []
    for path, (kind, servers) in sorted(files_of(manifest).items()):
        found = digests[path]
        if found.error:
            findings.append(_missing(path, kind, servers, found.error))
            continue
        covered.append(Covered(path=path, kind=kind, size_bytes=found.size_bytes, digest=found.digest, servers=servers))
    return tuple(covered), tuple(findings)


def changed_files(covered: tuple[Covered, ...], digests: Mapping[str, FileDigest]) -> tuple[Finding, ...]:
    """One error for each file that is missing, or is not the recorded one."""
    findings = []
    for was in covered:
        now = digests[was.path]
        if now.error:
            findings.append(_missing(was.path, was.kind, was.servers, now.error))
        elif now.digest != was.digest:
            findings.append(
                fault(
                    "checkpoint/digest-differs",
                    f"servers.{was.servers[0]}",
                    f"{was.path}, {was.kind} of {', '.join(was.servers)}, is not the file of the checkpoint",
                    f"recorded: {was.digest}, {was.size_bytes} bytes",
                    f"found:    {now.digest}, {now.size_bytes} bytes",
                    "put the file of then back, or make the fleet of now with `launch up`",
                )
            )
    return tuple(findings)


def changed_since(path: str, moment: float) -> bool:
    """Whether the file was written or replaced after `moment` (Unix time)."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return False
    return max(found.st_mtime, found.st_ctime) > moment


def _files_in_argv(argv: tuple[str, ...], env: Mapping[str, str]) -> Iterator[tuple[str, CoveredKind]]:
    """Files that a command line names: its program, those among its words, and the llama.cpp libraries they use."""
    folders = {folder for folder in env.get("LD_LIBRARY_PATH", "").split(":") if folder}
    for position, word in enumerate(argv):
        path = (shutil.which(word) or "") if position == 0 else word
        if not os.path.isabs(path) or not os.path.isfile(path):  # noqa: PTH117, PTH113 - words, most are no paths
            continue
        if position > 0 and argv[position - 1] in _SECRET_FLAGS:
            continue
        if os.access(path, os.X_OK):
            yield path, "binary"
            if _is_elf(path):
                folders.add(os.path.dirname(os.path.realpath(path)))  # noqa: PTH120 - as above
        else:
            yield path, "file"
    for folder in sorted(folders):
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):  # noqa: PTH208, PTH112 - as above
            if _LIBRARY.fullmatch(name):
                yield os.path.join(folder, name), "library"  # noqa: PTH118 - as above


def _is_elf(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == _ELF
    except OSError:
        return False


def _missing(path: str, kind: CoveredKind, servers: tuple[str, ...], why: str) -> Finding:
    message = f"{path}, {kind} of {', '.join(servers)}, cannot be read: {why}"
    notes = ("put the file back where it was",)
    return fault("checkpoint/file-missing", f"servers.{servers[0]}", message, *notes)
