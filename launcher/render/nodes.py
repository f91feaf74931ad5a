"""What does not fit a cluster, or would be refused by it, found before anything is applied. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from launcher.errors import Finding, Fix, fault
from launcher.ir.config import GpuConfig, KubernetesConfig
from launcher.ir.plan import FleetPlan, ServerPlan, ServicePlan
from launcher.render.beside_units import memory_limit
from launcher.render.passed import own_key_file
from launcher.render.units import memory_max
from launcher.sizes import gib


def is_scaled(one: ServerPlan | ServicePlan) -> bool:
    """Whether it is started on demand, or takes turns."""
    if isinstance(one, ServicePlan) and one.config.container is None:
        return False
    return one.starts != "never" and (one.starts == "demand" or one.config.exclusive is not None)


def scaled(plan: FleetPlan) -> tuple[ServerPlan | ServicePlan, ...]:
    """Everything that the front scales, servers first."""
    everyone: tuple[ServerPlan | ServicePlan, ...] = (*plan.servers, *plan.services)
    return tuple(one for one in everyone if is_scaled(one))


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
    """The memory limit of its pod; 0 for none."""
    limit = memory_max(server)
    return 0 if limit == "infinity" else int(limit)


Scheduler = Literal["kubernetes", "slurm"]
"""The program that places processes on nodes."""
_CALLED: dict[Scheduler, tuple[str, str, str, str]] = {
    "kubernetes": ("pod", "Kubernetes", "render/kubernetes-node", "render/kubernetes-card"),
    "slurm": ("job", "Slurm", "render/slurm-node", "render/slurm-card"),
}
"""What it places, what it is called, and the codes for a node with too little and a card that is asked for twice."""


def refused_by_kubernetes(plan: FleetPlan, settings: KubernetesConfig) -> list[Finding]:
    """All that no object may have of a fleet, and what its nodes cannot hold."""
    written = (*bad_values(plan, settings), *bad_containers(plan), *bad_keys(plan), *without_image(plan))
    return [*written, *shared_cards(plan, "kubernetes"), *crowded_nodes(plan, "kubernetes")]


def crowded_nodes(plan: FleetPlan, scheduler: Scheduler, hosts: Iterable[str] = ()) -> list[Finding]:
    """Nodes whose pods or jobs ask for more memory, or pods for more CPUs, than they have, an error each.

    Every one asks for all that it may take, mapped files too, where processes of one machine share them. `hosts`: those
    that are looked at; all by default.
    """
    found = []
    called, _, code, _ = _CALLED[scheduler]
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
            found.append(fault(code, "servers", message))
        if taken > free:
            message = f"{count} for {gib(taken)} together, and {where} has {gib(free)}: some would wait"
            note = (
                f"a {called}'s limit holds its peak, growth and every page of its files, and a tenth and 512 MiB more"
            )
            found.append(fault(code, "servers", message, note))
    return found


def shared_cards(plan: FleetPlan, scheduler: Scheduler) -> list[Finding]:
    """Cards that are planned for several servers at once: a scheduler gives each to one pod or job whole."""
    called, who, _, code = _CALLED[scheduler]
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
        started = beside.starts == "boot" or beside.config.exclusive
        if scheduler == "kubernetes" and beside.config.container and started:
            key = f"services.{beside.name}.vram_bytes"
            used(beside.on, beside.config.vram_bytes, beside.name, beside.config.exclusive, key)
    found = []
    for (_, device), named in users.items():
        if len({turn for turn, _ in named.values()}) > 1:
            message = (
                f"{device} is planned for {', '.join(named)} at once, and {who} gives a card to one {called} whole"
            )
            *_, (_, key) = named.values()
            found.append(fault(code, key, message))
    return found


def without_image(plan: FleetPlan) -> list[Finding]:
    """Engines of which no image is known, an error each."""
    known = (plan.config.deploy.kubernetes or KubernetesConfig()).images
    users: dict[str, list[str]] = {}
    for server in plan.servers:
        if server.config.engine not in known:
            users.setdefault(server.config.engine, []).append(server.name)
    return [
        fault(
            "render/kubernetes-image",
            "deploy.kubernetes",
            f"no image has the llama-server of engine {engine!r}, which {len(names)} servers run on ({names[0]} first)",
            fixes=(Fix(override=f"+deploy.kubernetes.images.{engine}.image=IMAGE"),),
        )
        for engine, names in users.items()
    ]


_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_RESOURCE = re.compile(r"(?=.{1,253}/)[a-z0-9.-]+/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_PATH = re.compile(r"/[^:\x00-\x1f]*")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_MOST_REPLICAS = 100


def bad_values(plan: FleetPlan, settings: KubernetesConfig) -> Iterator[Finding]:
    """`render/kubernetes-value`: names, images and numbers that no object may have."""
    label, subdomain = "letters a-z, digits and -, 63 at most", "letters a-z, digits, - and ., 253 at most"
    patterns = {
        "namespace": (settings.namespace, _LABEL, label),
        "keys_secret": (settings.keys_secret, _SUBDOMAIN, subdomain),
        "models_claim": (settings.models_claim, _SUBDOMAIN, subdomain),
        "state_claim": (settings.state_claim, _SUBDOMAIN, subdomain),
        "models_mount": (settings.models_mount, _PATH, "an absolute path without a colon"),
        "front_image": (settings.front_image, _IMAGE, "REGISTRY/NAME:TAG"),
    }
    for engine, image in settings.images.items():
        patterns[f"images.{engine}.image"] = (image.image, _IMAGE, "REGISTRY/NAME:TAG")
        patterns[f"images.{engine}.program"] = (image.program, _PATH, "an absolute path in the image")
    for backend, resource in settings.gpu_resources.items():
        patterns[f"gpu_resources.{backend}"] = (resource, _RESOURCE, "VENDOR/NAME, as nvidia.com/gpu")
    for host, node in settings.nodes.items():
        patterns[f"nodes.{host}"] = (node, _NODE, "a node's label kubernetes.io/hostname: a-z, digits, - and .")
    for key, (value, pattern, takes) in patterns.items():
        if value is not None and not pattern.fullmatch(value):
            yield _value(f"deploy.kubernetes.{key}", f"{value[:80]!a} is no {key.rpartition('.')[2]}: {takes}")
    if not 1 <= settings.front_replicas <= _MOST_REPLICAS:
        message = f"{settings.front_replicas} fronts: 1 to {_MOST_REPLICAS}"
        yield _value("deploy.kubernetes.front_replicas", message)
    used = ({s.on for s in plan.servers} | {s.on for s in plan.services}) - settings.nodes.keys()
    for host in plan.config.hardware.hosts:
        if host in used and not _NODE.fullmatch(host):
            fix = Fix(override=f"+deploy.kubernetes.nodes.{host}=NODE", effect="what its label says")
            message = f"no node's label kubernetes.io/hostname can be {host[:80]!a}: pods would wait for it for ever"
            yield _value(f"hardware.hosts.{host}", message, fix)


_PUBLISHED = re.compile(r"(?:.*:)?(\d{1,5})(?:/tcp)?")
"""`[ADDRESS:][PORT:]PORT[/tcp]`; a range leads to no single one."""


def inner_port(published: str) -> int | None:
    """The port of its container that `published` leads to; None where that is none, or several."""
    found = _PUBLISHED.fullmatch(published)
    port = int(found[1]) if found else 0
    return port if 1 <= port <= 65535 else None


def bad_containers(plan: FleetPlan) -> Iterator[Finding]:
    """`render/kubernetes-value` and `render/kubernetes-path`: what no pod of a container that is a service may have."""
    for beside in plan.services:
        container, key = beside.config.container, f"services.{beside.name}.container"
        if container is None or beside.starts == "never":
            continue
        if not _IMAGE.fullmatch(container.image):
            yield _value(f"{key}.image", f"{container.image[:80]!a} is no image: REGISTRY/NAME:TAG")
        if container.ports and inner_port(container.ports[0]) is None:
            message = f"{container.ports[0][:80]!a} is no port that its Service has: [ADDRESS:][PORT:]PORT[/tcp]"
            yield _value(f"{key}.ports.0", message)
        taken = {"/", "/tmp"}  # noqa: S108 # the pod's own
        for position, volume in enumerate(container.volumes):
            source, _, rest = volume.partition(":")
            target = (rest.partition(":")[0] or source).rstrip("/") or "/"
            if not source.startswith("/"):
                continue  # `without_service` says so
            if not target.startswith("/") or ".." in (*source.split("/"), *target.split("/")):
                why = "are no two absolute paths without .."
            elif target in taken:
                why = "would be mounted where something is already, or nothing can be"
            else:
                taken.add(target)
                continue
            yield fault("render/kubernetes-path", f"{key}.volumes.{position}", f"{volume[:120]!a}: {why}")


def bad_keys(plan: FleetPlan) -> Iterator[Finding]:
    """`render/kubernetes-key`: key files that are no entries of one secret, an entry a file by its name."""
    front = plan.config.runtime.front
    written = {
        "runtime.front.api_key_file": front.api_key_file,
        "runtime.front.tls_cert_file": front.tls_cert_file,
        "runtime.front.tls_key_file": front.tls_key_file,
        **{f"upstreams.{name}.key_file": one.key_file for name, one in plan.config.upstreams.items()},
        **{f"upstreams.{name}.ca_file": one.ca_file for name, one in plan.config.upstreams.items()},
    }
    shared = {plan.config.runtime.server_key_file: "runtime.server_key_file"}
    shared |= {host.api_key_file: f"hardware.hosts.{n}.api_key_file" for n, host in plan.config.hardware.hosts.items()}
    for server in plan.servers:
        path = own_key_file(server.config.extra_args)
        written[shared.get(path, f"servers.{server.name}.extra_args")] = path
    paths: dict[str, str] = {}
    for key, path in written.items():
        if path is None:
            continue
        name = path.rpartition("/")[2]
        if not path.startswith("/") or not _KEY.fullmatch(name) or name in (".", "..") or ":" in path:
            why = f"{path[:120]!a} is no entry of the secret: an absolute path, its name letters, digits and . _ -"
        elif paths.setdefault(name, path) != path:
            why = f"{path} and {paths[name]} would be one entry of the secret, {name}: whoever reads one gets the other"
        else:
            continue
        yield fault("render/kubernetes-key", key, why)


def _value(key: str, message: str, *fixes: Fix) -> Finding:
    return fault("render/kubernetes-value", key, message, fixes=fixes)
