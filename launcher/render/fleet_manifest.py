"""`FleetPlan` → `FleetManifest`: what the runtime executes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.errors import Finding
from launcher.ir.config import HookConfig, RuntimeConfig
from launcher.ir.fleet import (
    DeviceBudget,
    DeviceNeed,
    FleetManifest,
    HookUnit,
    RungUnit,
    ServerUnit,
    ServiceUnit,
    SupervisorUnit,
)
from launcher.ir.plan import FleetPlan, RungPlan, ServerPlan, ServicePlan
from launcher.render.command import Command
from launcher.render.names import resolve
from launcher.render.probes import probe_kind

CONTAINER_TOOL = "podman"


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
            )
            for d in plan.devices
        ),
        servers=tuple(
            _server_unit(server, plan, commands[server.name], (rungs or {}).get(server.name, ()))
            for server in plan.servers
        ),
        services=tuple(_service_unit(service, plan) for service in plan.services),
        hooks=tuple(hooks),
        supervisor=_supervisor(plan.config.runtime),
        host=plan.on or msgspec.UNSET,
    )
    return manifest, tuple(findings)


def _server_unit(server: ServerPlan, plan: FleetPlan, command: Command, rungs: tuple[Command, ...]) -> ServerUnit:
    """One server as the supervisor runs it."""
    tier = plan.tiers[server.tier]
    return ServerUnit(
        name=server.name,
        roles=server.roles,
        aliases=server.aliases,
        argv=command.argv,
        env=command.env,
        host=server.host,
        port=server.port,
        model=f"{server.model} {server.quantization}",
        model_path=server.model_path,
        files=_files(server),
        slots=server.slots,
        n_ctx_per_slot=server.n_ctx_per_slot,
        probe=probe_kind(server),
        tier=server.tier,
        start=tier.start,
        idle_timeout_s=tier.idle_timeout_s,
        expansion_threshold=tier.expansion_threshold,
        exclusive=server.exclusive,
        oom_score_adjust=tier.oom_score_adjust,
        default=server.default,
        after=server.after,
        start_timeout_s=server.start_timeout_s,
        stall_timeout_s=server.stall_timeout_s,
        request_timeout_s=server.request_timeout_s,
        stop_grace_s=server.stop_grace_s,
        fatal=server.fatal,
        request_defaults=server.request_defaults,
        memory=_needs(server),
        argv_digest=command.digest,
        rungs=tuple(
            _rung_unit(rung, spelled) for rung, spelled in zip(plan.ladders.get(server.name, ()), rungs, strict=False)
        ),
        slot_save_path=server.slot_save_path,
    )


def _rung_unit(rung: RungPlan, command: Command) -> RungUnit:
    """One rung of its ladder."""
    server = rung.server
    return RungUnit(
        label=rung.label,
        argv=command.argv,
        argv_digest=command.digest,
        env=command.env,
        model=f"{server.model} {server.quantization}",
        model_path=server.model_path,
        files=_files(server),
        slots=server.slots,
        n_ctx_per_slot=server.n_ctx_per_slot,
        memory=_needs(server),
    )


def _files(server: ServerPlan) -> tuple[str, ...]:
    """Every file that must be there before a start."""
    parts = server.file_parts or (server.model_path,)
    return tuple(dict.fromkeys(f for f in (*parts, server.draft_path, server.projector_path) if f))


def _needs(server: ServerPlan) -> tuple[DeviceNeed, ...]:
    """What it takes by device."""
    return tuple(
        DeviceNeed(
            device=m.device,
            committed_bytes=m.committed_bytes,
            peak_bytes=m.peak_bytes,
            file_bytes=m.file_bytes,
            locked_bytes=m.locked_bytes,
        )
        for m in server.memory
    )


def _service_unit(service: ServicePlan, plan: FleetPlan) -> ServiceUnit:
    """One service as the supervisor runs it; a container through the container tool, in the foreground."""
    config = service.config
    return ServiceUnit(
        name=service.name,
        argv=_container_argv(service, plan) if config.container else config.command,
        env=dict(sorted(config.env.items())),
        host=config.host,
        port=service.port,
        health_path=config.health_path,
        start=plan.tiers[config.tier].start,
        start_timeout_s=config.start_timeout_s,
        fatal=config.fatal,
        ram_bytes=config.ram_bytes,
        builtin=config.builtin,
        container=config.container.image if config.container else None,
        description=config.description,
        model=config.model,
    )


def _container_argv(service: ServicePlan, plan: FleetPlan) -> tuple[str, ...]:
    """`podman run` of a service's image: removed on exit, replacing one of the same name."""
    container = service.config.container
    if container is None:
        return ()
    name = f"{plan.config.deploy.unit_prefix}-{service.name}"
    options = [f"--publish={port}" for port in container.ports]
    options += [f"--volume={volume}" for volume in container.volumes]
    options += [f"--env={key}={value}" for key, value in sorted(service.config.env.items())]
    run = (CONTAINER_TOOL, "run", "--rm", "--replace", f"--name={name}")
    return (*run, *options, container.image, *container.args)


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


def _supervisor(runtime: RuntimeConfig) -> SupervisorUnit:
    """Supervision settings."""
    names = SupervisorUnit.__struct_fields__
    return SupervisorUnit(**{name: getattr(runtime, name) for name in names})
