"""The JSON documents of plans and files, as types; `launcher.ir.answers` has the others, and all schemas. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from launcher.base.addresses import socket_path
from launcher.errors import Finding
from launcher.ir.deployment import FileDifference
from launcher.ir.live import Manager
from launcher.ir.measured import ServerSpeed
from launcher.ir.plan import DeviceMemory, DevicePlan, FleetPlan, PlanTotals, Residency, ServerPlan, Solved
from launcher.ir.proof import Proof


class FleetChange(msgspec.Struct, frozen=True, kw_only=True):
    """One running fleet of the plan's name: processes by name, with reasons for the restarted ones.

    `drift` lists what differs from the fleet's own files: layer (`generated`, `installed`, `loaded`, `running`) and
    where. `command` takes the plan over; where it is empty, none does, and `hindrance` says why.
    """

    manager: Manager
    started: tuple[str, ...]
    stopped: tuple[str, ...]
    restarted: dict[str, str]
    kept: tuple[str, ...]
    front: tuple[str, ...] = ()
    """Changes of the front; address, certificate, keys and limits included."""
    drift: tuple[str, ...] = ()
    command: str = ""
    hindrance: str = ""
    on_demand: tuple[str, ...] = ()
    """Those of `started` that come up with their first request only."""


class HostDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One of several machines. `front`: whether the front runs there."""

    name: str
    address: str
    front: bool


class HardwareDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, or the machines, of the plan. GPUs have no nodes."""

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
    """Source of the figures: a header, the catalogue, or the server's own dry run (`proven`)."""
    proven_by: str | msgspec.UnsetType = msgspec.UNSET
    """The build that proved them."""
    host: str | msgspec.UnsetType = msgspec.UNSET
    """The host it runs on, if there are several."""
    address: str | msgspec.UnsetType = msgspec.UNSET
    """The address it listens on there."""
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
    """One server with OpenAI's API that somebody else runs. `models`: names for requests here."""

    name: str
    url: str
    models: tuple[str, ...]
    slots: int
    ram_bytes: int
    """RAM of this machine that it takes, as stated; `vram_bytes` of each GPU."""
    vram_bytes: dict[str, int]


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch plan --json`. A plan that failed has findings only."""

    schema: Literal["launch.plan/v1"] = "launch.plan/v1"
    deployment: str
    input_digest: str
    hardware: HardwareDocument
    servers: tuple[ServerDocument, ...]
    services: tuple[ServiceDocument, ...]
    totals: PlanTotals
    findings: tuple[Finding, ...]
    upstreams: tuple[UpstreamDocument, ...] | msgspec.UnsetType = msgspec.UNSET
    """Servers that somebody else runs and the front sends requests to."""
    solved: tuple[Solved, ...] | msgspec.UnsetType = msgspec.UNSET
    """Choices made for open layers, experts, quantizations and contexts, and what would not fit."""
    coresidency: tuple[Residency, ...] | msgspec.UnsetType = msgspec.UNSET
    """If servers or services start on demand or take turns: which may be up at once, one table per host."""
    speeds: tuple[ServerSpeed, ...] | msgspec.UnsetType = msgspec.UNSET
    """Expected tokens per second, where the hardware file or a measurement of this host tells."""
    proof: Proof | None = None
    """With `--prove`: what the server itself says."""
    changes: tuple[FleetChange, ...] | msgspec.UnsetType = msgspec.UNSET
    """If a fleet of this name runs: what taking over the plan would change."""


class RunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of several: the overrides in which it differs from the others, and whether it has no error."""

    overrides: tuple[str, ...]
    fits: bool
    devices: tuple[DevicePlan, ...]
    findings: tuple[Finding, ...]


class MultirunDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch -m … --json`: the plan of every combination of values."""

    schema: Literal["launch.multirun/v1"] = "launch.multirun/v1"
    runs: tuple[RunDocument, ...]


class InspectDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch inspect --json`: a model file, and what it needs with the given server fields. Contexts in tokens."""

    schema: Literal["launch.inspect/v1"] = "launch.inspect/v1"
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
    """One thing that was compared with this host (`memory`, `engine default`), and the result, for people."""

    subject: str
    found: str


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch check --json`: the plan against this host. `findings` are those of the plan and those of the host."""

    schema: Literal["launch.check/v1"] = "launch.check/v1"
    deployment: str
    checked: tuple[CheckedDocument, ...]
    findings: tuple[Finding, ...]


class ConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch config --json`."""

    schema: Literal["launch.config/v1"] = "launch.config/v1"
    config: dict[str, Any]
    """All values from files and overrides; defaults are left out."""
    origins: dict[str, str]
    """Dotted key → `file:line:column`; of keys below those that were asked for."""


class RenderDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch render --json`. `changes`: how the disk differed; `written`: whether it does no longer."""

    schema: Literal["launch.render/v1"] = "launch.render/v1"
    directory: str
    written: bool
    changes: tuple[FileDifference, ...]


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Printed by any command with `--json` that fails. `error`: the class that decides the exit code."""

    schema: Literal["launch.error/v1"] = "launch.error/v1"
    error: str
    findings: tuple[Finding, ...]


def plan_document(
    plan: FleetPlan,
    argv: Mapping[str, tuple[str, ...]],
    env: Mapping[str, Mapping[str, str]],
    findings: Iterable[Finding] | None = None,
    proof: Proof | None = None,
    *,
    speeds: tuple[ServerSpeed, ...] = (),
) -> dict[str, Any]:
    """`launch plan --json` for `plan`, with argv and environment by server; `findings` default to the plan's own."""
    document = PlanDocument(
        deployment=plan.deployment,
        input_digest=plan.input_digest,
        hardware=_hardware(plan),
        servers=tuple(_server(server, argv[server.name], env.get(server.name, {})) for server in plan.servers),
        services=_services(plan),
        upstreams=_upstreams(plan) or msgspec.UNSET,
        totals=plan.totals,
        findings=tuple(plan.findings if findings is None else findings),
        solved=plan.solved or msgspec.UNSET,
        coresidency=plan.residency or msgspec.UNSET,
        speeds=speeds or msgspec.UNSET,
        proof=proof,
    )
    built: dict[str, Any] = msgspec.to_builtins(document)
    return built


def _hardware(plan: FleetPlan) -> HardwareDocument:
    """The machine, or the machines, with the front's: the first of the plan's devices."""
    hardware = plan.config.hardware
    first = plan.devices[0].host if plan.devices else ""
    hosts = tuple(HostDocument(name=n, address=h.address, front=n == first) for n, h in hardware.hosts.items())
    return HardwareDocument(name=hardware.name, devices=plan.devices, hosts=hosts or msgspec.UNSET)


def _server(server: ServerPlan, argv: tuple[str, ...], env: Mapping[str, str]) -> ServerDocument:
    config, settings, proved = server.config, server.settings, server.proved
    return ServerDocument(
        name=server.name,
        roles=config.roles,
        port=server.port,
        tier=server.tier,
        model=config.model,
        quantization=config.quantization,
        slots=settings.slots,
        n_ctx=settings.n_ctx,
        n_ctx_per_slot=settings.n_ctx_per_slot,
        argv=argv,
        env=dict(env),
        memory=server.memory,
        source="proven" if proved else server.model.source,
        proven_by=proved.build if proved else msgspec.UNSET,
        host=server.on or msgspec.UNSET,
        address=config.host if server.on else msgspec.UNSET,
        socket=socket_path(config.host) or msgspec.UNSET,
    )


def _services(plan: FleetPlan) -> tuple[ServiceDocument, ...]:
    return tuple(
        ServiceDocument(
            name=service.name,
            port=service.port,
            ram_bytes=service.config.ram_bytes,
            vram_bytes=service.config.vram_bytes or msgspec.UNSET,
            host=service.on or msgspec.UNSET,
        )
        for service in plan.services
    )


def _upstreams(plan: FleetPlan) -> tuple[UpstreamDocument, ...]:
    return tuple(
        UpstreamDocument(
            name=name,
            url=upstream.url,
            models=(*upstream.models, *upstream.aliases),
            slots=upstream.slots,
            ram_bytes=upstream.ram_bytes,
            vram_bytes=upstream.vram_bytes,
        )
        for name, upstream in plan.config.upstreams.items()
    )
