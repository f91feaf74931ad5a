"""`FleetPlan` → `FleetManifest`: what the runtime runs, and its service levels. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.errors import Finding, fault
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
    TargetUnit,
)
from launcher.ir.plan import FleetPlan, RungPlan, ServerPlan, ServicePlan
from launcher.render.beside_units import container_argv
from launcher.render.command import Command
from launcher.render.passed import files_of
from launcher.render.routes import resolve
from launcher.render.units import probe_kind


def targets_of(plan: FleetPlan) -> tuple[TargetUnit, ...]:
    """The service levels that the config sets for the servers of `plan`."""
    cycle = plan.config.orchestration
    found = []
    if cycle and cycle.swap_target_s is not None and any(s.config.exclusive for s in plan.servers):
        found.append(TargetUnit(name="swap_seconds", server="", limit=cycle.swap_target_s))
    for server in plan.servers:
        speed = plan.config.wanted(server.name, "tokens_per_second_min")
        if speed is not None:
            found.append(TargetUnit(name="tokens_per_second", server=server.name, limit=speed))
        first = plan.config.wanted(server.name, "first_token_max_s")
        if first is not None:
            found.append(TargetUnit(name="first_token_seconds", server=server.name, limit=first))
    return tuple(found)


_PARTS = ("model", "kv", "recurrent", "output", "compute", "draft", "projector", "overhead")
"""Fields of `DeviceMemory` that make up committed and file."""


def fleet_manifest(
    plan: FleetPlan,
    commands: Mapping[str, Command],
    launch_version: str,
    rungs: Mapping[str, tuple[Command, ...]] | None = None,
) -> tuple[FleetManifest, tuple[Finding, ...]]:
    """The manifest of `plan`; a hook whose server is not part of the plan is left out with a note."""
    hooks, findings = _hooks(plan)
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
                nodes=tuple(msgspec.convert(n, NodeBudget, from_attributes=True) for n in d.nodes)
                if len(d.nodes) > 1
                else (),
            )
            for d in plan.devices
        ),
        servers=tuple(
            _server_unit(server, plan, commands[server.name], (rungs or {}).get(server.name, ()))
            for server in plan.servers
        ),
        services=tuple(_service_unit(service, plan) for service in plan.services),
        hooks=hooks,
        supervisor=msgspec.convert(plan.config.runtime, SupervisorUnit, from_attributes=True),
        targets=targets_of(plan) or msgspec.UNSET,
        host=plan.on or msgspec.UNSET,
    )
    return manifest, findings


def _server_unit(server: ServerPlan, plan: FleetPlan, command: Command, rungs: tuple[Command, ...]) -> ServerUnit:
    tier = plan.config.tiers[server.tier]
    gpus = plan.config.hardware.machine(server.on).gpus
    endpoints = (gpus[device].endpoint for device in server.settings.devices if device in gpus)
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
        memory=_needs(server, plan),
        argv_digest=command.digest,
        rungs=tuple(
            _rung_unit(rung, spelled, plan)
            for rung, spelled in zip(plan.ladders.get(server.name, ()), rungs, strict=False)
        ),
        slot_save_path=server.config.slot_save_path,
        cooldown_s=server.cooldown_s,
        load_s=server.load_s,
        proved=server.proved,
        peers=tuple(dict.fromkeys(endpoint for endpoint in endpoints if endpoint)),
        min_stay_s=msgspec.UNSET if server.config.min_stay_s is None else server.config.min_stay_s,
    )


def _rung_unit(rung: RungPlan, command: Command, plan: FleetPlan) -> RungUnit:
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
        memory=_needs(server, plan),
    )


def _needs(server: ServerPlan, plan: FleetPlan) -> tuple[DeviceNeed, ...]:
    """Memory per device; RAM includes what it takes of GPUs that use the host's RAM."""
    pooled = plan.config.hardware.machine(server.on).pooled
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


def _hooks(plan: FleetPlan) -> tuple[tuple[HookUnit, ...], tuple[Finding, ...]]:
    """Hooks with their targets settled; a note for each that asks a server which this profile does not run.

    An http hook (`embedder_0/embedding`) names its server by name, role or alias.
    """
    hooks: list[HookUnit] = []
    findings: list[Finding] = []
    for name, hook in plan.config.hooks.items():
        asked, _, path = (hook.http or "").partition("/")
        servers = resolve(asked, plan.servers) if hook.http is not None else ()
        if hook.enabled and hook.http is not None and not servers:
            message = f"hook {name} is left out: no server of this deployment answers to {asked!r}"
            found = fault("render/hook-left-out", f"hooks.{name}", message, severity="note")
            findings.append(found)
        elif hook.enabled:
            unit = HookUnit(
                name=name,
                server=next(iter(servers), None),
                path=f"/{path}" if hook.http is not None else None,
                body=hook.body,
                command=hook.command,
                python=hook.python,
                timeout_s=hook.timeout_s,
                on_failure=hook.on_failure,
            )
            hooks.append(unit)
    return tuple(hooks), tuple(findings)
