"""What install wrote, with digests: only this is ever replaced or removed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from launcher.errors import ConfigError, Finding
from launcher.install.layout import Layout

SCHEMA = "launch.installed/v1"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What was installed: a rendered `folder`, else what `overrides` compiled to. All paths absolute."""

    folder: str = ""
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    host: str | None = None
    """Which of several hosts this is; None: the one named as this machine."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One installed deployment: path (below the root, absolute) → sha256 of what we wrote there."""

    schema: str = SCHEMA
    deployment: str
    input_digest: str
    files: dict[str, str] = {}
    source: Source = Source()
    previous: dict[str, str] = {}
    """Digests from before, while an install is under way; a crash leaves them, and either content is ours."""

    def wrote(self, name: str, raw: bytes) -> bool:
        """Whether `raw` is what we wrote to `name`."""
        return digest(raw) in (self.files.get(name), self.previous.get(name))


def record_path(deployment: str, layout: Layout) -> Path:
    """Where the record of `deployment` lies."""
    return layout.records / f"{deployment}.json"


def read_record(deployment: str, layout: Layout) -> Record | None:
    """The record of `deployment`; None when it is not installed. Raises OSError, ConfigError (no record of ours)."""
    path = record_path(deployment, layout)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        message = f"{path} is no install record: {error}"
        note = "what is installed is not known without it: put it back, or remove the units by hand and then this file"
        raise ConfigError(
            [Finding(code="install/damaged", severity="error", key="", message=message, notes=(note,))]
        ) from None


def installed_names(layout: Layout) -> tuple[str, ...]:
    """Names of the installed deployments, sorted."""
    return tuple(sorted(p.stem for p in layout.records.glob("*.json")))


def encode_record(record: Record) -> bytes:
    """The record as it is written: the same bytes for the same content."""
    return msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2) + b"\n"


def shown(path: Path, layout: Layout) -> str:
    """`path` as the installed machine names it."""
    return str(Path("/") / path.relative_to(layout.root))


def digest(raw: bytes) -> str:
    """`sha256:` and the hex digest."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"
