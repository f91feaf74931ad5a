"""Peers of servers that are spread over several nodes (`rpc`), as pods: their Deployment, Service and network. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from launcher.ir.config import GpuConfig, ImageConfig, KubernetesConfig
from launcher.ir.plan import FleetPlan, ServicePlan
from launcher.render.pods import (
    Object,
    deployment,
    environment,
    labels,
    listening,
    object_name,
    on_node,
    pod_defaults,
    service,
    service_resources,
    with_tmp,
)

KIND = "peer"
_IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+")


def peers(plan: FleetPlan) -> tuple[ServicePlan, ...]:
    """The processes of the fleet that lend memory to a server."""
    return tuple(s for s in plan.services if s.config.protocol == "rpc" and s.config.command and s.starts != "never")


def with_peer_names(plan: FleetPlan) -> FleetPlan:
    """`plan` with the devices of peers at the names of their Services."""
    names = {peer.name: f"{object_name(plan, peer.name)}:{peer.port}" for peer in peers(plan)}
    if not names:
        return plan
    hardware = plan.config.hardware

    def named(gpus: dict[str, GpuConfig]) -> dict[str, GpuConfig]:
        return {n: msgspec.structs.replace(g, endpoint=names[n]) if n in names else g for n, g in gpus.items()}

    hosts = {n: msgspec.structs.replace(h, gpus=named(h.gpus)) if h.gpus else h for n, h in hardware.hosts.items()}
    hardware = msgspec.structs.replace(hardware, gpus=named(hardware.gpus), hosts=hosts)
    return msgspec.structs.replace(plan, config=msgspec.structs.replace(plan.config, hardware=hardware))


def peer_objects(peer: ServicePlan, plan: FleetPlan, settings: KubernetesConfig) -> tuple[list[Object], list[str]]:
    """A peer's Deployment and Service; what its pod lacks.

    It serves one client at a time, and a probe would be one: only its process is watched.
    """
    lost: list[str] = []
    engine = plan.config.servers[peer.name.rpartition("-rpc")[0]].engine
    image = settings.images.get(engine) or ImageConfig(image="none")  # `without_image` finds it
    program = peer.config.command[0].rpartition("/")[2]
    name = object_name(plan, peer.name)
    own = labels(plan, KIND, name)
    container = {
        "name": "rpc-server",
        "image": image.image,
        "command": [f"{image.program.rpartition('/')[0]}/{program}"],
        "args": listening(peer.config.command[1:]),
        **environment({k: v for k, v in peer.config.env.items() if k != "LD_LIBRARY_PATH"}),
        "ports": [{"name": "rpc", "containerPort": peer.port}],
        "resources": service_resources(peer, plan, lost),
    }
    pod = {**pod_defaults(5), **on_node(peer.on, settings), **with_tmp(container)}
    return [deployment(plan, name, own, pod, replicas=1), service(plan, name, own, peer.port, "rpc")], lost


def peer_network(plan: FleetPlan) -> Iterator[tuple[str, Object]]:
    """Network policy of peers, which require no key: only servers of the fleet may reach them."""
    own, others = peers(plan), _elsewhere(plan)
    chosen, heads = labels(plan, KIND), labels(plan, "server")
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    if own:
        yield (
            "peers",
            {
                "podSelector": {"matchLabels": chosen},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": heads}}]}],
                "egress": [],
            },
        )
    reached: list[Object] = [{"to": [{"podSelector": {"matchLabels": chosen}}]}, {"ports": names}] if own else []
    for address, port in others:
        there = {"to": [{"ipBlock": {"cidr": f"{address}/32"}}]} if address else {}
        reached.append({**there, "ports": [{"protocol": "TCP", "port": port}]})
    if reached:
        yield ("heads", {"podSelector": {"matchLabels": heads}, "policyTypes": ["Egress"], "egress": reached})


def _elsewhere(plan: FleetPlan) -> list[tuple[str, int]]:
    """Addresses and ports of the peers that somebody else runs; no address of one that is written by a name."""
    own = {peer.name for peer in peers(plan)}
    found: set[tuple[str, int]] = set()
    for server in plan.servers:
        gpus = plan.config.hardware.machine(server.on).gpus
        for device in server.settings.devices:
            endpoint = gpus[device].endpoint if device in gpus and device not in own else None
            if endpoint and gpus[device].backend == "rpc" and server.starts != "never":
                address, _, port = endpoint.rpartition(":")
                if port.isdecimal():
                    found.add((address if _IPV4.fullmatch(address) else "", int(port)))
    return sorted(found)
