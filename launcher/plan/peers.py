"""One model over several hosts (llama.cpp's RPC): each peer of a server as a device, and the process behind it. Pure.

A peer is written as the name of a host, for which the plan adds a process that lends its memory, or as the address of
one that somebody else runs. Memory on the device belongs to that process: it counts on the peer's host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from launcher.errors import Finding, fault
from launcher.ir.backends import BACKENDS
from launcher.ir.config import FleetConfig, GpuConfig, HostConfig, ServerConfig, ServiceConfig
from launcher.ir.plan import ServerPlan, ServicePlan
from launcher.plan.hosts import starts, tier_of

PROGRAM = "ggml-rpc-server"
"""llama.cpp's name of it; it lies beside llama-server."""
FIRST_PORT = 50052
"""llama.cpp's default; further peers on a host have the next ones."""
PROCESS_BYTES = 64 * 1024**2
"""RAM of the process itself, beside its share of the model."""
_UNKNOWN_BYTES = 1024**4
"""Assumed memory of a peer that somebody else runs."""
_PRIVATE = tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
COST = "each token goes over the network once a peer, and whoever reaches a peer's port can run what he likes there"


class Peer(NamedTuple):
    """One entry of a server's `rpc`. `host`: the fleet's host that it is on, "" where somebody else runs it."""

    name: str
    host: str
    address: str
    port: int


def with_peers(fleet: FleetConfig, programs: Mapping[str, str]) -> FleetConfig:
    """`fleet` with every peer as a device of its server and, on a host of the fleet, a service that lends the memory.

    `programs`: the llama-server of each engine. Entries that `check_peers` refuses are left out.
    """
    if not any(server.rpc for server in fleet.servers.values()):
        return fleet
    hosts, services, servers = dict(fleet.hardware.hosts), dict(fleet.services), dict(fleet.servers)
    own = dict(fleet.hardware.gpus)
    for name, peers in _peers(fleet).items():
        server = fleet.servers[name]
        devices = {peer.name: _device(peer, fleet) for peer in peers}
        home = fleet.hardware.whose(server.host, fleet.runtime.front.host)
        if home:
            gpus = fleet.hardware.gpus if hosts[home].gpus is None else hosts[home].gpus
            hosts[home] = msgspec.structs.replace(hosts[home], gpus={**(gpus or {}), **devices})
        else:
            own |= devices
        servers[name] = msgspec.structs.replace(
            server, devices=(*server.devices, *devices), n_gpu_layers=server.n_gpu_layers or "auto"
        )
        for peer in peers:
            if peer.host and starts(fleet, server.tier) != "never":
                services[peer.name] = _service(peer, server, fleet, programs)
    hardware = msgspec.structs.replace(fleet.hardware, hosts=hosts, gpus=own)
    return msgspec.structs.replace(fleet, hardware=hardware, servers=servers, services=services)


def peer_devices(fleet: FleetConfig) -> frozenset[str]:
    """The devices that `with_peers` made."""
    return frozenset(f"{name}-rpc{i}" for name, server in fleet.servers.items() for i in range(len(server.rpc)))


def with_shares(services: Iterable[ServicePlan], servers: Iterable[ServerPlan]) -> tuple[ServicePlan, ...]:
    """`services`, where peers take what is planned on their devices by `servers` of all hosts."""
    shares = {m.device: m.resident_peak_bytes for s in servers if s.config.rpc for m in s.memory}
    return tuple(_sized(s, shares[s.name]) if s.config.protocol == "rpc" and s.name in shares else s for s in services)


def _sized(peer: ServicePlan, share: int) -> ServicePlan:
    """`peer` with its `share` of a model: on its card, else in RAM."""
    config, card = peer.config, next(iter(peer.config.vram_bytes), "")
    ram, cards = (PROCESS_BYTES, {card: share}) if card else (PROCESS_BYTES + share, config.vram_bytes)
    config = msgspec.structs.replace(config, ram_bytes=ram, vram_bytes=cards)
    return msgspec.structs.replace(peer, config=config)


def check_peers(fleet: FleetConfig) -> Iterator[Finding]:
    """`plan/rpc-peer`: an entry that is no host and no private address, or is taken. `plan/rpc-experimental`: cost."""
    spread = {name: server for name, server in fleet.servers.items() if server.rpc}
    # where devices of peers are asked, of which `with_peers` has made those of servers
    endpoints = {name: gpu.endpoint for gpus in _machines(fleet) for name, gpu in gpus.items() if gpu.backend == "rpc"}
    shared = _shared(fleet, endpoints)
    for name, server in spread.items():
        for i, written in enumerate(server.rpc):
            device = f"{name}-rpc{i}"
            why = _refusal(written, fleet.hardware.hosts) or shared.get(device)
            if why is None and device not in endpoints and device in _taken_names(fleet):
                why = f"which would be {device}, and that is another's name already"
            if why is not None:
                message = f"{name} has the peer {written!r}, {why}"
                yield fault("plan/rpc-peer", f"servers.{name}.rpc.{i}", message)
        message = f"{name} is spread over {len(server.rpc) + 1} processes, which llama.cpp calls a proof of concept"
        key = f"servers.{name}.rpc"
        yield fault("plan/rpc-experimental", key, message, COST, severity="note")


def _taken_names(fleet: FleetConfig) -> set[str]:
    cards = (name for gpus in _machines(fleet) for name in gpus)
    return {*fleet.servers, *fleet.services, *fleet.upstreams, *cards}


def _machines(fleet: FleetConfig) -> Iterator[Mapping[str, GpuConfig]]:
    yield fleet.hardware.gpus
    yield from (host.gpus or {} for host in fleet.hardware.hosts.values())


def _shared(fleet: FleetConfig, endpoints: Mapping[str, str | None]) -> dict[str, str]:
    """Why a peer already taken is unusable, by its device: it serves one client at a time, others wait."""
    users: dict[str, tuple[str, str | None]] = {}
    found: dict[str, str] = {}
    for name, server in fleet.servers.items():
        for device in (f"{name}-rpc{i}" for i in range(len(server.rpc))):
            endpoint = endpoints.get(device)
            if endpoint is None or starts(fleet, server.tier) == "never":
                continue
            other, turns = users.setdefault(endpoint, (device, server.exclusive))
            in_turn = turns is not None and turns == server.exclusive and not other.startswith(f"{name}-rpc")
            if other != device and not in_turn:
                found[device] = f"and {endpoint} is {other} already: an RPC server has one client at a time"
    return found


def _refusal(written: str, hosts: Mapping[str, HostConfig]) -> str | None:
    """Why there can be no peer at `written` (the end of a sentence); None where there can."""
    host, colon, port = written.partition(":")
    if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        return "which is no HOST:PORT: llama.cpp takes IPv4 addresses alone"
    if host not in hosts and not colon:
        return "which is none of hardware.hosts, nor HOST:PORT"
    address = hosts[host].address if host in hosts else host
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"and {address!r} is no address: a name may lead anywhere"
    if found.version != 4:
        return f"and llama.cpp asks no peer at {address}: it takes IPv4 addresses alone"
    if not any(found in network for network in _PRIVATE):
        return f"and {address} is no private address: a peer asks nobody for a key"
    return None


def _peers(fleet: FleetConfig) -> dict[str, tuple[Peer, ...]]:
    """Per server; peers of a host without a written port get the next free one there."""
    hosts = fleet.hardware.hosts
    taken = {
        *fleet.ports.values(),
        *(s.port for s in fleet.servers.values()),
        *(s.port for s in fleet.services.values()),
    }
    names = _taken_names(fleet)
    used: dict[str, set[int]] = {}
    found: dict[str, tuple[Peer, ...]] = {}
    for name, server in fleet.servers.items():
        peers = []
        for i, written in enumerate(server.rpc):
            if _refusal(written, hosts) is not None or f"{name}-rpc{i}" in names:
                continue
            host, _, port = written.partition(":")
            here = used.setdefault(host, set())
            number = int(port) if port else FIRST_PORT
            while not port and (number in taken or number in here):
                number += 1
            here.add(number)
            own = host in hosts
            address = hosts[host].address if own else host
            peers.append(Peer(f"{name}-rpc{i}", host if own else "", address, number))
        if peers:
            found[name] = tuple(peers)
    return found


def _device(peer: Peer, fleet: FleetConfig) -> GpuConfig:
    """The peer's memory as its server sees it: that of its host's first card, else of its RAM."""
    room, most = _UNKNOWN_BYTES, 1.0
    if peer.host:
        machine = fleet.hardware.machine(peer.host)
        card = next(iter(machine.gpus.values()), None)
        room = card.vram_bytes if card else max(1, machine.ram_bytes - machine.ram_reserve_bytes - PROCESS_BYTES)
        most = card.target_max if card else 1.0
    endpoint = f"{peer.address}:{peer.port}"
    return GpuConfig(backend="rpc", vram_bytes=room, target_min=0, target_max=most, endpoint=endpoint)


def _service(peer: Peer, server: ServerConfig, fleet: FleetConfig, programs: Mapping[str, str]) -> ServiceConfig:
    """The process behind a peer on a fleet's host; its memory is known once its server is planned."""
    machine = fleet.hardware.machine(peer.host)
    card = next(iter(machine.gpus), "")
    engine = fleet.engines[server.engine]
    folder, slash, _ = programs[server.engine].rpartition("/")
    threads = server.threads or machine.cpu.physical_cores
    words = (f"{folder}{slash}{PROGRAM}", "--host", peer.address, "--port", str(peer.port), "--threads", str(threads))
    libraries = {"LD_LIBRARY_PATH": ":".join(engine.library_path)} if engine.library_path else {}
    return ServiceConfig(
        description=f"memory of {peer.host} for {peer.name.rpartition('-')[0]}",
        host=peer.host,
        port=peer.port,
        protocol="rpc",
        command=(*words, "--device", f"{BACKENDS[machine.gpus[card].backend].device}0" if card else "CPU"),
        vram_bytes={card: 0} if card else {},
        threads=0 if card else threads,
        tier=server.tier if starts(fleet, server.tier) == "boot" else tier_of(fleet, "boot") or server.tier,
        env={**libraries, **engine.env},
    )
