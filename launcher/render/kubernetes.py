"""A fleet as objects for Kubernetes, without custom resources: one file per process, the front, the network. Pure.

Requests are limits and come from the plan, so that the scheduler places what was planned and nothing is evicted for
memory. Servers that start on demand or take turns have no pods until the front scales them (`launcher.render.led`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from launcher.errors import Finding, fault
from launcher.ir.config import KubernetesConfig
from launcher.ir.deployment import RenderedFile
from launcher.ir.fleet import FleetManifest, RouteTarget, RoutingTable
from launcher.ir.plan import FleetPlan, ServicePlan
from launcher.manifest import argv_digest, encode_document
from launcher.render.block_yaml import block_yaml
from launcher.render.command import Engines
from launcher.render.led import API_PORTS, led_fleet, led_targets, may_lead, rights
from launcher.render.left_out import STATE_DIR, kept_in_pod, left_out, without_fleet, without_service
from launcher.render.nodes import inner_port, is_scaled, refused_by_kubernetes, scaled
from launcher.render.peer_pods import peer_network, peer_objects, peers, with_peer_names
from launcher.render.pods import (
    Object,
    alike,
    confined,
    deployment,
    disruption_budget,
    environment,
    instance,
    key_mounts,
    labels,
    literal,
    metadata,
    object_name,
    on_node,
    own_name,
    pod_defaults,
    pod_port,
    server_objects,
    service,
    service_resources,
    with_tmp,
)
from launcher.render.routes import outside_targets, routing_table

FLEET_DIR = "/etc/launch/fleet"
FRONT = "front"
CONFIG_MAP_BYTES = 1024 * 1024
"""Bytes that the API server accepts in one object."""
_FRONT_BYTES = 512 * 1024**2
"""Memory of the front without the bodies that it holds."""


def kubernetes_files(
    plan: FleetPlan, engines: Engines, manifest: FleetManifest, header: str
) -> tuple[list[RenderedFile], list[Finding]]:
    """The objects of `plan` below `kubernetes/`; none where the config does not ask for them.

    `manifest`: the deployment's, of which the front has its own. Findings are those of `server_objects` and
    `refused_by_kubernetes`, and `render/kubernetes-size`.
    """
    settings = plan.config.deploy.kubernetes
    if settings is None:
        return [], []
    findings = refused_by_kubernetes(plan, settings)
    lost = list(without_fleet(plan))
    lenders = peers(plan)
    without_pod = [beside for beside in plan.services if beside.config.command and beside not in lenders]
    lost += [("a command of the machine's own, which has no image", beside.name) for beside in without_pod]
    plan = msgspec.structs.replace(plan, services=tuple(s for s in plan.services if s not in without_pod))
    plan = with_peer_names(plan)
    groups: dict[str, list[Object]] = {"network": _network(plan, settings)}
    containers: dict[str, Object] = {}
    for server in plan.servers:
        if server.starts != "never":
            objects, found, without = server_objects(server, plan, engines)
            groups[f"server-{server.name}"], containers[server.name] = objects, _container(objects)
            findings += found
            lost += [(what, server.name) for what in without]
    for beside in plan.services:
        if beside.config.container is not None and beside.starts != "never":
            objects, without = _beside(beside, plan, settings)
            groups[f"service-{beside.name}"], containers[beside.name] = objects, _container(objects)
            lost += [(what, beside.name) for what in (*without, *without_service(beside))]
    for peer in lenders:
        groups[f"peer-{peer.name}"], without = peer_objects(peer, plan, settings)
        lost += [(what, peer.name) for what in without]
    groups[FRONT], found, without = _front(plan, settings, led_fleet(plan, manifest, containers))
    findings += found
    findings += left_out([*lost, *((what, "the front") for what in without)])
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "metadata": {"name": own_name(plan, "fleet"), "annotations": {"launch/input-digest": plan.input_digest}},
        "namespace": settings.namespace,
        "resources": [f"{name}.yaml" for name in sorted(groups)],
    }
    texts = {f"{name}.yaml": block_yaml(objects) for name, objects in groups.items()}
    texts["kustomization.yaml"] = block_yaml([kustomization])
    return [RenderedFile(path=f"kubernetes/{name}", text=f"{header}\n{text}") for name, text in texts.items()], findings


def cluster_routes(plan: FleetPlan, table: RoutingTable) -> RoutingTable:
    """`table` for a front in the cluster, which asks servers and services by the names of their Services."""
    targets = {name: _in_cluster(target, object_name(plan, name)) for name, target in table.targets.items()}
    own = own_name(plan, FRONT)
    space = (plan.config.deploy.kubernetes or KubernetesConfig()).namespace
    reached = (own, f"{own}.{space}", f"{own}.{space}.svc", f"{own}.{space}.svc.cluster.local")
    hosts = tuple(dict.fromkeys((*table.front.allowed_hosts, *reached)))
    journal = table.front.journal_file
    front = msgspec.structs.replace(
        table.front,
        host="0.0.0.0",  # noqa: S104 # a pod's
        listen=(),
        allowed_hosts=hosts,
        journal_file=journal if journal is not None and kept_in_pod(journal) else None,
    )
    return msgspec.structs.replace(table, targets=led_targets(plan, targets), front=front)


def _in_cluster(target: RouteTarget, name: str) -> RouteTarget:
    """`target` at the Service `name`; what somebody else runs is where it was."""
    outside = target.outside
    if outside is None:
        return msgspec.structs.replace(target, host=name, port=pod_port(target.port), rungs=0, on="")
    if not outside.supervised:
        return target
    outside = msgspec.structs.replace(outside, url=f"http://{name}:{target.port}/v1")
    return msgspec.structs.replace(target, host=name, outside=outside, on="")


def _container(objects: list[Object]) -> Object:
    found: Object = objects[0]["spec"]["template"]["spec"]["containers"][0]
    return found


def _front(
    plan: FleetPlan, settings: KubernetesConfig, manifest: FleetManifest
) -> tuple[list[Object], list[Finding], list[str]]:
    """The front's Deployment, Service, budget, rights, and its ConfigMap; findings; what it loses there."""
    findings: list[Finding] = []
    lost: list[str] = []
    name = own_name(plan, FRONT)
    own = labels(plan, FRONT, name)
    table = cluster_routes(plan, routing_table(plan))
    data = {"fleet.json": encode_document(manifest).decode(), "routes.json": encode_document(table).decode()}
    if (size := sum(len(text.encode()) for text in data.values())) > CONFIG_MAP_BYTES:
        message = f"the front's tables have {size} bytes, and a ConfigMap at most {CONFIG_MAP_BYTES}"
        findings.append(fault("render/kubernetes-size", "servers", message))
    replicas = settings.front_replicas
    if plan.config.orchestration is not None and replicas > 1:
        replicas = 1
        lost.append("further replicas: the memory of projects has one writer")
    if plan.config.orchestration is not None and settings.state_claim is None:
        lost.append("a memory of projects that outlives its pod (deploy.kubernetes.state_claim)")
    leads = manifest.cluster is not msgspec.UNSET
    pod = _front_pod(plan, settings, table, data, leads=leads)
    same = encode_document(msgspec.structs.replace(manifest, input_digest=""))  # what it reads, not what it was made of
    digest = argv_digest((same.decode(), data["routes.json"]))
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(plan, name, own, **{"launch/input-digest": plan.input_digest}),
        "data": data,
    }
    objects = [
        *(rights(plan) if leads else ()),
        config_map,
        deployment(plan, name, own, pod, replicas=replicas, reads=digest, rolling=replicas > 1),
        service(plan, name, own, table.front.port),
        *([disruption_budget(plan, name, own)] if replicas > 1 else []),
    ]
    return objects, findings, lost


def _front_pod(
    plan: FleetPlan, settings: KubernetesConfig, table: RoutingTable, files: Iterable[str], *, leads: bool
) -> Object:
    """The front's pod, with `files` of its ConfigMap, its keys, and where it keeps its state."""
    name, config = own_name(plan, FRONT), plan.config.runtime.front
    keys = [target.api_key_file for target in table.targets.values()]
    keys += [config.api_key_file, config.tls_cert_file, config.tls_key_file]
    keys += [upstream.ca_file for upstream in plan.config.upstreams.values()]
    secret, shown = key_mounts([file for file in keys if file], settings)
    container = _front_container(plan, settings, table.front.port, files, shown)
    claim = {"persistentVolumeClaim": {"claimName": settings.state_claim}} if settings.state_claim else {"emptyDir": {}}
    pod = {
        **pod_defaults(plan.config.runtime.drain_timeout_s + 10),
        "containers": [container],
        "volumes": [
            {"name": "fleet", "configMap": {"name": name}},
            {"name": "state", **claim},
            {"name": "tmp", "emptyDir": {}},
            *secret,
        ],
    }
    if leads:
        pod["serviceAccountName"] = name
        may_lead(pod, container)
    return pod


def _front_container(
    plan: FleetPlan, settings: KubernetesConfig, port: int, files: Iterable[str], keys: list[Object]
) -> Object:
    """The front's container: it reads `files` of its ConfigMap, and `keys` are mounted."""
    config = plan.config.runtime.front
    scheme = {"scheme": "HTTPS"} if config.tls_cert_file else {}
    look = {"httpGet": {"path": "/health", "port": "http", **scheme}, "periodSeconds": 5, "timeoutSeconds": 5}
    return {
        "name": FRONT,
        "image": settings.front_image,
        "command": ["launch"],
        "args": ["serve", FLEET_DIR, "--route-only"],
        **environment({"HOME": STATE_DIR, "XDG_STATE_HOME": STATE_DIR}),
        "ports": [{"name": "http", "containerPort": port}],
        "resources": alike({"cpu": 1, "memory": _FRONT_BYTES + config.max_held_bytes}),
        "startupProbe": {**look, "failureThreshold": 12},
        "readinessProbe": {**look, "failureThreshold": 1},
        "livenessProbe": {**look, "failureThreshold": 6},
        "securityContext": confined(),
        "volumeMounts": [
            # one by one: a whole volume's directory is everybody's to write, and what it says would not be taken
            *({"name": "fleet", "mountPath": f"{FLEET_DIR}/{f}", "subPath": f, "readOnly": True} for f in files),
            {"name": "state", "mountPath": STATE_DIR},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 # the pod's own
            *keys,
        ],
    }


def _beside(beside: ServicePlan, plan: FleetPlan, settings: KubernetesConfig) -> tuple[list[Object], list[str]]:
    """A service that is a container already; what its pod lacks."""
    config, container = beside.config, beside.config.container
    lost: list[str] = []
    if container is None:
        return [], lost
    name = object_name(plan, beside.name)
    own = labels(plan, "service", name)
    mounts, volumes = [], []
    for i, volume in enumerate(container.volumes):
        source, _, rest = volume.partition(":")
        target, _, options = rest.partition(":")
        if not source.startswith("/"):
            continue  # `without_service` says so
        mounts.append({"name": f"data-{i}", "mountPath": target or source, "readOnly": "ro" in options.split(",")})
        volumes.append({"name": f"data-{i}", "hostPath": {"path": source}})
    inside = (inner_port(container.ports[0]) if container.ports else None) or beside.port
    attempts = max(1, math.ceil(config.start_timeout_s / 5))
    look = {"httpGet": {"path": config.health_path, "port": "http"}, "periodSeconds": 5, "timeoutSeconds": 5}
    served = {
        "name": "service",
        "image": container.image,
        **({"args": [literal(word) for word in container.args]} if container.args else {}),
        **environment(config.env),
        "ports": [{"name": "http", "containerPort": inside}],
        "resources": service_resources(beside, plan, lost),
        "startupProbe": {**look, "failureThreshold": attempts},
        "readinessProbe": {**look, "failureThreshold": 1},
    }
    pod = {**pod_defaults(30), **on_node(beside.on, settings), **with_tmp(served, mounts, volumes)}
    return [
        deployment(plan, name, own, pod, replicas=int(not is_scaled(beside))),
        service(plan, name, own, beside.port),
    ], lost


def _network(plan: FleetPlan, settings: KubernetesConfig) -> list[Object]:
    """Network policies: the namespace may reach the front, the front servers and DNS, servers nothing."""
    front = labels(plan, FRONT, own_name(plan, FRONT))
    processes = {
        "matchLabels": instance(plan),
        "matchExpressions": [
            {"key": "app.kubernetes.io/name", "operator": "In", "values": ["launch-server", "launch-service"]}
        ],
    }
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    servers: Object = {
        "podSelector": processes,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": front}}]}],
        "egress": [],
    }
    own: Object = {
        "podSelector": {"matchLabels": front},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": "http"}]}],
        "egress": [{"to": [{"podSelector": processes}]}, {"ports": names}],
    }
    if ports := sorted({unit.port for unit in outside_targets(plan) if unit.outside and not unit.outside.supervised}):
        own["egress"].append({"ports": [{"protocol": "TCP", "port": port} for port in ports]})
    if scaled(plan):
        fronts, api = [{"podSelector": {"matchLabels": front}}], [{"protocol": "TCP", "port": p} for p in API_PORTS]
        own["egress"] += [{"to": fronts, "ports": [{"protocol": "TCP", "port": "http"}]}, {"ports": api}]
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": own_name(plan, what), "namespace": settings.namespace, "labels": instance(plan)},
            "spec": spec,
        }
        for what, spec in (("servers", servers), ("clients", own), *peer_network(plan))
    ]
