"""Units beside the servers': the runtime, and services that are commands or containers. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from string import ascii_letters
from typing import Any, NamedTuple

from launcher.base.addresses import is_loopback, is_path
from launcher.ir.backends import BACKENDS
from launcher.ir.config import ContainerConfig, GpuConfig, ServiceConfig
from launcher.ir.plan import FleetPlan, ServicePlan
from launcher.render.command import place
from launcher.render.passed import own_key_file
from launcher.render.quoting import credential_path, quote_assignments, quote_bind, quote_command
from launcher.render.routes import outside_targets
from launcher.render.units import (
    EXPOSURE_RUNTIME,
    device_nodes,
    hidden_folder,
    hidden_paths,
    runtime_tier,
    runtime_user,
    sandbox,
    unit_name,
    unit_values,
    units_of,
)
from launcher.sizes import MIB


class Cards(NamedTuple):
    """The cards of a container: devices by name or node, environment that chooses among cards, numbers for docker."""

    devices: tuple[str, ...]
    env: dict[str, str]
    numbers: tuple[str, ...]
    """Numbers of NVIDIA cards."""

    @property
    def group(self) -> bool:
        """Whether nodes among them are opened by right of a group, render or video."""
        return any(device.startswith("/") for device in self.devices)


def cards(config: ServiceConfig, gpus: Mapping[str, GpuConfig]) -> Cards:
    """The cards that a service's container gets for its `vram_bytes`; its own `env` is kept."""
    by_backend: dict[str, list[str]] = {}
    for device in config.vram_bytes:
        if device in gpus:
            placement, _ = place((device,), gpus, "")
            by_backend.setdefault(gpus[device].backend, []).append(_number(placement.devices[0]))
    kinds = {backend: BACKENDS[backend].cdi_kind for backend in by_backend}
    devices = [f"{kind}={number}" for backend, kind in kinds.items() if kind for number in by_backend[backend]]
    devices += [node for backend in by_backend for node in BACKENDS[backend].container_nodes]
    variables = {backend: BACKENDS[backend].visible_by for backend in by_backend}
    shown = {name: ",".join(by_backend[backend]) for backend, name in variables.items() if name}
    return Cards(
        devices=tuple(dict.fromkeys(devices)),
        env={key: value for key, value in shown.items() if key not in config.env},
        numbers=tuple(by_backend.get("cuda", ())),
    )


def _number(device: str) -> str:
    """`1` of llama.cpp's `CUDA1`."""
    return device.lstrip(ascii_letters)


def published_ports(config: ServiceConfig, container: ContainerConfig) -> tuple[str, ...]:
    """Published ports; on loopback for a service that is for this machine only."""
    near = "127.0.0.1:" if is_loopback(config.host) else ""
    return tuple(port if port.count(":") > 1 else near + port for port in container.ports)


def memory_limit(ram_bytes: int) -> int:
    """The memory limit of a service that takes `ram_bytes`, 0 for none: a quarter and 256 MiB more."""
    return ram_bytes + ram_bytes // 4 + 256 * MIB if ram_bytes else 0


def container_argv(config: ServiceConfig, name: str, engine: str, gpus: Mapping[str, GpuConfig]) -> tuple[str, ...]:
    """The command line that runs a service's image in the foreground; the container is removed when it ends."""
    container = config.container
    if container is None:
        return ()
    limit, own = memory_limit(config.ram_bytes), cards(config, gpus)
    env = {**own.env, **config.env}
    return (
        *(engine, "run", "--rm", *(("--replace",) if engine == "podman" else ()), f"--name={name}"),
        *("--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"),
        *((f"--memory={limit}",) if limit else ()),
        *_card_words(own, engine),
        *(f"--publish={port}" for port in published_ports(config, container)),
        *(f"--volume={volume}" for volume in container.volumes),
        *(f"--env={key}={value}" for key, value in sorted(env.items())),
        *(container.image, *container.args),
    )


def _card_words(own: Cards, engine: str) -> tuple[str, ...]:
    """Options that give a container its cards.

    docker takes NVIDIA's by number, several in quotes of their own since it reads the value as CSV; for podman whoever
    runs it hands on his groups (`keep-groups`), which docker does not know: there root owns the nodes.
    """
    if engine != "podman":
        nodes = tuple(f"--device={device}" for device in own.devices if device.startswith("/"))
        numbers = f"device={','.join(own.numbers)}"
        quoted = f'"{numbers}"' if len(own.numbers) > 1 else numbers
        return (*((f"--gpus={quoted}",) if own.numbers else ()), *nodes)
    return (*(f"--device={device}" for device in own.devices), *(("--group-add=keep-groups",) if own.group else ()))


RUNTIME_BYTES = 1024 * MIB
"""The front's part of the runtime's MemoryMax=: 60 MiB at rest, and room for held request bodies."""
_IN_RUN = re.compile(r"/run/([^/:]+)/[^/]+$")
"""A path in a folder that systemd can make (behind a colon it reads a link's name), and give to the runtime."""
_JOURNAL = "systemd-journal"


def runtime_values(plan: FleetPlan, binaries: Iterable[str]) -> dict[str, Any]:
    """Values for `runtime.service.j2` and `polkit.rules.j2`: the runtime, whose processes are systemd's units.

    It reads the model files and the servers' `binaries`, also where the sandbox would hide them; what its warm pool
    keeps in RAM is charged to it.
    """
    deploy, front = plan.config.deploy, plan.config.runtime.front
    user = deploy.scope == "user"
    key = ("--api-key-file", "%d/api-key") if front.api_key_file and not user else ()
    prefix = ("--units", *quote_command(("", deploy.unit_prefix))[1:])
    words = (*quote_command((deploy.launch, "serve", "--no-color")), *prefix, *(("--user",) if user else ()), *key)
    tier = runtime_tier(plan)
    name = f"{deploy.unit_prefix}-{plan.deployment}"
    hidden = {path for server in plan.servers for binary in binaries for path in hidden_paths(server, binary)}
    hidden |= set(hidden_folder(deploy.launch))
    allow = device_nodes(gpu.backend for gpu in plan.config.hardware.gpus.values())
    paths = [host for host in front.listen if host.startswith("/")]
    addresses = (front.host, *(host for host in front.listen if host not in paths))
    asked = [s.config.host for s in (*plan.servers, *plan.remote)] + [unit.host for unit in outside_targets(plan)]
    near = all(is_loopback(host) or is_path(host) for host in (*addresses, *asked))
    started = [s for s in plan.servers if s.starts != "never"]
    services = [s for s in plan.services if s.config.builtin is None and s.starts != "never"]
    return {
        **sandbox(plan, (), (front.port,), loopback=near),
        "unit": unit_name(plan, plan.deployment),
        "description": f"launch runtime: {plan.deployment}, and its one HTTP port",
        "slice": unit_name(plan, tier, "slice") if tier else None,
        "command": " ".join((*words, f"{'%h/.config' if user else '/etc'}/launch/{plan.deployment}")),
        "stop_timeout_s": math.ceil(plan.config.runtime.drain_timeout_s) + 10,
        "credentials": _front_credentials(plan),
        # the pages of a warm pool are charged to whoever reads them first
        "memory_max": "infinity" if plan.config.orchestration else str(RUNTIME_BYTES),
        "memlock": "infinity" if plan.config.orchestration else "8M",
        "state": "LAUNCH_STATE_DIR=%h/.local/state/launch-installed" if user else f"LAUNCH_STATE_DIR=%S/{name}",
        "state_directory": name,
        "runtime_directories": tuple(dict.fromkeys(quote_bind(f) for p in paths if (f := _own_folder(p, plan)))),
        "writable": tuple(
            dict.fromkeys(quote_bind(str(PurePath(p).parent)) for p in paths if not _own_folder(p, plan))
        ),
        "runtime_user": runtime_user(plan),
        "groups": (_JOURNAL, *(("render", "video") if "char-drm" in allow else ())),
        "exposure": EXPOSURE_RUNTIME,
        "sees_others": True,
        "bind_read_only": tuple(sorted(map(quote_bind, hidden))),
        "device_allow": allow,
        "units": (
            *(unit for server in started for unit in units_of(plan, server)),
            *(unit_name(plan, service.name) for service in services),
        ),
    }


def _own_folder(path: str, plan: FleetPlan) -> str | None:
    """The folder of `path` below /run where it is the fleets' own: systemd makes it, and removes it with all in it."""
    found, prefix = _IN_RUN.match(path), plan.config.deploy.unit_prefix
    return found[1] if found and (found[1] == prefix or found[1].startswith(f"{prefix}-")) else None


def _front_credentials(plan: FleetPlan) -> tuple[str, ...]:
    """Key files that systemd reads for the front, as `ID:PATH`: its own, and those of servers that ask for a key."""
    if plan.config.deploy.scope == "user":
        return ()
    front = plan.config.runtime.front.api_key_file
    files = {"api-key": front} if front else {}
    files |= {f"key-{s.name}": key for s in (*plan.servers, *plan.remote) if (key := own_key_file(s.config.extra_args))}
    files |= {f"key-{name}": upstream.key_file for name, upstream in plan.config.upstreams.items() if upstream.key_file}
    return tuple(f"{name}:{credential_path(path)}" for name, path in files.items())


def command_values(service: ServicePlan, plan: FleetPlan) -> dict[str, Any]:
    """Values for `command.service.j2`: a service that is a command."""
    config, called = service.config, f"{service.name}: {service.config.description}"
    gpus = plan.config.hardware.machine(service.on).gpus
    return {
        **sandbox(plan, hidden_folder(config.command[0]), (service.port,), loopback=is_loopback(config.host)),
        **unit_values(plan, unit_name(plan, service.name), config.tier, called, config.start_timeout_s),
        "boot": service.starts == "boot",
        "environment": quote_assignments(config.env),
        "device_allow": device_nodes(gpus[device].backend for device in config.vram_bytes),
        "command": " ".join(quote_command(config.command)),
        "memory_max": str(memory_limit(config.ram_bytes) or "infinity"),
        "state_directory": f"{plan.config.deploy.unit_prefix}-{service.name}",
    }


def container_values(service: ServicePlan, plan: FleetPlan) -> dict[str, Any]:
    """Values for `quadlet.container.j2`: a service that is a container.

    Where the service is for this machine only, so are its published ports. Values that systemd splits are quoted.
    """
    config, container = service.config, service.config.container
    called = f"{service.name}: {config.description}"
    if container is None:
        raise ValueError(f"{service.name} is no container")
    own = cards(config, plan.config.hardware.machine(service.on).gpus)
    limit = memory_limit(config.ram_bytes)
    options = (*((f"--memory={limit}",) if limit else ()), *(("--group-add=keep-groups",) if own.group else ()))
    return {
        **unit_values(plan, unit_name(plan, service.name), config.tier, called, config.start_timeout_s),
        "boot": service.starts == "boot",
        "environment": quote_assignments({**own.env, **config.env}),
        "container": f"{plan.config.deploy.unit_prefix}-{service.name}",
        "image": container.image.replace("%", "%%"),
        "ports": published_ports(config, container),
        "volumes": tuple(volume.replace("%", "%%") for volume in container.volumes),
        "devices": own.devices,
        "arguments": " ".join(quote_command(("", *container.args))[1:]),
        "podman_arguments": " ".join(options),
    }
