"""Units beside the servers': the front, services that are commands, sockets and proxies. Pure."""

from __future__ import annotations

import math
from typing import Any

from launcher.ir.plan import FleetPlan, ServerPlan, ServicePlan
from launcher.render.probes import reachable_url
from launcher.render.server_keys import own_key_file
from launcher.render.systemd_quote import credential_path, quote_assignments, quote_bind, quote_command
from launcher.render.unit_names import (
    FRONT,
    data_dir,
    front_tier,
    is_loopback,
    shared_user,
    slice_name,
    socket_path,
    target_name,
    unit_name,
)
from launcher.render.units import EXPOSURE_PYTHON, EXPOSURE_UNIX, HIDDEN, MIB, libexec_command

FRONT_BYTES = 1024 * MIB
"""The front's MemoryMax=: 60 MiB at rest, and room for the request bodies that it may hold."""


def front_values(plan: FleetPlan) -> dict[str, Any]:
    """What `front.service.j2` needs: the front alone over servers that systemd keeps running."""
    deploy, front = plan.config.deploy, plan.config.runtime.front
    credential = front.api_key_file and deploy.scope != "user"
    key = ("--api-key-file", "%d/api-key") if credential else ()
    words = (*quote_command((deploy.launch, "serve", "--route-only", "--no-color")), *key, data_dir(plan))
    tier = front_tier(plan)
    return {
        **_sandbox(plan, deploy.launch, (front.port,), loopback=True),
        "unit": unit_name(plan, FRONT),
        "description": f"launch front: one HTTP port for {plan.deployment}",
        "target": target_name(plan, tier or ""),
        "slice": slice_name(plan, tier) if tier else None,
        "command": " ".join(words),
        "stop_timeout_s": math.ceil(plan.config.runtime.drain_timeout_s) + 5,
        "credentials": _front_credentials(plan),
        "memory_max": str(FRONT_BYTES),
        # it keeps the memory of projects there
        "state_directory": f"{deploy.unit_prefix}-{FRONT}" if plan.config.orchestration else None,
        "loopback": is_loopback(front.host) and all(is_loopback(s.host) for s in (*plan.servers, *plan.remote)),
    }


def _front_credentials(plan: FleetPlan) -> tuple[str, ...]:
    """Key files that systemd reads for the front, as `ID:PATH`: its own, and those of servers that ask for a key."""
    if plan.config.deploy.scope == "user":
        return ()
    front = plan.config.runtime.front.api_key_file
    files = {"api-key": front} if front else {}
    files |= {f"key-{s.name}": key for s in (*plan.servers, *plan.remote) if (key := own_key_file(s.extra_args))}
    return tuple(f"{name}:{credential_path(path)}" for name, path in files.items())


def command_values(service: ServicePlan, plan: FleetPlan) -> dict[str, Any]:
    """What `command.service.j2` needs for a service that is a command."""
    config, runtime = service.config, plan.config.runtime
    attempts = max(1, runtime.crash_loop_failures)
    slowest = attempts * (config.start_timeout_s + runtime.backoff_s) * 1.1
    return {
        **_sandbox(plan, config.command[0], (service.port,), loopback=is_loopback(config.host)),
        "unit": unit_name(plan, service.name),
        "description": " ".join(f"{service.name}: {config.description}".split()).replace("%", "%%"),
        "target": target_name(plan, config.tier),
        "slice": slice_name(plan, config.tier),
        "start_limit_burst": attempts,
        "start_limit_interval_s": math.ceil(max(runtime.crash_loop_window_s, slowest)),
        "command": " ".join(quote_command(config.command)),
        "gate": libexec_command(
            plan, "launch-gate", "-", reachable_url(config.host, service.port) + config.health_path
        ),
        "start_timeout_s": math.ceil(config.start_timeout_s),
        "restart_s": f"{max(runtime.backoff_s, 0.1):g}",
        "environment": quote_assignments(config.env),
        "memory_max": str(_limit(config.ram_bytes)) if config.ram_bytes else "infinity",
        "oom_score_adjust": plan.tiers[config.tier].oom_score_adjust,
        "state_directory": f"{plan.config.deploy.unit_prefix}-{service.name}",
    }


def container_values(service: ServicePlan, plan: FleetPlan) -> dict[str, Any]:
    """What `quadlet.container.j2` needs for a service that is a container.

    Where the service is for this machine only, so are its published ports. Values that systemd splits are quoted.
    """
    config, runtime, container = service.config, plan.config.runtime, service.config.container
    if container is None:
        raise ValueError(f"{service.name} is no container")
    attempts = max(1, runtime.crash_loop_failures)
    slowest = attempts * (config.start_timeout_s + runtime.backoff_s) * 1.1
    near = "127.0.0.1:" if is_loopback(config.host) else ""
    url = reachable_url(config.host, service.port)
    return {
        "unit": unit_name(plan, service.name),
        "container": f"{plan.config.deploy.unit_prefix}-{service.name}",
        "description": " ".join(f"{service.name}: {config.description}".split()).replace("%", "%%"),
        "target": target_name(plan, config.tier),
        "slice": slice_name(plan, config.tier),
        "image": container.image.replace("%", "%%"),
        "ports": tuple(port if port.count(":") > 1 else near + port for port in container.ports),
        "volumes": tuple(volume.replace("%", "%%") for volume in container.volumes),
        "environment": quote_assignments(config.env),
        "arguments": " ".join(quote_command(("", *container.args))[1:]),
        "memory_bytes": _limit(config.ram_bytes) if config.ram_bytes else 0,
        "gate": libexec_command(plan, "launch-gate", "-", f"{url}{config.health_path}"),
        "start_timeout_s": math.ceil(config.start_timeout_s),
        "restart_s": f"{max(runtime.backoff_s, 0.1):g}",
        "start_limit_burst": attempts,
        "start_limit_interval_s": math.ceil(max(runtime.crash_loop_window_s, slowest)),
    }


def _limit(ram_bytes: int) -> int:
    """The memory limit of a service that takes `ram_bytes`: a quarter and 256 MiB more."""
    return ram_bytes + ram_bytes // 4 + 256 * MIB


def warm_values(server: ServerPlan, plan: FleetPlan) -> dict[str, Any]:
    """What `warm.socket.j2` and `warm-proxy.service.j2` need; only for servers with a `socket_path`."""
    path = socket_path(plan, server) or ""
    drain_s = math.ceil(plan.config.runtime.drain_timeout_s)
    idle = math.ceil(plan.tiers[server.tier].idle_timeout_s)
    host = f"[{server.host}]" if ":" in server.host else server.host.replace("localhost", "127.0.0.1")
    drain = libexec_command(plan, "launch-drain", f"unix:{path}", str(drain_s)) if server.exclusive else None
    return {
        **_sandbox(plan, "", (), loopback=True),
        "private_network": True,
        "exposure": EXPOSURE_UNIX,
        "unit": unit_name(plan, server.name, "socket"),
        "name": server.name,
        "target": target_name(plan, server.tier),
        "revive": f"{plan.config.deploy.unit_prefix}-revive@%n.service",
        "address": f"{host}:{server.port}",
        "proxy": unit_name(plan, f"{server.name}-proxy"),
        "backend": unit_name(plan, server.name),
        "idle": f"{idle}s" if idle else "infinity",
        "path": path,
        "drain": drain,
        "stop_timeout_s": drain_s + 5,
        "shared_user": shared_user(plan, server.name),
    }


def _sandbox(plan: FleetPlan, program: str, ports: tuple[int, ...], *, loopback: bool) -> dict[str, Any]:
    """What `sandbox.j2` needs for a process without a GPU. A program below a hidden directory is bound in."""
    hidden = program.startswith(tuple(f"{directory}/" for directory in HIDDEN))
    return {
        "user_scope": plan.config.deploy.scope == "user",
        "user": plan.config.deploy.user,
        "exposure": EXPOSURE_PYTHON,
        "hardening": plan.config.deploy.hardening,
        "bind_read_only": (quote_bind(program.rpartition("/")[0]),) if hidden else (),
        "denied_calls": "~@privileged @resources",
        "ports": ports,
        "loopback": loopback,
        "device_allow": (),
    }
