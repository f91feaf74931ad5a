"""`FleetPlan` → `FleetManifest`: what the runtime executes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.errors import Finding
from launcher.ir.config import HookConfig
from launcher.ir.fleet import (
    DeviceBudget,
    DeviceNeed,
    FleetManifest,
    HookUnit,
    NodeBudget,
    RungUnit,
    ServerUnit,
    ServiceUnit,
    SupervisorUnit,
)
from launcher.ir.plan import DevicePlan, FleetPlan, RungPlan, ServerPlan, ServicePlan
from launcher.render.command import Command
from launcher.render.containers import container_argv
from launcher.render.names import resolve
from launcher.render.passed import files_of
from launcher.render.probes import probe_kind
from launcher.render.targets import targets_of

_PARTS = ("model", "kv", "recurrent", "output", "compute", "draft", "projector", "overhead")
"""Of `DeviceMemory`, what makes up committed and file."""


def fleet_manifest(
    plan: FleetPlan,
    commands: Mapping[str, Command],
    launch_version: str,
    rungs: Mapping[str, tuple[Command, ...]] | None = None,
) -> tuple[FleetManifest, tuple[Finding, ...]]:
    """The manifest of `plan`; a hook whose server is not part of the plan is left out with a note."""
    hooks: list[HookUnit] = []
    findings: list[Finding] = []
    for name, hook in plan.config.hooks.items():
        if not hook.enabled:
            continue
        server, path = _hook_target(hook, plan)
        if hook.http is not None and server is None:
            findings.append(_hook_left_out(name, hook))
            continue
        hooks.append(_hook_unit(name, hook, server, path))
    manifest = FleetManifest(
        deployment=plan.deployment,
        input_digest=plan.input_digest,
        launch_version=launch_version,
        hardware=plan.config.hardware.name,
        devices=tuple(
            DeviceBudget(
                name=d.name,
                kind=d.kind,
                capacity_bytes=d.capacity_bytes,
                budget_bytes=d.budget_bytes,
                worst_bytes=d.peak_bytes,
                nodes=_nodes(d),
            )
            for d in plan.devices
        ),
        servers=tuple(
            _server_unit(server, plan, commands[server.name], (rungs or {}).get(server.name, ()))
            for server in plan.servers
        ),
        services=tuple(_service_unit(service, plan) for service in plan.services),
        hooks=tuple(hooks),
        supervisor=msgspec.convert(plan.config.runtime, SupervisorUnit, from_attributes=True),
        targets=targets_of(plan) or msgspec.UNSET,
        host=plan.on or msgspec.UNSET,
    )
    return manifest, tuple(findings)


def _server_unit(server: ServerPlan, plan: FleetPlan, command: Command, rungs: tuple[Command, ...]) -> ServerUnit:
    """One server as the supervisor runs it."""
    tier = plan.config.tiers[server.tier]
    return ServerUnit(
        name=server.name,
        roles=server.config.roles,
        aliases=server.config.aliases,
        argv=command.argv,
        env=command.env,
        host=server.config.host,
        port=server.port,
        model=server.entry,
        model_path=server.model.path,
        files=files_of(server),
        slots=server.settings.slots,
        n_ctx_per_slot=server.settings.n_ctx_per_slot,
        probe=probe_kind(server),
        tier=server.tier,
        start=tier.start,
        idle_timeout_s=tier.idle_timeout_s,
        expansion_threshold=tier.expansion_threshold,
        exclusive=server.config.exclusive,
        oom_score_adjust=tier.oom_score_adjust,
        default=server.default,
        after=server.after,
        start_timeout_s=server.start_timeout_s,
        stall_timeout_s=server.config.stall_timeout_s,
        request_timeout_s=server.config.request_timeout_s,
        stop_grace_s=server.config.stop_grace_s,
        fatal=server.config.fatal,
        request_defaults=server.config.request_defaults,
        memory=_needs(server, _pooled(plan, server)),
        argv_digest=command.digest,
        rungs=tuple(
            _rung_unit(rung, spelled, _pooled(plan, server))
            for rung, spelled in zip(plan.ladders.get(server.name, ()), rungs, strict=False)
        ),
        slot_save_path=server.config.slot_save_path,
        cooldown_s=server.cooldown_s,
        load_s=server.load_s,
        proved=server.proved,
        peers=_peers(server, plan),
        min_stay_s=msgspec.UNSET if server.config.min_stay_s is None else server.config.min_stay_s,
    )


def _peers(server: ServerPlan, plan: FleetPlan) -> tuple[str, ...]:
    """Where the RPC servers of its devices listen."""
    gpus = plan.config.hardware.machine(server.on).gpus
    named = (gpus[device].endpoint for device in server.settings.devices if device in gpus)
    return tuple(dict.fromkeys(endpoint for endpoint in named if endpoint))


def _rung_unit(rung: RungPlan, command: Command, pooled: frozenset[str]) -> RungUnit:
    """One rung of its ladder."""
    server = rung.server
    return RungUnit(
        label=rung.label,
        argv=command.argv,
        argv_digest=command.digest,
        env=command.env,
        model=server.entry,
        model_path=server.model.path,
        files=files_of(server),
        slots=server.settings.slots,
        n_ctx_per_slot=server.settings.n_ctx_per_slot,
        memory=_needs(server, pooled),
    )


def _pooled(plan: FleetPlan, server: ServerPlan) -> frozenset[str]:
    """GPUs of the server's host that use its RAM."""
    return plan.config.hardware.machine(server.on).pooled


def _needs(server: ServerPlan, pooled: frozenset[str]) -> tuple[DeviceNeed, ...]:
    """What it takes by device; of RAM, too, what it takes of GPUs that use it (`pooled`)."""
    drawn = [m for m in server.memory if m.device in pooled]
    more = {"ram": (sum(m.committed_bytes for m in drawn), sum(m.peak_bytes for m in drawn))}
    return tuple(
        DeviceNeed(
            device=m.device,
            committed_bytes=m.committed_bytes + more.get(m.device, (0, 0))[0],
            peak_bytes=m.peak_bytes + more.get(m.device, (0, 0))[1],
            file_bytes=m.file_bytes,
            locked_bytes=m.locked_bytes,
            parts={part: size for part in _PARTS if (size := getattr(m, f"{part}_bytes"))},
        )
        for m in server.memory
    )


def _nodes(device: DevicePlan) -> tuple[NodeBudget, ...]:
    """The NUMA nodes of a device that has several."""
    return tuple(
        NodeBudget(
            id=n.id,
            capacity_bytes=n.capacity_bytes,
            planned_bytes=n.planned_bytes,
            peak_bytes=n.peak_bytes,
            servers=n.servers,
        )
        for n in (device.nodes if len(device.nodes) > 1 else ())
    )


def _service_unit(service: ServicePlan, plan: FleetPlan) -> ServiceUnit:
    """One service as the supervisor runs it; a container through the container tool, in the foreground."""
    config, engine = service.config, plan.config.runtime.container_engine
    name = f"{plan.config.deploy.unit_prefix}-{service.name}"
    gpus = plan.config.hardware.machine(service.on).gpus
    return ServiceUnit(
        name=service.name,
        argv=container_argv(config, name, engine, gpus) if config.container else config.command,
        env=dict(sorted(config.env.items())),
        host=config.host,
        port=service.port,
        health_path=config.health_path,
        start=service.starts,
        start_timeout_s=config.start_timeout_s,
        fatal=config.fatal,
        ram_bytes=config.ram_bytes,
        builtin=config.builtin,
        container=config.container.image if config.container else None,
        description=config.description,
        model=config.model,
        exclusive=config.exclusive,
        idle_timeout_s=plan.config.tiers[config.tier].idle_timeout_s if config.tier in plan.config.tiers else 0,
        slots=config.slots if config.models else 0,
        vram_bytes=config.vram_bytes,
        protocol=config.protocol,
    )


def _hook_target(hook: HookConfig, plan: FleetPlan) -> tuple[str | None, str | None]:
    """Server and path of an http hook (`embedder_0/embedding`); the server by name, role or alias."""
    if hook.http is None:
        return None, None
    name, _, path = hook.http.partition("/")
    servers = resolve(name, plan.servers)
    return (servers[0] if servers else None), f"/{path}"


def _hook_unit(name: str, hook: HookConfig, server: str | None, path: str | None) -> HookUnit:
    """One hook with its target settled."""
    return HookUnit(
        name=name,
        server=server,
        path=path,
        body=hook.body,
        command=hook.command,
        python=hook.python,
        timeout_s=hook.timeout_s,
        on_failure=hook.on_failure,
    )


def _hook_left_out(name: str, hook: HookConfig) -> Finding:
    """The note for a hook that asks a server which this profile does not run."""
    message = f"hook {name} is left out: no server of this deployment answers to {str(hook.http).partition('/')[0]!r}"
    return Finding(code="render/hook-left-out", severity="note", key=f"hooks.{name}", message=message)
