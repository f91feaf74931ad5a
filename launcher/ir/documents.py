"""The JSON documents that commands print, as types, so that their schemas are published from one definition. Pure."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from launcher.errors import Finding
from launcher.ir.changes import FleetChange
from launcher.ir.deployment import FileDifference
from launcher.ir.plan import DeviceMemory, DevicePlan, PlanTotals, Residency, Solved
from launcher.ir.project import ProjectSummary
from launcher.ir.proof import Proof
from launcher.ir.speed import ServerSpeed

PLAN_SCHEMA: Final = "launch.plan/v1"
INSPECT_SCHEMA: Final = "launch.inspect/v1"
STATUS_SCHEMA: Final = "launch.status/v1"
CHECK_SCHEMA: Final = "launch.check/v1"
CONFIG_SCHEMA: Final = "launch.config/v1"
RENDER_SCHEMA: Final = "launch.render/v1"
MEMORY_SCHEMA: Final = "launch.memory/v1"
MULTIRUN_SCHEMA: Final = "launch.multirun/v1"
ERROR_SCHEMA: Final = "launch.error/v1"


class HostDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One machine of several. `front`: the front runs there."""

    name: str
    address: str
    front: bool


class HardwareDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that was planned for, or the machines. GPUs have no nodes."""

    name: str
    devices: tuple[DevicePlan, ...]
    hosts: tuple[HostDocument, ...] | msgspec.UnsetType = msgspec.UNSET


class ServerDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One server. `n_ctx` and `n_ctx_per_slot` in tokens, memory in bytes."""

    name: str
    roles: tuple[str, ...]
    port: int
    tier: str
    model: str
    quantization: str
    slots: int
    n_ctx: int
    n_ctx_per_slot: int
    argv: tuple[str, ...]
    env: dict[str, str]
    memory: tuple[DeviceMemory, ...]
    source: Literal["gguf", "declared", "measured", "proven"]
    """Where the figures come from: a header, the catalogue, or the server's own dry run (`proven`)."""
    proven_by: str | msgspec.UnsetType = msgspec.UNSET
    """The build that proved them."""
    host: str | msgspec.UnsetType = msgspec.UNSET
    """Where it runs, of several hosts."""
    address: str | msgspec.UnsetType = msgspec.UNSET
    """Where it listens there."""
    socket: str | msgspec.UnsetType = msgspec.UNSET
    """Path of the unix socket on which it listens, where that is no port (0)."""


class ServiceDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One service beside the servers."""

    name: str
    port: int
    ram_bytes: int
    vram_bytes: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    host: str | msgspec.UnsetType = msgspec.UNSET


class UpstreamDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One server with OpenAI's API that somebody else runs. `models`: as they are asked for here."""

    name: str
    url: str
    models: tuple[str, ...]
    slots: int
    ram_bytes: int
    """What it takes of this machine, as it is stated; of each GPU, `vram_bytes`."""
    vram_bytes: dict[str, int]


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch plan --json`. A plan that failed has findings, and nothing where the plan would be."""

    schema: Literal["launch.plan/v1"] = PLAN_SCHEMA
    deployment: str
    input_digest: str
    hardware: HardwareDocument
    servers: tuple[ServerDocument, ...]
    services: tuple[ServiceDocument, ...]
    totals: PlanTotals
    findings: tuple[Finding, ...]
    upstreams: tuple[UpstreamDocument, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where the front asks servers that somebody else runs."""
    solved: tuple[Solved, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where servers leave layers, experts, quantization or context open: what was chosen, and what would not fit."""
    coresidency: tuple[Residency, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where servers or services start on demand or take turns: which may be up at once, a table a host."""
    speeds: tuple[ServerSpeed, ...] | msgspec.UnsetType = msgspec.UNSET
    """Tokens a second that are expected, where the hardware file or a measurement of this host says anything of it."""
    proof: Proof | None = None
    """With `--prove`: what the server itself says."""
    changes: tuple[FleetChange, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where a fleet of this name runs: what taking over the plan would do to it."""


class RunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of several: the overrides in which it differs from the others, and whether it has no error."""

    overrides: tuple[str, ...]
    fits: bool
    devices: tuple[DevicePlan, ...]
    findings: tuple[Finding, ...]


class MultirunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch -m … --json`: the plan of every combination of values."""

    schema: Literal["launch.multirun/v1"] = MULTIRUN_SCHEMA
    runs: tuple[RunDocument, ...]


class InspectDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch inspect --json`: a model file, and what it needs with the given server fields. Contexts in tokens."""

    schema: Literal["launch.inspect/v1"] = INSPECT_SCHEMA
    file: str
    architecture: str
    parameters: int
    tensors: int
    file_bytes: int
    context_length: int
    n_ctx: int
    n_ctx_per_slot: int
    memory: tuple[DeviceMemory, ...]
    findings: tuple[Finding, ...] = ()
    proof: Proof | None = None


class CheckedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was held against this host (`memory`, `engine default`), and what was found, for people."""

    subject: str
    found: str


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch check --json`: the plan against this host. `findings` are those of the plan and those of the host."""

    schema: Literal["launch.check/v1"] = CHECK_SCHEMA
    deployment: str
    checked: tuple[CheckedDocument, ...]
    findings: tuple[Finding, ...]


class ConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch config --json`."""

    schema: Literal["launch.config/v1"] = CONFIG_SCHEMA
    config: dict[str, Any]
    """All that files and overrides say; what nobody wrote is not in it."""
    origins: dict[str, str]
    """Dotted key → `file:line:column`; of keys below those that were asked for."""


class RenderDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch render --json`. `changes`: how the disk differed; `written`: whether it does no longer."""

    schema: Literal["launch.render/v1"] = RENDER_SCHEMA
    directory: str
    written: bool
    changes: tuple[FileDifference, ...]


class ProjectDocument(ProjectSummary, frozen=True, kw_only=True):
    """One project of a deployment. `owner`: the key that made it; `last_at`: Unix time of its last journal entry."""

    deployment: str


class MemoryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch memory --json`: every project."""

    schema: Literal["launch.memory/v1"] = MEMORY_SCHEMA
    projects: tuple[ProjectDocument, ...]


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What any command prints with `--json` when it cannot go on. `error`: the class that decides the exit code."""

    schema: Literal["launch.error/v1"] = ERROR_SCHEMA
    error: str
    findings: tuple[Finding, ...]
