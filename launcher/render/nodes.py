"""What a cluster's nodes cannot hold of a fleet, found before anything is applied. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from launcher.errors import Finding, Fix
from launcher.ir.config import GpuConfig, KubernetesConfig
from launcher.ir.plan import FleetPlan, ServerPlan, ServicePlan
from launcher.render.containers import memory_limit
from launcher.render.units import memory_max
from launcher.sizes import gib


def pods_together(plan: FleetPlan, host: str) -> list[ServerPlan]:
    """Servers of `host` that have a pod from the start; of those that take turns the largest."""
    found = [s for s in plan.servers if s.on == host and s.initial and s.config.exclusive is None]
    turns: dict[str, list[ServerPlan]] = {}
    for server in plan.servers:
        if server.on == host and server.config.exclusive is not None:
            turns.setdefault(server.config.exclusive, []).append(server)
    return found + [max(group, key=pod_memory) for group in turns.values()]


def beside_together(plan: FleetPlan, host: str) -> list[ServicePlan]:
    """Containers and peers of `host` that have a pod from the start and take no turns."""
    return [
        beside
        for beside in plan.services
        if beside.on == host
        and beside.starts == "boot"
        and beside.config.exclusive is None
        and (beside.config.container is not None or beside.config.protocol == "rpc")
    ]


def pod_memory(server: ServerPlan) -> int:
    """What its pod may take, 0 without a limit."""
    limit = memory_max(server)
    return 0 if limit == "infinity" else int(limit)


Scheduler = Literal["kubernetes", "slurm"]
"""Who places what on nodes."""
_CALLED: dict[Scheduler, tuple[str, str]] = {"kubernetes": ("pod", "Kubernetes"), "slurm": ("job", "Slurm")}
"""What it places, and what it is called."""


def crowded_nodes(plan: FleetPlan, scheduler: Scheduler, hosts: Iterable[str] = ()) -> list[Finding]:
    """Nodes whose pods or jobs ask for more memory, or pods for more CPUs, than they have, an error each.

    Every one asks for all that it may take, mapped files too, where processes of one machine share them. `hosts`: those
    that are looked at; all by default.
    """
    found = []
    called, _ = _CALLED[scheduler]
    for host in tuple(hosts) or plan.config.hardware.hosts or ("",):
        machine = plan.config.hardware.machine(host)
        free = machine.ram_bytes - machine.ram_reserve_bytes
        pods = pods_together(plan, host)
        beside = beside_together(plan, host) if scheduler == "kubernetes" else []
        taken = sum(map(pod_memory, pods)) + sum(memory_limit(one.config.ram_bytes) for one in beside)
        where = f"node {host}" if host else "the node"
        many = len(pods) + len(beside)
        count = f"{many} {called}{'s ask' if many != 1 else ' asks'}"
        least = len(pods) + sum(max(1, one.config.threads) for one in beside)
        if scheduler == "kubernetes" and least > machine.cpu.logical_cores:
            message = f"{count} for {least} CPUs at least, and {where} has {machine.cpu.logical_cores}: some would wait"
            found.append(Finding(code="render/kubernetes-node", severity="error", key="servers", message=message))
        if taken > free:
            message = f"{count} for {gib(taken)} together, and {where} has {gib(free)}: some would wait"
            note = (
                f"a {called}'s limit holds its peak, growth and every page of its files, and a tenth and 512 MiB more"
            )
            found.append(
                Finding(
                    code="render/slurm-node" if scheduler == "slurm" else "render/kubernetes-node",
                    severity="error",
                    key="servers",
                    message=message,
                    notes=(note,),
                )
            )
    return found


def shared_cards(plan: FleetPlan, scheduler: Scheduler) -> list[Finding]:
    """Cards that are planned for several servers at once: a scheduler gives each to one pod or job whole."""
    called, who = _CALLED[scheduler]
    users: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}

    def used(on: str, devices: Iterable[str], name: str, turn: str | None, key: str) -> None:
        gpus: Mapping[str, GpuConfig] = plan.config.hardware.machine(on).gpus
        for device in devices:
            if device in gpus:
                users.setdefault((on, device), {})[name] = turn or name, key

    for server in plan.servers:
        if server.initial or server.config.exclusive:
            key = f"servers.{server.name}.devices"
            used(server.on, server.settings.devices, server.name, server.config.exclusive, key)
    for beside in plan.services:
        if (
            scheduler == "kubernetes"
            and beside.config.container
            and (beside.starts == "boot" or beside.config.exclusive)
        ):
            key = f"services.{beside.name}.vram_bytes"
            used(beside.on, beside.config.vram_bytes, beside.name, beside.config.exclusive, key)
    found = []
    for (_, device), named in users.items():
        if len({turn for turn, _ in named.values()}) > 1:
            message = (
                f"{device} is planned for {', '.join(named)} at once, and {who} gives a card to one {called} whole"
            )
            key = list(named.values())[-1][1]
            code = "render/slurm-card" if scheduler == "slurm" else "render/kubernetes-card"
            found.append(Finding(code=code, severity="error", key=key, message=message))
    return found


def without_image(plan: FleetPlan) -> list[Finding]:
    """Engines of which no image is known, an error each."""
    known = (plan.config.deploy.kubernetes or KubernetesConfig()).images
    users: dict[str, list[str]] = {}
    for server in plan.servers:
        if server.config.engine not in known:
            users.setdefault(server.config.engine, []).append(server.name)
    return [
        Finding(
            code="render/kubernetes-image",
            severity="error",
            key="deploy.kubernetes",
            message=f"no image has the llama-server of engine {engine!r}, which {len(names)} servers run on "
            f"({names[0]} first)",
            fixes=(Fix(override=f"+deploy.kubernetes.images.{engine}.image=IMAGE"),),
        )
        for engine, names in users.items()
    ]
