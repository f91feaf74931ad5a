"""The JSON documents that commands print, as types, so that their schemas are published from one definition. Pure."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from launcher.errors import Finding
from launcher.ir.changes import FleetChange
from launcher.ir.plan import DeviceMemory, DevicePlan, PlanTotals, Residency, Solved
from launcher.ir.proof import Proof

PLAN_SCHEMA: Final = "launch.plan/v1"
INSPECT_SCHEMA: Final = "launch.inspect/v1"
STATUS_SCHEMA: Final = "launch.status/v1"


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
    source: Literal["gguf", "declared", "measured"]
    host: str | msgspec.UnsetType = msgspec.UNSET
    """Where it runs, of several hosts."""
    address: str | msgspec.UnsetType = msgspec.UNSET
    """Where it listens there."""


class ServiceDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One service beside the servers."""

    name: str
    port: int
    ram_bytes: int
    host: str | msgspec.UnsetType = msgspec.UNSET


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
    solved: tuple[Solved, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where servers leave layers, experts, quantization or context open: what was chosen, and what would not fit."""
    coresidency: tuple[Residency, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where servers start on demand or take turns: which may be up at once, a table a host."""
    proof: Proof | None = None
    """With `--prove`: what the server itself says."""
    changes: tuple[FleetChange, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where a fleet of this name runs: what taking over the plan would do to it."""


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
