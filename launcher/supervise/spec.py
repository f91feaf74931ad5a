"""What the supervisor needs of a server or a service, in one shape. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from launcher.ir.fleet import DeviceNeed, FleetManifest, ServerUnit, ServiceUnit, SupervisorUnit
from launcher.supervise.lifecycle import Policy

_SERVICE_GRACE_S = 10.0


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to run; fields as in `launcher.ir.fleet.ServerUnit`. `probe` `health` needs only a 2xx answer."""

    name: str
    kind: Literal["server", "service"]
    argv: tuple[str, ...]
    argv_digest: str
    env: dict[str, str]
    host: str
    port: int
    probe: Literal["completion", "embedding", "rerank", "health"]
    health_path: str
    policy: Policy
    start: Literal["boot", "demand", "never"]
    fatal: bool
    model: str = ""
    model_path: str = ""
    files: tuple[str, ...] = ()
    slots: int = 0
    roles: tuple[str, ...] = ()
    tier: str = ""
    idle_timeout_s: float = 0
    exclusive: str | None = None
    default: bool = False
    after: tuple[str, ...] = ()
    container: bool = False
    builtin: bool = False
    needs: tuple[DeviceNeed, ...] = ()
    fallbacks: tuple[ProcessSpec, ...] = ()
    """What it is started as after out-of-memory, one after another (see `launcher.supervise.fallbacks`)."""
    fallback_label: str = ""
    """Of a fallback: what it sets, for people."""
    slot_save_path: str | None = None
    oom_score_adjust: int = 0


def process_specs(manifest: FleetManifest) -> dict[str, ProcessSpec]:
    """Every process of the manifest by name, in start order: servers, then services."""
    supervisor = manifest.supervisor
    specs = [_server(unit, supervisor) for unit in manifest.servers]
    specs += [_service(unit, supervisor) for unit in manifest.services]
    return {spec.name: spec for spec in specs}


def _server(unit: ServerUnit, supervisor: SupervisorUnit) -> ProcessSpec:
    """A llama-server."""
    planned = ProcessSpec(
        name=unit.name,
        kind="server",
        argv=unit.argv,
        argv_digest=unit.argv_digest,
        env=unit.env,
        host=unit.host,
        port=unit.port,
        probe=unit.probe,
        health_path="/health",
        policy=_policy(supervisor, unit.start_timeout_s, unit.stall_timeout_s, unit.stop_grace_s),
        start=unit.start,
        fatal=unit.fatal,
        model=unit.model,
        model_path=unit.model_path,
        files=unit.files,
        slots=unit.slots,
        roles=unit.roles,
        tier=unit.tier,
        idle_timeout_s=unit.idle_timeout_s,
        exclusive=unit.exclusive,
        default=unit.default,
        after=unit.after,
        needs=unit.memory,
        oom_score_adjust=unit.oom_score_adjust,
        slot_save_path=unit.slot_save_path,
    )
    fallbacks = tuple(
        msgspec.structs.replace(
            planned,
            argv=rung.argv,
            argv_digest=rung.argv_digest,
            env=rung.env,
            model=rung.model,
            model_path=rung.model_path,
            files=rung.files,
            slots=rung.slots,
            needs=rung.memory,
            fallback_label=rung.label,
        )
        for rung in unit.rungs
    )
    return msgspec.structs.replace(planned, fallbacks=fallbacks)


def _service(unit: ServiceUnit, supervisor: SupervisorUnit) -> ProcessSpec:
    """A process beside the llama-servers. A container engine that is absent never stops the fleet."""
    return ProcessSpec(
        name=unit.name,
        kind="service",
        argv=unit.argv,
        argv_digest="",
        env=unit.env,
        host=unit.host,
        port=unit.port,
        probe="health",
        health_path=unit.health_path,
        policy=_policy(supervisor, unit.start_timeout_s, 0, _SERVICE_GRACE_S),
        start=unit.start,
        fatal=unit.fatal,
        model=unit.model,
        container=unit.container is not None,
        builtin=unit.builtin is not None,
        needs=(DeviceNeed(device="ram", committed_bytes=unit.ram_bytes, peak_bytes=unit.ram_bytes, file_bytes=0),),
    )


def _policy(supervisor: SupervisorUnit, start_s: float, stall_s: float, grace_s: float) -> Policy:
    """Timers of one process."""
    return Policy(
        start_timeout_s=start_s,
        stall_timeout_s=stall_s,
        stop_grace_s=grace_s,
        backoff_s=supervisor.backoff_s,
        backoff_max_s=supervisor.backoff_max_s,
        crash_loop_failures=supervisor.crash_loop_failures,
        crash_loop_window_s=supervisor.crash_loop_window_s,
    )
