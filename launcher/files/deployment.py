"""Write a `Deployment` value into a directory, compare them, and prune files that are no longer part of it. I/O."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from launcher.base.regular import read_regular
from launcher.files.atomic import cannot_write, remove_staged, stage, sync_dir, writing
from launcher.ir.deployment import Deployment, FileDifference, RenderedFile, content_digest, unified

OWNED_NAME = ".launch-files.json"
"""Lists the files that we wrote into a deployment's directory, with digests: only these are ever pruned."""


class OwnedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `.launch-files.json`: relative path → sha256 of what we wrote."""

    schema: str = "launch.files/v1"
    deployment: str
    files: dict[str, str]


def owned_files(directory: Path) -> dict[str, str]:
    """Path → sha256 of the files that we wrote into `directory`; {} if it holds no readable list of ours."""
    try:
        files = msgspec.json.decode(read_regular(directory / OWNED_NAME), type=OwnedFiles).files
        for path in files:
            _relative_path(path)
    except (OSError, ValueError, RecursionError):  # of which msgspec's DecodeError is one
        return {}
    return files


def compare_deployment(deployment: Deployment, directory: Path) -> tuple[FileDifference, ...]:
    """Differences between `directory` and `deployment`, sorted by path; () if writing would change nothing.

    Files that we did not write are ignored. Raises HostError if writing would.
    """
    _refuse_links(directory, (file.path for file in deployment.files))
    with writing(directory):
        differences = [d for file in deployment.files if (d := _compare(file, directory)) is not None]
        for path in _stale(deployment, directory):
            diff = unified(f"a/{path}", f"b/{path}", (directory / path).read_bytes(), None)
            differences.append(FileDifference(path=path, kind="extra", diff=diff))
    return tuple(sorted(differences, key=lambda d: d.path))


def write_deployment(deployment: Deployment, directory: Path) -> tuple[FileDifference, ...]:
    """Write every file of `deployment` that differs, then remove the stale ones that we own; what differed before.

    All new content is on disk in temporary files before the first one is renamed, so that a full disk changes
    nothing. A second call writes nothing. A stale file that no longer has the content we wrote is kept.

    Raises HostError `host/cannot-write` when the system refuses, or when `directory` or a directory in it is a
    symlink; ValueError on a path that leaves `directory`.
    """
    found = compare_deployment(deployment, directory)
    changed = {difference.path for difference in found}
    with writing(directory):
        stale = _stale(deployment, directory)
        data = {file.path: file.text.encode() for file in deployment.files}
        modes = {file.path: 0o755 if file.executable else 0o644 for file in deployment.files}
        content = {path: (data[path], modes[path]) for path in data if path in changed}
        owned = OwnedFiles(deployment=deployment.name, files={path: content_digest(raw) for path, raw in data.items()})
        listed = msgspec.json.format(msgspec.json.encode(owned, order="sorted"), indent=2) + b"\n"
        if not (directory / OWNED_NAME).is_file() or (directory / OWNED_NAME).read_bytes() != listed:
            content[OWNED_NAME] = (listed, 0o644)  # the last: it never lists a file that is not there
        _replace_all(directory, content)
        _prune(directory, stale)
    return found


def _stale(deployment: Deployment, directory: Path) -> dict[str, str]:
    """Files that we wrote into `directory` and that `deployment` lacks, sorted, with the digest of what we wrote."""
    wanted = {file.path for file in deployment.files}
    return {
        path: digest
        for path, digest in sorted(owned_files(directory).items())
        if path not in wanted and _is_plain(directory / path) and _link_above(directory, path) is None
    }


def _replace_all(directory: Path, content: Mapping[str, tuple[bytes, int]]) -> None:
    """Write `content` (path → bytes and mode) below `directory`: every temporary file first, then every rename.

    When something cannot be written no file has changed, and no new file or directory is left. Raises OSError.
    """
    staged: list[tuple[Path, Path]] = []
    made: list[Path] = []
    try:
        for path, (data, mode) in content.items():
            target = directory / path
            _make_way(target, made)
            staged.append((stage(target, data, mode), target))
        for temporary, target in staged:
            temporary.replace(target)
    except BaseException:
        for temporary, _ in staged:
            remove_staged(temporary)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    for parent in {target.parent for _, target in staged}:
        sync_dir(parent)


def _make_way(target: Path, made: list[Path]) -> None:
    """Make the directories above `target`, adding those that were missing to `made`, outermost first. Raises OSError.

    Also for a directory at `target` itself: a rename would find out, but too late.
    """
    missing = []
    for part in target.parents:
        if part.is_dir():
            break
        missing.append(part)
    for part in reversed(missing):
        part.mkdir(mode=0o755)  # whatever the umask: what others may write is not run
        made.append(part)
    if target.is_dir() and not target.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))


def _refuse_links(directory: Path, paths: Iterable[str]) -> None:
    """Raise HostError if `directory` itself, or a directory in it on the way to one of `paths`, is a symlink.

    Otherwise a user who may write the parent of `directory` could send our files anywhere. That parent is what the user
    named (`--output`, `deploy.output_dir`): where it leads, by a symlink or not, is the user's business.
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
    above = [directory / parent for parent in reversed(_relative_path(path).parents[:-1])]
    return next((part for part in above if part.is_symlink()), None)


def _prune(directory: Path, stale: Mapping[str, str]) -> None:
    """Remove `stale` files (path → digest) whose content is still ours, and directories that this empties."""
    for path, digest in stale.items():
        target = directory / path
        if content_digest(target.read_bytes()) != digest:
            continue
        target.unlink()
        sync_dir(target.parent)
        for parent in target.relative_to(directory).parents:
            if parent == Path() or any((directory / parent).iterdir()):
                break
            (directory / parent).rmdir()


def _compare(file: RenderedFile, directory: Path) -> FileDifference | None:
    """How the file on disk differs from `file`, or None."""
    target, path, wanted = directory / file.path, file.path, file.text.encode()
    found = target.read_bytes() if _is_plain(target) else None
    if found != wanted:
        kind: Literal["missing", "changed"] = "missing" if found is None else "changed"
        return FileDifference(path=path, kind=kind, diff=unified(f"a/{path}", f"b/{path}", found, wanted))
    if bool(target.stat().st_mode & 0o100) != file.executable:
        mode = "executable" if file.executable else "not executable"
        return FileDifference(path=path, kind="mode", diff=(f"{path} should be {mode}",))
    return None


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _relative_path(path: str) -> PurePosixPath:
    """`path` as a relative POSIX path that stays below its directory. Raises ValueError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or {"..", OWNED_NAME} & {*pure.parts} or "\0" in path:
        raise ValueError(f"not a path inside a deployment: {path!r}")
    return pure
