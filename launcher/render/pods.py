"""One llama-server as a Kubernetes Deployment and Service: its container, files, memory, cards, probes. Pure."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from launcher.base.names import control_character
from launcher.errors import Finding, fault
from launcher.ir.backends import BACKENDS
from launcher.ir.config import GpuConfig, ImageConfig, KubernetesConfig
from launcher.ir.plan import FleetPlan, ServerPlan, ServicePlan
from launcher.render.beside_units import memory_limit
from launcher.render.command import Engines, server_command
from launcher.render.left_out import without_server
from launcher.render.nodes import beside_together, is_scaled, pods_together
from launcher.render.passed import files_of, own_key_file
from launcher.render.units import memory_max

PROBE_S = 5
"""Seconds between two probes of a server that loads."""
USER = 10001
"""User id of containers, unused on the nodes."""

PORT = 8080
"""Port in the pod of a server that has a unix socket elsewhere."""
RESERVED_CPUS = 3
"""CPUs of a node for two fronts and the kubelet."""
OWN = ("front", "fleet", "servers", "clients", "peers", "heads")
"""Objects that belong to no server."""
MOST_CHARACTERS = 63
"""Of a label."""
LABEL_CHARACTERS = 57
"""Of those, so that names of pods and their sets show it whole."""

_NO_LABEL = re.compile(r"[^A-Za-z0-9_.-]")
"""Characters of a deployment's name that no label value may have."""

Object = dict[str, Any]


def object_name(plan: FleetPlan, name: str) -> str:
    """`launch-worker-general`: a DNS label (RFC 1035) for a server's or service's objects, its own for every name."""
    label = _label(plan, name)
    names = [server.name for server in plan.servers] + [service.name for service in plan.services]
    alone = sum(_label(plan, other) == label for other in names) == 1
    reserved = {_label(plan, other) for other in OWN}
    if alone and len(label) <= LABEL_CHARACTERS and label[0].isalpha() and label not in reserved:
        return label
    return _marked(label, name)


def own_name(plan: FleetPlan, what: str) -> str:
    """The name of an object of the fleet as a whole, one of `OWN`; a DNS label, too."""
    label = _label(plan, what)
    return label if label[0].isalpha() and len(label) <= MOST_CHARACTERS else _marked(label, what)


def _label(plan: FleetPlan, what: str) -> str:
    written = f"{plan.config.deploy.unit_prefix}-{what}".lower()
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in written).strip("-")


def _marked(label: str, written: str) -> str:
    return f"l-{label[:46].strip('-')}-{zlib.crc32(written.encode()):08x}"


def instance(plan: FleetPlan) -> dict[str, str]:
    """The label that all objects of a deployment have."""
    return {"app.kubernetes.io/instance": _NO_LABEL.sub("-", plan.deployment)[:63].strip("-_.")}


def labels(plan: FleetPlan, kind: str, component: str = "") -> dict[str, str]:
    """What objects are found by. `kind`: server, service, peer or front. `component`: their name; "": all of a kind."""
    own = {"app.kubernetes.io/component": component} if component else {}
    return {"app.kubernetes.io/name": f"launch-{kind}", **instance(plan), **own}


def metadata(plan: FleetPlan, name: str, own: Mapping[str, str], **annotations: str) -> Object:
    """Name, labels and annotations of an object."""
    settings = plan.config.deploy.kubernetes or KubernetesConfig()
    noted = {"annotations": annotations} if annotations else {}
    return {"name": name, "namespace": settings.namespace, "labels": dict(own), **noted}


def server_objects(
    server: ServerPlan, plan: FleetPlan, engines: Engines
) -> tuple[list[Object], list[Finding], list[str]]:
    """Deployment, Service and, of one that is always up, PodDisruptionBudget; findings; what pods do not have.

    Findings: `render/kubernetes-path`.
    """
    settings = plan.config.deploy.kubernetes or KubernetesConfig()
    findings: list[Finding] = []
    config = msgspec.structs.replace(server.config, slot_save_path=None)
    here, lost = as_in_pod(msgspec.structs.replace(server, port=pod_port(server.port), config=config), plan)
    command, _ = server_command(here, plan, engines)
    image = settings.images.get(server.config.engine) or ImageConfig(image="none")  # `without_image` finds it
    files = _files(server)
    keys = [path for path in (own_key_file(server.config.extra_args),) if path]
    volumes, mounts = _model_volumes(files, settings)
    findings += _unreachable(server, files, settings)
    secret, shown = key_mounts(keys, settings)
    name = object_name(plan, server.name)
    own = labels(plan, "server", name)
    container = {
        "name": "llama-server",
        "image": image.image,
        "command": [image.program],
        "args": listening(command.words[1:]),
        **environment({k: v for k, v in command.env.items() if k != "LD_LIBRARY_PATH"}),
        "ports": [{"name": "http", "containerPort": here.port}],
        "resources": _resources(server, plan, lost),
        **_probes(server, plan),
    }
    pod = {
        **pod_defaults(server.config.stop_grace_s),
        **on_node(server.on, settings),
        **with_tmp(container, [*mounts, *shown], [*volumes, *secret]),
    }
    always = not is_scaled(server)
    objects = [deployment(plan, name, own, pod, replicas=int(always)), service(plan, name, own, here.port)]
    if always:
        objects.append(disruption_budget(plan, name, own))
    return objects, findings, [*lost, *without_server(server, plan, command)]


def deployment(
    plan: FleetPlan,
    name: str,
    own: Mapping[str, str],
    pod: Object,
    *,
    replicas: int,
    reads: str = "",
    rolling: bool = False,
) -> Object:
    """A Deployment. Recreate unless `rolling`: two of one server need its memory twice.

    `reads`: digest of a ConfigMap that its pods read once, at their start: another means new pods.
    """
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}} if rolling else {"type": "Recreate"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(plan, name, own),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "strategy": strategy,
            "selector": {"matchLabels": dict(own)},
            "template": {
                "metadata": {"labels": dict(own), **({"annotations": {"launch/reads": reads}} if reads else {})},
                "spec": pod,
            },
        },
    }


def service(plan: FleetPlan, name: str, own: Mapping[str, str], port: int, protocol: str = "http") -> Object:
    """A name and an address for the pods of one Deployment. `protocol`: the container's name of the port."""
    ports = [{"name": protocol, "port": port, "targetPort": protocol}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(plan, name, own),
        "spec": {"type": "ClusterIP", "selector": dict(own), "ports": ports},
    }


def disruption_budget(plan: FleetPlan, name: str, own: Mapping[str, str]) -> Object:
    """No drain of a node takes the last pod."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(plan, name, own),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": dict(own)}},
    }


def pod_defaults(grace_s: float) -> Object:
    """Settings of every pod: no token, none of the node's users, no variables that name other services."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a service named llama_arg would set llama-server's flags
        "terminationGracePeriodSeconds": math.ceil(grace_s),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def on_node(host: str, settings: KubernetesConfig) -> Object:
    """The node for pods of `host`; any, if there is one host only."""
    return {"nodeSelector": {"kubernetes.io/hostname": settings.nodes.get(host, host)}} if host else {}


def with_tmp(container: Object, mounts: Iterable[Object] = (), volumes: Iterable[Object] = ()) -> Object:
    """Of a pod its one `container`, confined, with `mounts` of `volumes` and a /tmp of its own."""
    shown = [*mounts, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 # the pod's own
    return {
        "containers": [{**container, "securityContext": confined(), "volumeMounts": shown}],
        "volumes": [*volumes, {"name": "tmp", "emptyDir": {}}],
    }


def confined() -> Object:
    """The security context of every container: nothing that inference does not need."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def environment(env: Mapping[str, str]) -> Object:
    """`env` of a container, none where there is nothing."""
    return {"env": [{"name": k, "value": literal(v)} for k, v in sorted(env.items())]} if env else {}


def key_mounts(files: Iterable[str], settings: KubernetesConfig) -> tuple[list[Object], list[Object]]:
    """Volume and mounts that put entries of the keys' secret where the config has `files`."""
    paths = sorted(set(files))
    if not paths:
        return [], []
    items = [{"key": name, "path": name} for name in sorted({path.rpartition("/")[2] for path in paths})]
    volume = {"name": "keys", "secret": {"secretName": settings.keys_secret, "defaultMode": 0o444, "items": items}}
    mounts = [
        {"name": "keys", "mountPath": path, "subPath": path.rpartition("/")[2], "readOnly": True} for path in paths
    ]
    return [volume], mounts


def pod_port(port: int) -> int:
    """The port of a server in its pod: as planned, or one of its own where that is a unix socket (0)."""
    return port or PORT


def listening(words: tuple[str, ...]) -> list[str]:
    """`words` as args, with the address that the pod's Service reaches."""
    there = ("0.0.0.0" if before == "--host" else word for before, word in zip(("", *words), words, strict=False))  # noqa: S104
    return [literal(word) for word in there]


def literal(text: str) -> str:
    """`text` for `args` and `env`, where `$(NAME)` would be replaced and `$$` is one dollar."""
    return text.replace("$", "$$")


def written(text: str) -> str:
    """The inverse of `literal`."""
    return text.replace("$$", "$")


def _files(server: ServerPlan) -> tuple[str, ...]:
    keys = own_key_file(server.config.extra_args)
    return tuple(sorted({path for path in files_of(server) if path != keys}))


def _model_volumes(files: tuple[str, ...], settings: KubernetesConfig) -> tuple[list[Object], list[Object]]:
    """Volumes with `files`, and where they are mounted: the claim, or each directory of the node, at the same path."""
    if settings.models_claim is not None:
        claim = {"claimName": settings.models_claim, "readOnly": True}
        mount = {"name": "models", "mountPath": settings.models_mount, "readOnly": True}
        return [{"name": "models", "persistentVolumeClaim": claim}], [mount]
    directories = sorted({path.rpartition("/")[0] or "/" for path in files})
    outer = [d for d in directories if not any(d.startswith(f"{o}/") for o in directories)]
    volumes = [{"name": f"models-{i}", "hostPath": {"path": d, "type": "Directory"}} for i, d in enumerate(outer)]
    mounts = [{"name": f"models-{i}", "mountPath": d, "readOnly": True} for i, d in enumerate(outer)]
    return volumes, mounts


def _unreachable(server: ServerPlan, files: tuple[str, ...], settings: KubernetesConfig) -> list[Finding]:
    """Files that are not below the claim's mount, and those in directories that no pod can have mounted."""
    key = f"servers.{server.name}.model"
    top = settings.models_mount.rstrip("/") + "/"
    bad = [f for f in files if not f.startswith(top if settings.models_claim is not None else "/")]
    if bad:
        where = f"below {top}, where the claim {settings.models_claim} is" if settings.models_claim else "absolute"
        message = f"{server.name} opens {bad[0]!r}, which is not {where}: its pod has no such file"
        return [fault("render/kubernetes-path", key, message)]
    mounted = [top.rstrip("/")] if settings.models_claim else [path.rpartition("/")[0] for path in files]
    for folder in mounted:
        if folder in ("", "/tmp"):  # noqa: S108 # every pod's own
            why = "is a directory of the pod's own, and nothing can be mounted there"
        elif ":" in folder or ".." in folder.split("/") or control_character(folder):
            why = "has a colon, .. or a control character, and no pod can have it mounted"
        else:
            continue
        message = f"{server.name} opens files in {(folder or '/')!a}, which {why}"
        return [fault("render/kubernetes-path", key, message)]
    return []


def _resources(server: ServerPlan, plan: FleetPlan, lost: list[str]) -> dict[str, Object]:
    """Memory as units have it and cards, requests that are also limits; whole CPUs."""
    threads = max(1, server.settings.threads, server.settings.threads_batch)
    amounts: Object = {}
    limit = memory_max(server)
    if limit == "infinity":
        lost.append("a memory limit: the prompt cache has none (cache_ram_mib)")
    else:
        amounts["memory"] = int(limit)
    amounts |= cards_asked(server.settings.devices, server.on, plan, lost)
    share = max(1, math.floor(threads * _cpu_share(plan, server.on)))
    return {"requests": {"cpu": share, **amounts}, "limits": {"cpu": threads, **amounts}}


def alike(amounts: Object) -> Object:
    """The resources of a container whose requests are its limits."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


def service_resources(beside: ServicePlan, plan: FleetPlan, lost: list[str]) -> Object:
    """What a process beside the servers gets: CPUs, memory and cards as they are stated."""
    limit = memory_limit(beside.config.ram_bytes)
    cards = cards_asked(beside.config.vram_bytes, beside.on, plan, lost)
    return alike({"cpu": max(1, beside.config.threads), **({"memory": limit} if limit else {}), **cards})


def card_amounts(
    devices: Iterable[str], gpus: Mapping[str, GpuConfig], names: Mapping[str, str], lost: list[str], lacks: str
) -> dict[str, int]:
    """Number of cards of each kind, by `names` of backends; `lost` gets what `lacks` says of devices without one."""
    amounts: dict[str, int] = {}
    for device in devices:
        backend = gpus[device].backend if device in gpus else "unknown"
        if backend in names:
            amounts[names[backend]] = amounts.get(names[backend], 0) + 1
        elif backend != "rpc":  # a process somewhere, no card of this node
            lost.append(f"device {device}: {lacks} for {backend}")
    return amounts


def cards_asked(devices: Iterable[str], host: str, plan: FleetPlan, lost: list[str]) -> Object:
    """`card_amounts` in resources that device plugins offer."""
    settings = plan.config.deploy.kubernetes or KubernetesConfig()
    gpus = plan.config.hardware.machine(host).gpus
    known = {name: backend.pod_resource for name, backend in BACKENDS.items() if backend.pod_resource}
    resources = known | settings.gpu_resources
    return {**card_amounts(devices, gpus, resources, lost, "deploy.kubernetes.gpu_resources has no resource")}


def _cpu_share(plan: FleetPlan, host: str) -> float:
    """The share of its threads that a server requests on `host`: all, unless more threads than CPUs were planned there.

    Threads may outnumber CPUs, as servers are seldom all busy; requests may not, or pods would wait for ever.
    """
    threads = sum(max(1, s.settings.threads, s.settings.threads_batch) for s in pods_together(plan, host))
    beside = sum(max(1, one.config.threads) for one in beside_together(plan, host))
    free = plan.config.hardware.machine(host).cpu.logical_cores - RESERVED_CPUS - beside
    return min(1.0, max(0, free) / threads) if threads else 1.0


def _probes(server: ServerPlan, plan: FleetPlan) -> Object:
    """A start has as long as was planned for its load; later it is looked at as under our own runtime.

    The address is the pod's own, so that no other process can answer in its place.
    """
    look = {"httpGet": {"path": "/health", "port": "http"}}
    runtime = plan.config.runtime
    every_s = max(1, math.ceil(runtime.health_interval_s))
    again = {**look, "periodSeconds": every_s, "timeoutSeconds": 5}
    attempts = max(1, math.ceil(min(server.start_timeout_s, 10**6) / PROBE_S))
    return {
        "startupProbe": {**look, "periodSeconds": PROBE_S, "timeoutSeconds": 5, "failureThreshold": attempts},
        "readinessProbe": {**again, "failureThreshold": 1},
        "livenessProbe": {**again, "failureThreshold": max(1, runtime.health_failures)},
    }


def as_in_pod(server: ServerPlan, plan: FleetPlan) -> tuple[ServerPlan, list[str]]:
    """`server` with its devices as a pod or a job sees them, numbered from 0; what cannot be said so."""
    gpus = plan.config.hardware.machine(server.on).gpus
    renamed: dict[str, str] = {}
    for device in server.settings.devices:
        if device in gpus and gpus[device].backend != "rpc":  # a process somewhere, by its address
            alike = [name for name, gpu in gpus.items() if gpu.backend == gpus[device].backend]
            renamed[device] = alike[len([d for d in renamed if gpus[d].backend == gpus[device].backend])]
    if all(old == new for old, new in renamed.items()):
        return server, []
    lost = []
    if server.config.tensor_placement:
        lost.append("tensor_placement, which names cards by the numbers of the node: it sees its own, from 0")

    def shown(devices: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(renamed.get(device, device) for device in devices)

    written = server.config
    draft = written.draft
    if draft is not None and draft.devices:
        draft = msgspec.structs.replace(draft, devices=shown(draft.devices))
    config = msgspec.structs.replace(
        written,
        main_gpu=renamed.get(written.main_gpu or "", written.main_gpu),
        projector_device=renamed.get(written.projector_device or "", written.projector_device),
        draft=draft,
    )
    settings = msgspec.structs.replace(server.settings, devices=shown(server.settings.devices))
    return msgspec.structs.replace(server, config=config, settings=settings), lost
