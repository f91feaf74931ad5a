"""A `Deployment` value and a directory: writing it, comparing it, pruning what is no longer part of it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from launcher.base.regular import read_regular
from launcher.files.atomic import cannot_write, discard, stage, sync_dir, writing
from launcher.ir.deployment import Deployment, FileDifference, RenderedFile

OWNED_NAME = ".launch-files.json"
"""Lists what we wrote into a deployment's directory, with digests: only these are ever pruned."""


class OwnedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `.launch-files.json`: relative path → sha256 of what we wrote."""

    schema: str = "launch.files/v1"
    deployment: str
    files: dict[str, str]


class WriteReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `write_deployment` did, as relative paths. `kept` are stale files that somebody edited by hand."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    pruned: tuple[str, ...]
    kept: tuple[str, ...]


def owned_files(directory: Path) -> dict[str, str]:
    """Path → sha256 of the files that we wrote into `directory`; empty when it holds no readable list of ours."""
    try:
        files = msgspec.json.decode(read_regular(directory / OWNED_NAME), type=OwnedFiles).files
        for path in files:
            _safe(path)
    except (OSError, ValueError, RecursionError):  # of which msgspec's DecodeError is one
        return {}
    return files


def compare_deployment(deployment: Deployment, directory: Path) -> tuple[FileDifference, ...]:
    """How `directory` differs from `deployment`, sorted by path; empty when writing would change nothing.

    Files that we did not write are not looked at. Raises HostError where writing it would.
    """
    _refuse_links(directory, (file.path for file in deployment.files))
    with writing(directory):
        differences = [d for file in deployment.files if (d := _compare(file, directory)) is not None]
        wanted = {file.path for file in deployment.files}
        for path in sorted(set(owned_files(directory)) - wanted):
            target = directory / _safe(path)
            if target.is_file() and _link_above(directory, path) is None:
                differences.append(FileDifference(path=path, kind="extra", diff=_unified(path, _read(target), None)))
    return tuple(sorted(differences, key=lambda d: d.path))


def write_deployment(deployment: Deployment, directory: Path) -> WriteReport:
    """Write every file of `deployment` that differs, then remove the stale ones that we own.

    All new content is on disk in temporary files before the first one is renamed, so that a full disk changes
    nothing. A second call writes nothing. A stale file that no longer has the content we wrote is kept.

    Raises HostError `host/cannot-write` when the system refuses, or when `directory` or a directory in it is a
    symlink; ValueError on a path that leaves `directory`.
    """
    for file in deployment.files:
        _safe(file.path)
    _refuse_links(directory, (file.path for file in deployment.files))
    with writing(directory):
        before = owned_files(directory)
        changed = [file for file in deployment.files if _compare(file, directory) is not None]
        content = {file.path: (file.text.encode(), 0o755 if file.executable else 0o644) for file in changed}
        digests = {file.path: sha256(file.text.encode()) for file in deployment.files}
        owned = OwnedFiles(deployment=deployment.name, files=digests)
        raw = msgspec.json.format(msgspec.json.encode(owned, order="sorted"), indent=2) + b"\n"
        if not (directory / OWNED_NAME).is_file() or (directory / OWNED_NAME).read_bytes() != raw:
            content[OWNED_NAME] = (raw, 0o644)  # the last: it never lists a file that is not there
        _replace_all(directory, content)
        pruned, kept = _prune(directory, {p: d for p, d in before.items() if p not in digests})
    written = tuple(file.path for file in changed)
    unchanged = tuple(file.path for file in deployment.files if file.path not in content)
    return WriteReport(written=written, unchanged=unchanged, pruned=pruned, kept=kept)


def _replace_all(directory: Path, content: Mapping[str, tuple[bytes, int]]) -> None:
    """Write `content` (path → bytes and mode) below `directory`: every temporary file first, then every rename.

    When something cannot be written no file has changed, and no new file or directory is left. Raises OSError.
    """
    staged: list[tuple[Path, Path]] = []
    made: list[Path] = []
    try:
        for path, (data, mode) in content.items():
            target = directory / path
            _make_directories(target.parent, made)
            _refuse_directory(target)  # a rename would find out, but too late
            staged.append((stage(target, data, mode), target))
        for temporary, target in staged:
            temporary.replace(target)
    except BaseException:
        for temporary, _ in staged:
            discard(temporary)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    for parent in {target.parent for _, target in staged}:
        sync_dir(parent)


def _make_directories(directory: Path, made: list[Path]) -> None:
    """Make `directory` and its parents, adding those that were missing to `made`, outermost first."""
    missing = []
    for part in (directory, *directory.parents):
        if part.is_dir():
            break
        missing.append(part)
    for part in reversed(missing):
        part.mkdir(mode=0o755)  # whatever the umask: what others may write is not run
        made.append(part)


def _refuse_directory(target: Path) -> None:
    """Raise IsADirectoryError when no file can be at `target`."""
    if target.is_dir() and not target.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))


def _refuse_links(directory: Path, paths: Iterable[str]) -> None:
    """Raise HostError when `directory` itself, or a directory in it on the way to one of `paths`, is a symlink.

    Whoever may write the parent of `directory` could otherwise send our files anywhere. That parent is what the
    user named (`--output`, `deploy.output_dir`): where it leads, by a symlink or not, is his business.
    """
    note = "remove the link, or write elsewhere: --output DIR, deploy.output_dir=DIR"
    if directory.is_symlink():
        raise cannot_write(directory, "it is a symlink, and a deployment's own directory must not be", note)
    for path in paths:
        link = _link_above(directory, path)
        if link is not None:
            raise cannot_write(directory / path, f"{link} is a symlink", note)


def _link_above(directory: Path, path: str) -> Path | None:
    """The first directory between `directory` and the file at `path` that is a symlink, if any is."""
    above = [directory / parent for parent in reversed(_safe(path).parents[:-1])]
    return next((part for part in above if part.is_symlink()), None)


def _prune(directory: Path, stale: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Remove `stale` files whose content is still ours, and directories that this empties."""
    pruned, kept = [], []
    for path, digest in sorted(stale.items()):
        target = directory / _safe(path)
        if not target.is_file() or target.is_symlink() or _link_above(directory, path) is not None:
            continue
        if sha256(target.read_bytes()) != digest:
            kept.append(path)
            continue
        target.unlink()
        sync_dir(target.parent)
        pruned.append(path)
        for parent in target.relative_to(directory).parents:
            if parent == Path() or any((directory / parent).iterdir()):
                break
            (directory / parent).rmdir()
    return tuple(pruned), tuple(kept)


def _compare(file: RenderedFile, directory: Path) -> FileDifference | None:
    """How the file on disk differs from `file`, or None."""
    target = directory / _safe(file.path)
    if not target.is_file() or target.is_symlink():
        return FileDifference(path=file.path, kind="missing", diff=_unified(file.path, None, file.text))
    if target.read_bytes() != file.text.encode():
        return FileDifference(path=file.path, kind="changed", diff=_unified(file.path, _read(target), file.text))
    if bool(target.stat().st_mode & 0o100) != file.executable:
        wanted = "executable" if file.executable else "not executable"
        return FileDifference(path=file.path, kind="mode", diff=(f"{file.path} should be {wanted}",))
    return None


def _unified(path: str, old: str | None, new: str | None) -> tuple[str, ...]:
    """Lines of one file's unified diff, as `git` prints them; None = there is no such file."""
    before = "/dev/null" if old is None else f"a/{path}"
    after = "/dev/null" if new is None else f"b/{path}"
    lines = difflib.unified_diff((old or "").splitlines(), (new or "").splitlines(), before, after, lineterm="")
    return tuple(lines)


def _safe(path: str) -> PurePosixPath:
    """`path` as a relative POSIX path that stays below its directory. Raises ValueError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or {"..", OWNED_NAME} & {*pure.parts} or "\0" in path:
        raise ValueError(f"not a path inside a deployment: {path!r}")
    return pure


def sha256(raw: bytes) -> str:
    """`sha256:` and the hex digest."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
