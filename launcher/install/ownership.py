"""The record of what install wrote, with digests: only these files are ever replaced or removed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.base.names import DEPLOYMENT
from launcher.errors import ConfigError
from launcher.install.layout import Layout, foreign_path_reason
from launcher.ir.deployment import content_digest

SCHEMA = "launch.installed/v1"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where an installed deployment came from: a rendered `folder`, or else `overrides`. All paths are absolute."""

    folder: str = ""
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    host: str | None = None
    """The name of this host among several; None: the one that has this machine's name."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One installed deployment; `files`: path (below the root, absolute) → sha256 of what we wrote there."""

    schema: str = SCHEMA
    deployment: str
    input_digest: str
    files: dict[str, str] = {}
    source: Source = Source()
    folders: tuple[str, ...] = ()
    """Directories that were created for the files, the outermost first: removed with them if nothing else is in
    them."""
    previous: dict[str, str] = {}
    """Digests of the replaced files while an install is under way. A crash leaves them: then either content is ours."""

    def wrote(self, name: str, raw: bytes) -> bool:
        """Whether `raw` is what we wrote to `name`."""
        return content_digest(raw) in (self.files.get(name), self.previous.get(name))


def record_path(deployment: str, layout: Layout) -> Path:
    """Path of the record of `deployment`. Raises ConfigError if that cannot be a deployment's name."""
    if not DEPLOYMENT.fullmatch(deployment):
        message = f"{deployment!r} cannot name a deployment: letters, digits and . _ + @ = -"
        raise ConfigError.of("install/foreign-name", message)
    return layout.records / f"{deployment}.json"


def read_record(deployment: str, layout: Layout) -> Record | None:
    """The record of `deployment`; None if it is not installed. Raises OSError, ConfigError (a damaged record).

    Whoever wrote the record, it is accepted only if it names files of this deployment and no others.
    """
    path = record_path(deployment, layout)
    found = layout.tree.read(path)
    if found is None:
        return None
    try:
        record = msgspec.json.decode(found.data, type=Record)
    except UNREADABLE as error:
        raise _damaged(path, str(error)) from None
    if record.deployment != deployment:
        raise _damaged(path, f"it describes {record.deployment!r}")
    for name in (*record.files, *record.previous):
        file = Path(name)
        why = (
            "it is no absolute path"
            if not file.is_absolute() or "\0" in name
            else foreign_path_reason(file, layout, deployment)
        )
        if why is not None or str(file) != name:
            raise _damaged(path, f"{name!r} is no file of {deployment}: {why or 'it is no plain path'}")
    above = {
        parent
        for file in (*record.files, *record.previous, machine_path(path, layout))
        for parent in Path(file).parents
    }
    for name in record.folders:
        if name == "/" or Path(name) not in above:
            raise _damaged(path, f"{name!r} is no directory above a file of {deployment}")
    return record


def _damaged(path: Path, why: str) -> ConfigError:
    note = "what is installed is not known without it: put it back, or remove the units by hand and then this file"
    return ConfigError.of("install/damaged", f"{path} is no install record: {why}", note)


def installed_names(layout: Layout) -> tuple[str, ...]:
    """Names of the installed deployments, sorted. Raises OSError."""
    found = (Path(name) for name in layout.tree.names(layout.records))
    return tuple(path.stem for path in found if path.suffix == ".json" and DEPLOYMENT.fullmatch(path.stem))


def encode_record(record: Record) -> bytes:
    """The bytes of a record's file: the same for the same content."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def machine_path(path: Path, layout: Layout) -> str:
    """`path` as the installed machine names it."""
    return str(Path("/") / path.relative_to(layout.root))
