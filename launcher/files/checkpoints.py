"""Checkpoints of a deployment: what was compiled and from what, what it was run with, what was running. I/O.

`STATE_DIR/checkpoints/NAME/`: `checkpoint.json`, `deployment/` (the compiled files as they were) and `inputs/` (the
user's config files). Written beside and renamed, so that there is a whole checkpoint or none.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from launcher.base.regular import read_regular
from launcher.errors import ConfigError, Finding
from launcher.files.atomic import write_atomic
from launcher.files.refusal import writing
from launcher.ir.live import FleetStatus

CHECKPOINT_SCHEMA = "launch.checkpoint/v1"
_FOLDER = "checkpoints"
_RECORD = "checkpoint.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,99}")

CoveredKind = Literal["model", "binary", "library", "file"]


class Covered(msgspec.Struct, frozen=True, kw_only=True):
    """A file that servers are run with, as it was; `servers` names them."""

    path: str
    kind: CoveredKind
    size_bytes: int
    digest: str
    servers: tuple[str, ...]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`checkpoint.json`. `request` is what `up` was asked for; `contents` has a sha256 for every file beside this one.

    `executable` are the compiled files that are programs. `status` is None where nothing ran.
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
    """Where the checkpoint `name` lies. Raises ConfigError `checkpoint/bad-name`."""
    if _NAME.fullmatch(name) is None:
        message = f"{name!r} cannot be a checkpoint's name"
        raise ConfigError([_refused("bad-name", message, "letters, digits and . _ + @ = -, 100 at most")])
    return state_dir / _FOLDER / name


def save_checkpoint(state_dir: Path, checkpoint: Checkpoint, files: Mapping[str, bytes]) -> Path:
    """Write `checkpoint` with `files` (path in the checkpoint → bytes); where it lies.

    `contents` is filled in here. Raises ConfigError `checkpoint/exists`, HostError when it cannot be written.
    """
    target = checkpoint_dir(state_dir, checkpoint.name)
    if target.exists():
        remedy = f"`launch checkpoint delete {checkpoint.name}`, or take another name"
        raise ConfigError([_refused("exists", f"there is a checkpoint {checkpoint.name} already", remedy)])
    contents = {path: _sum(data) for path, data in sorted(files.items())}
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
    """The checkpoint `name`, every file of it as it was written.

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
        wrong = [p for p, digest in checkpoint.contents.items() if _sum(read_regular(directory / _inside(p))) != digest]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError([_damaged(directory, str(error))]) from None
    if checkpoint.name != name or checkpoint.deployment != state_dir.name:
        wrong.append(f"{_RECORD} (it describes {checkpoint.name} of {checkpoint.deployment})")
    if wrong:
        raise ConfigError([_damaged(directory, f"changed since: {', '.join(wrong)}")])
    return checkpoint


def checkpoint_files(
    state_dir: Path, checkpoint: Checkpoint, part: Literal["deployment", "inputs"]
) -> dict[str, bytes]:
    """Path → bytes of one part of a checkpoint that was read."""
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
    """`path` as one that stays below its directory. Raises ValueError."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or path == _RECORD:
        raise ValueError(f"not a path inside a checkpoint: {path!r}")
    return pure


def _sum(data: bytes) -> str:
    """`sha256:` and the hex digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _damaged(directory: Path, why: str) -> Finding:
    """For a checkpoint that is not as it was written."""
    return _refused("damaged", f"{directory} is not as it was written: {why}", "`launch checkpoint delete` removes it")


def _refused(code: str, message: str, note: str) -> Finding:
    """An error about a checkpoint."""
    return Finding(code=f"checkpoint/{code}", severity="error", key="", message=message, notes=(note,))
