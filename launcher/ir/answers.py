"""What commands that act or list print with `--json`, as types, and the schema of every document. Pure."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from launcher.errors import Finding, Severity
from launcher.ir.documents import (
    CheckDocument,
    ConfigDocument,
    ErrorDocument,
    FleetChange,
    InspectDocument,
    MultirunDocument,
    PlanDocument,
    RenderDocument,
)
from launcher.ir.events import EventList
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.live import FleetStatus
from launcher.ir.measured import Measurement, ReadSpeed
from launcher.ir.page import EventLists, StreamDocument, UiDocument
from launcher.ir.project import Draft, ProjectSummary
from launcher.ir.sweep import SweepDocument


class StatusesDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch status --json`: every fleet of this host that runs or is installed."""

    schema: Literal["launch.statuses/v1"]
    fleets: tuple[FleetStatus, ...]


class StopDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch stop --json`: names of what was stopped."""

    schema: Literal["launch.stop/v1"]
    stopped: tuple[str, ...]


class ReloadedFleet(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload did to the processes of one fleet, by their names; with `--dry-run` what it would do."""

    deployment: str
    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: tuple[str, ...]
    kept: tuple[str, ...]
    not_running: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Left alone, and not up."""
    on_demand: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """New, and not up: they come when they are asked."""
    failed: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """Of what did not come up, why; it stands in `started` or `restarted`, too."""
    reloaded: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """The builtin front, where it was named."""
    front: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """What changed of the front: `port 8000 → 8001`."""
    reasons: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """Why each of `restarted` is."""
    same_files: bool | msgspec.UnsetType = msgspec.UNSET
    """With `--dry-run`: the config compiles to what runs."""
    findings: tuple[Finding, ...] | msgspec.UnsetType = msgspec.UNSET
    """With `--dry-run`: of the compile."""


class ReloadDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch reload --json`, and `launch switch --json` once it has switched."""

    schema: Literal["launch.reload/v1"]
    dry_run: bool | msgspec.UnsetType = msgspec.UNSET
    fleets: tuple[ReloadedFleet, ...]


class SwitchDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch switch --dry-run --json`: what would change of the fleet that runs."""

    schema: Literal["launch.switch/v1"]
    deployment: str
    changes: tuple[FleetChange, ...]


class DraftDocument(Draft, frozen=True, kw_only=True):
    """A refused draft of a project. `owner`: the name of the key that made the project."""

    deployment: str
    project: str
    owner: str


class DraftsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch memory --drafts --json`: what validators did not accept."""

    schema: Literal["launch.drafts/v1"] = "launch.drafts/v1"
    drafts: tuple[DraftDocument, ...]


class InstalledFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that an install would change. `restarts`: it is a unit that would be started anew."""

    path: str
    kind: str
    restarts: bool


class InstallDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch install --json` and `launch uninstall --json`: `changes` with `--dry-run`, else what was done."""

    schema: Literal["launch.install/v1"]
    deployment: str
    dry_run: bool
    changes: tuple[InstalledFile, ...] | msgspec.UnsetType = msgspec.UNSET
    written: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    removed: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    started: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Units, as are the following."""
    restarted: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    stopped: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    failed: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    absent: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Services of containers that nobody makes units of: podman is missing, or too old."""


class CheckpointEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint in numbers; of one that cannot be read `damaged` says why, and the numbers are missing."""

    deployment: str
    name: str
    damaged: str | msgspec.UnsetType = msgspec.UNSET
    created_at: float | msgspec.UnsetType = msgspec.UNSET
    """Unix time."""
    input_digest: str | msgspec.UnsetType = msgspec.UNSET
    launch_version: str | msgspec.UnsetType = msgspec.UNSET
    servers: int | msgspec.UnsetType = msgspec.UNSET
    running: int | msgspec.UnsetType = msgspec.UNSET
    covered_files: int | msgspec.UnsetType = msgspec.UNSET
    covered_bytes: int | msgspec.UnsetType = msgspec.UNSET
    config_files: int | msgspec.UnsetType = msgspec.UNSET


class CheckpointsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch checkpoint list --json`, the newest last."""

    schema: Literal["launch.checkpoints/v1"]
    checkpoints: tuple[CheckpointEntry, ...]


class CheckpointCreatedDocument(CheckpointEntry, frozen=True, kw_only=True):
    """`launch checkpoint create --json`. `path`: where it lies."""

    schema: Literal["launch.checkpoint-created/v1"]
    path: str


class CheckpointDeletedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch checkpoint delete --json`."""

    schema: Literal["launch.checkpoint-deleted/v1"]
    deployment: str
    name: str


class CheckpointRestoredDocument(ReloadedFleet, frozen=True, kw_only=True):
    """`launch checkpoint restore --json`."""

    schema: Literal["launch.checkpoint-restored/v1"]
    name: str


class DigestPair(msgspec.Struct, frozen=True, kw_only=True):
    """Digests of two compiled inputs; None where nothing is compiled."""

    checkpoint: str
    against: str | None


class OverridesApart(msgspec.Struct, frozen=True, kw_only=True):
    """Overrides that one of two has."""

    only_in_checkpoint: tuple[str, ...]
    only_against: tuple[str, ...]


class CheckpointDiffDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch checkpoint diff --json`: what a restore would do. `against`: another checkpoint, or `now`."""

    schema: Literal["launch.checkpoint-diff/v1"]
    deployment: str
    name: str
    against: str
    input_digest: DigestPair
    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: dict[str, str]
    kept: tuple[str, ...]
    overrides: OverridesApart
    config_files: tuple[str, ...]
    """Those that differ."""
    files: tuple[Finding, ...]
    """Models and programs that are not what they were."""
    states: dict[str, tuple[str, str]]
    """Of processes whose state differs: what it was, what it is."""


class ExplainedCode(msgspec.Struct, frozen=True, kw_only=True):
    """One code of findings. `exit_code` is None for codes that are never errors."""

    code: str
    stage: str
    severity: tuple[Severity, ...]
    exit_code: int | None
    meaning: str
    example: str
    remedy: str


class ExplainDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch explain --json`: all codes, or the one that was asked for."""

    schema: Literal["launch.explain/v1"]
    codes: tuple[ExplainedCode, ...]


class ProjectDocument(ProjectSummary, frozen=True, kw_only=True):
    """One project of a deployment. `owner`: the key that made it; `last_at`: Unix time of its last journal entry."""

    deployment: str


class MemoryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch memory --json`: every project."""

    schema: Literal["launch.memory/v1"] = "launch.memory/v1"
    projects: tuple[ProjectDocument, ...]


class InspectionsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch inspect --json` of several files."""

    schema: Literal["launch.inspections/v1"]
    files: tuple[InspectDocument, ...]


class PoolDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch preload|pin|unpin|evict --json`: what was done with a model of the warm pool."""

    schema: Literal["launch.pool/v1"]
    fleet: str
    done: str
    name: str


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a log; `launch logs -f --json` prints one a line."""

    name: str
    """The server or service that wrote it, or systemd of it."""
    line: str
    at: float | msgspec.UnsetType = msgspec.UNSET
    """When, in seconds since 1970: known where systemd keeps the log."""


class LogsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch logs --json`: the last lines of each log."""

    schema: Literal["launch.logs/v1"]
    lines: tuple[LogLine, ...]


class CalibrateDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch calibrate --json`: what was measured, and the file that keeps it."""

    schema: Literal["launch.calibrate/v1"] = "launch.calibrate/v1"
    measurements: tuple[Measurement, ...]
    file: str
    read_speed: ReadSpeed | None = None
    """Absent where the files are too small to tell."""


_DOCUMENTS: tuple[type[msgspec.Struct], ...] = (
    *(FleetManifest, RoutingTable, PlanDocument, MultirunDocument, InspectDocument, InspectionsDocument),
    *(CheckDocument, ConfigDocument, RenderDocument, MemoryDocument, ErrorDocument, CalibrateDocument, SweepDocument),
    *(FleetStatus, StatusesDocument, EventList, EventLists, StreamDocument, UiDocument, LogsDocument, ExplainDocument),
    *(StopDocument, ReloadDocument, SwitchDocument, InstallDocument, DraftsDocument, PoolDocument),
    *(CheckpointsDocument, CheckpointCreatedDocument, CheckpointDeletedDocument, CheckpointRestoredDocument),
    CheckpointDiffDocument,
)


def _name(document: type[msgspec.Struct]) -> str:
    """The schema that a document says it has: its field's default, or the one word of its type."""
    (field,) = (f for f in msgspec.structs.fields(document) if f.name == "schema")
    name: str = field.default if isinstance(field.default, str) else get_args(field.type)[0]
    return name


DOCUMENTS: dict[str, type[msgspec.Struct]] = {_name(document): document for document in _DOCUMENTS}
"""Schema name → the type that defines it."""


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of the document `name` (`launch.plan/v1`). KeyError for an unknown name."""
    schema = msgspec.json.schema(DOCUMENTS[name])
    definition = schema["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    definition["properties"]["schema"] = {"const": name}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{name}", **schema}
