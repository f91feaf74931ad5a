"""A `Deployment` value and a directory: writing it, comparing it, pruning what is no longer part of it."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from launcher.files.atomic import sync_dir, write_atomic
from launcher.ir.deployment import Deployment, RenderedFile

OWNED_NAME = ".launch-files.json"
"""Lists what we wrote into a deployment's directory, with digests: only these are ever pruned."""


class OwnedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `.launch-files.json`: relative path → sha256 of what we wrote."""

    schema: str = "launch.files/v1"
    deployment: str
    files: dict[str, str]


class FileDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One file that differs, and how: lines of a unified diff from the disk to what should be there.

    `extra` files were written by us earlier and are no longer part of the deployment; `mode` differs in the
    executable bit only.
    """

    path: str
    kind: Literal["changed", "missing", "extra", "mode"]
    diff: tuple[str, ...]


class WriteReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `write_deployment` did, as relative paths. `kept` are stale files that somebody edited by hand."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    pruned: tuple[str, ...]
    kept: tuple[str, ...]


def owned_files(directory: Path) -> dict[str, str]:
    """Path → sha256 of the files that we wrote into `directory`; empty when it holds no readable list."""
    try:
        return msgspec.json.decode((directory / OWNED_NAME).read_bytes(), type=OwnedFiles).files
    except (OSError, msgspec.DecodeError):
        return {}


def compare_deployment(deployment: Deployment, directory: Path) -> tuple[FileDifference, ...]:
    """How `directory` differs from `deployment`, sorted by path; empty when writing would change nothing.

    Files that we did not write are not looked at.
    """
    differences = [d for file in deployment.files if (d := _compare(file, directory)) is not None]
    wanted = {file.path for file in deployment.files}
    for path in sorted(set(owned_files(directory)) - wanted):
        target = directory / _safe(path)
        if target.is_file():
            differences.append(FileDifference(path=path, kind="extra", diff=_unified(path, _read(target), None)))
    return tuple(sorted(differences, key=lambda d: d.path))


def write_deployment(deployment: Deployment, directory: Path) -> WriteReport:
    """Write every file of `deployment` that differs, each atomically, then remove the stale ones that we own.

    A second call writes nothing. A stale file that no longer has the content we wrote is kept. Raises OSError,
    and ValueError on a path that leaves `directory`.
    """
    for file in deployment.files:
        _safe(file.path)
    directory.mkdir(parents=True, exist_ok=True)
    before = owned_files(directory)
    written, unchanged = [], []
    for file in deployment.files:
        if _compare(file, directory) is None:
            unchanged.append(file.path)
            continue
        target = directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, file.text, mode=_mode(file))
        written.append(file.path)
    digests = {file.path: _digest(file.text.encode()) for file in deployment.files}
    pruned, kept = _prune(directory, {p: d for p, d in before.items() if p not in digests})
    owned = OwnedFiles(deployment=deployment.name, files=digests)
    raw = msgspec.json.format(msgspec.json.encode(owned, order="sorted"), indent=2) + b"\n"
    if not (directory / OWNED_NAME).is_file() or (directory / OWNED_NAME).read_bytes() != raw:
        write_atomic(directory / OWNED_NAME, raw)
    return WriteReport(written=tuple(written), unchanged=tuple(unchanged), pruned=pruned, kept=kept)


def _prune(directory: Path, stale: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Remove `stale` files whose content is still ours, and directories that this empties."""
    pruned, kept = [], []
    for path, digest in sorted(stale.items()):
        target = directory / _safe(path)
        if not target.is_file() or target.is_symlink():
            continue
        if _digest(target.read_bytes()) != digest:
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
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or path == OWNED_NAME:
        raise ValueError(f"not a path inside a deployment: {path!r}")
    return pure


def _mode(file: RenderedFile) -> int:
    """Permission bits: 0755 for programs, 0644 for the rest."""
    return 0o755 if file.executable else 0o644


def _digest(raw: bytes) -> str:
    """`sha256:` and the hex digest."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _read(path: Path) -> str:
    """Text of a file that may not be text."""
    return path.read_text(encoding="utf-8", errors="replace")
