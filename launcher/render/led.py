"""Servers that a front in a cluster starts and stops: what the front reads of them, and its rights. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import msgspec

from launcher.ir.config import KubernetesConfig
from launcher.ir.fleet import ClusterUnit, DeviceBudget, DeviceNeed, FleetManifest, RouteTarget, ServerUnit, ServiceUnit
from launcher.ir.plan import DevicePlan, FleetPlan, ServerPlan, ServicePlan
from launcher.manifest import argv_digest
from launcher.render.nodes import scaled
from launcher.render.pods import Object, instance, labels, metadata, object_name, own_name, pod_port, written

API_PORTS = (443, 6443)
"""Ports of API servers, as their Service and their own: a network policy applies to either."""
_END_S = 10.0
"""Seconds beyond its grace period until a pod is gone: the kubelet polls and reports."""
_ELSEWHERE = "kubernetes"
"""Host name for servers that the front asks and does not start."""


def led_fleet(plan: FleetPlan, manifest: FleetManifest, containers: Mapping[str, Object]) -> FleetManifest:
    """`manifest` as the front reads it: servers that it scales, as their pods run them; `containers` by server.

    What is left of each node beside what always runs is their budget, and each needs what its pod asks for: all that it
    may take of RAM, and cards whole. So who is idle goes before a pod would wait for a node. Where there are none the
    front routes alone.
    """
    led = {one.name: one for one in scaled(plan)}
    settings = plan.config.deploy.kubernetes or KubernetesConfig()
    builtin = tuple(unit for unit in manifest.services if unit.builtin is not None)
    supervisor = msgspec.structs.replace(manifest.supervisor, state_dir=None)
    manifest = msgspec.structs.replace(manifest, hooks=(), supervisor=supervisor)
    if not led:
        return msgspec.structs.replace(manifest, servers=(), services=builtin, devices=())
    whole = {device_name(d): d.capacity_bytes for d in plan.devices if d.kind == "gpu"}
    on = {server.name: server.on for server in plan.servers} | {beside.name: beside.on for beside in plan.services}
    everything: tuple[ServerUnit | ServiceUnit, ...] = (*manifest.servers, *manifest.services)
    units = [unit for unit in everything if unit.name in containers]
    needs = {unit.name: asked_of(unit, _limit(containers[unit.name]), on[unit.name], whole) for unit in units}
    always = [unit.name for unit in units if unit.name not in led]
    cluster = ClusterUnit(
        namespace=settings.namespace,
        selector=instance(plan),
        label="app.kubernetes.io/component",
        deployments={name: object_name(plan, name) for name in led},
        lease=own_name(plan, "front"),
    )
    return msgspec.structs.replace(
        manifest,
        cluster=cluster,
        servers=tuple(
            _as_pod(unit, object_name(plan, unit.name), containers[unit.name], needs[unit.name], led)
            for unit in manifest.servers
            if unit.name in led
        ),
        services=(
            *builtin,
            *(
                _service_as_pod(unit, object_name(plan, unit.name), containers[unit.name], needs[unit.name])
                for unit in manifest.services
                if unit.name in led
            ),
        ),
        devices=node_budgets(plan, [need for name in always for need in needs[name]]),
    )


def led_targets(plan: FleetPlan, targets: Mapping[str, RouteTarget]) -> dict[str, RouteTarget]:
    """`targets`, where those that always run are somebody else's: asked, and never started."""
    led = {one.name for one in scaled(plan)}
    everyone: tuple[ServerPlan | ServicePlan, ...] = (*plan.servers, *plan.services)
    others = {one.name for one in everyone if one.starts == "boot" and one.name not in led}
    always = others if led else set()
    return {n: msgspec.structs.replace(t, on=_ELSEWHERE) if n in always else t for n, t in targets.items()}


def rights(plan: FleetPlan) -> list[Object]:
    """The front's account, what it may do (these verbs, on these objects, in its namespace), and its lease.

    Names do not limit who may be listed and watched, nor can a pod's be known before: it sees all pods of the
    namespace, and changes none.
    """
    name = own_name(plan, "front")
    own = labels(plan, "front", name)
    rules = [
        _rule("apps", "deployments/scale", ("get", "patch"), [object_name(plan, one.name) for one in scaled(plan)]),
        _rule("", "pods", ("list", "watch")),
        _rule("coordination.k8s.io", "leases", ("get", "update"), [name]),
    ]
    space = metadata(plan, name, own)["namespace"]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}

    def thing(version: str, kind: str, **more: Any) -> Object:
        return {"apiVersion": version, "kind": kind, "metadata": metadata(plan, name, own), **more}

    account = {"kind": "ServiceAccount", "name": name, "namespace": space}
    return [
        thing("v1", "ServiceAccount", automountServiceAccountToken=False),
        thing("rbac.authorization.k8s.io/v1", "Role", rules=rules),
        thing("rbac.authorization.k8s.io/v1", "RoleBinding", roleRef=role, subjects=[account]),
        thing("coordination.k8s.io/v1", "Lease"),
    ]


def may_lead(pod: Object, container: Object) -> None:
    """Have a front's `pod` and `container` be one of those that may lead: an account, and where it is reached.

    One that waits passes on what it is asked, /health too, so that only the leader says whether it is well: what it
    is started again for is that nobody listens.
    """
    pod["automountServiceAccountToken"] = True
    listens = {"tcpSocket": {"port": "http"}, "periodSeconds": 5, "timeoutSeconds": 5}
    container["startupProbe"] = {**listens, "failureThreshold": 12}
    container["livenessProbe"] = {**listens, "failureThreshold": 6}
    container["args"] = [word for word in container["args"] if word != "--route-only"]
    container["env"] = [
        *container.get("env", ()),
        *(
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in (("POD_IP", "status.podIP"), ("POD_NAME", "metadata.name"))
        ),
    ]


def _rule(group: str, resource: str, verbs: Iterable[str], names: Iterable[str] = ()) -> Object:
    limited = {"resourceNames": sorted(names)} if names else {}
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs), **limited}


def placed(
    unit: ServerUnit, argv: tuple[str, ...], host: str, *, end_s: float, memory: tuple[DeviceNeed, ...]
) -> ServerUnit:
    """`unit` as a scheduler runs it. How far a load has come is not to be seen from here, nor is there a file of it.

    `end_s`: how much longer than its grace it may take to be gone.
    """
    return msgspec.structs.replace(
        unit,
        argv=argv,
        argv_digest=argv_digest(argv),
        host=host,
        port=pod_port(unit.port),
        files=(),
        rungs=(),
        fatal=False,
        slot_save_path=None,
        proved=None,
        stall_timeout_s=unit.start_timeout_s,
        stop_grace_s=unit.stop_grace_s + end_s,
        memory=memory,
    )


def _as_pod(
    unit: ServerUnit, host: str, container: Object, memory: tuple[DeviceNeed, ...], led: Container[str]
) -> ServerUnit:
    argv = (*container["command"], *(written(word) for word in container["args"]))
    after = tuple(name for name in unit.after if name in led)
    unit = placed(unit, argv, host, end_s=_END_S, memory=memory)
    return msgspec.structs.replace(unit, env={}, after=after, peers=())


def _service_as_pod(unit: ServiceUnit, host: str, container: Object, needs: Iterable[DeviceNeed]) -> ServiceUnit:
    sizes = {need.device: need.peak_bytes for need in needs}
    return msgspec.structs.replace(
        unit,
        argv=(container["image"], *(written(word) for word in container.get("args", ()))),
        env={},
        host=host,
        fatal=False,
        container=None,
        ram_bytes=0,
        vram_bytes=sizes,
    )


def _limit(container: Object) -> int | None:
    limit: int | None = container["resources"]["limits"].get("memory")
    return limit


def asked_of(
    unit: ServerUnit | ServiceUnit, limit: int | None, on: str, whole: Mapping[str, int]
) -> tuple[DeviceNeed, ...]:
    """Requests of its pod or job, per device. `limit`: bytes of RAM that it may take. `whole`: bytes of cards."""

    def asked(need: DeviceNeed) -> DeviceNeed:
        device = on_host(on, need.device)
        size = limit if need.device == "ram" else whole.get(device)
        if size is None:
            return msgspec.structs.replace(need, device=device)
        return msgspec.structs.replace(need, device=device, committed_bytes=size, peak_bytes=size, file_bytes=0)

    return tuple(asked(need) for need in unit.memory)


def node_budgets(plan: FleetPlan, always: list[DeviceNeed]) -> tuple[DeviceBudget, ...]:
    """Every device of every node, less what always runs there takes."""
    taken: dict[str, int] = {}

    def take(device: str, size: int) -> None:
        taken[device] = taken.get(device, 0) + size

    for need in always:
        take(need.device, max(need.committed_bytes, need.peak_bytes) + need.file_bytes)
    for beside in plan.services:
        if beside.starts == "boot" and beside.config.container is None:
            for device, size in {"ram": beside.config.ram_bytes, **beside.config.vram_bytes}.items():
                take(on_host(beside.on, device), size)
    return tuple(
        DeviceBudget(
            name=device_name(d),
            kind=d.kind,
            capacity_bytes=d.capacity_bytes,
            budget_bytes=max(
                0, (d.capacity_bytes if d.kind == "gpu" else d.budget_bytes) - taken.get(device_name(d), 0)
            ),
        )
        for d in plan.devices
    )


def device_name(device: DevicePlan) -> str:
    """A device's name among those of all nodes."""
    return on_host(device.host if isinstance(device.host, str) else "", device.name)


def on_host(host: str, device: str) -> str:
    """A device of one node of several."""
    return f"{host}/{device}" if host else device
