"""Several hosts: what runs where, each host's part of the config, and each host's part of the plan. Pure.

A `host` in the config is an address to listen on, beside the front, or the name of one of `hardware.hosts`. A process
on a named host listens on that host's address; one beside the front is asked on loopback.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from launcher.base.addresses import SOCKET_END, is_loopback, is_path
from launcher.errors import Finding, Fix, fault
from launcher.ir.config import FleetConfig, HookConfig, HostConfig, ServerConfig, ServiceConfig, Start
from launcher.ir.plan import FleetPlan, ServerPlan

LOOPBACK = "127.0.0.1"
KEY_FLAG = "--api-key-file"


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One host: its name ("" if there is only one), its part of the config, and whether the front runs there.

    In `fleet`, hardware is this machine alone; servers, services, hooks and ports are its own; and every `host` is an
    address.
    """

    name: str
    fleet: FleetConfig
    front: bool


def starts(fleet: FleetConfig, tier: str) -> Start:
    """When a tier runs what is in it; one that is unknown counts as always on."""
    return fleet.tiers[tier].start if tier in fleet.tiers else "boot"


def tier_of(fleet: FleetConfig, start: Start) -> str | None:
    """The first tier that runs what is in it then."""
    return next((name for name, tier in fleet.tiers.items() if tier.start == start), None)


def front_host(fleet: FleetConfig) -> str:
    """The host of the front: the one it names, else the first."""
    hosts = fleet.hardware.hosts
    named = fleet.runtime.front.host
    return named if named in hosts else next(iter(hosts), "")


def split(fleet: FleetConfig) -> tuple[Host, ...]:
    """Every host with its part of `fleet`, the front's first; a single machine has all of it, unchanged."""
    hosts, key = fleet.hardware.hosts, fleet.runtime.server_key_file
    if not hosts:
        if key is not None:
            keyed = {name: _asking(server, key) for name, server in fleet.servers.items()}
            fleet = msgspec.structs.replace(fleet, servers=keyed)
        return (Host(name="", fleet=fleet, front=True),)
    first = front_host(fleet)
    servers: defaultdict[str, dict[str, ServerConfig]] = defaultdict(dict)
    services: defaultdict[str, dict[str, ServiceConfig]] = defaultdict(dict)
    for name, server in fleet.servers.items():
        servers[server.host if server.host in hosts else first][name] = _asking(_listening(server, hosts, first), key)
    for name, service in fleet.services.items():
        host = service.host if service.host in hosts else first
        is_asked_elsewhere = service.protocol == "rpc" and service.host in hosts
        address = hosts[host].address if is_asked_elsewhere else _address(service.host, hosts, first)
        services[host][name] = msgspec.structs.replace(service, host=address)
    homes = {name: host for host, names in servers.items() for name in names}
    service_homes = {name: host for host, names in services.items() for name in names}
    ports: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, port in fleet.ports.items():
        for host in {where[name] for where in (homes, service_homes) if name in where}:
            ports[host][name] = port
    homes |= {role: homes[n] for n, s in fleet.servers.items() for role in (*s.roles, *s.aliases) if role not in homes}
    hooks: defaultdict[str, dict[str, HookConfig]] = defaultdict(dict)
    for name, hook in fleet.hooks.items():  # with the server that it asks, else beside the front
        hooks[homes.get((hook.http or "").partition("/")[0], first)][name] = hook
    return tuple(
        Host(
            name=name,
            fleet=_part(
                fleet, name, servers=servers[name], services=services[name], hooks=hooks[name], ports=ports[name]
            ),
            front=name == first,
        )
        for name in (first, *(name for name in hosts if name != first))
    )


def _part(
    fleet: FleetConfig,
    name: str,
    *,
    servers: dict[str, ServerConfig],
    services: dict[str, ServiceConfig],
    hooks: dict[str, HookConfig],
    ports: dict[str, int],
) -> FleetConfig:
    """The part of `fleet` on host `name`. A front of its own, where it is not the fleet's, serves itself alone."""
    first = front_host(fleet)
    front, hosts = fleet.runtime.front, fleet.hardware.hosts
    if name == first:
        listen = hosts[name].address if front.host in hosts else front.host
        front = msgspec.structs.replace(front, host=listen)
    else:
        front = msgspec.structs.replace(
            front, host=_own_loopback(hosts[name]), listen=(), tls_cert_file=None, tls_key_file=None, allowed_hosts=()
        )
    return msgspec.structs.replace(
        fleet,
        hardware=fleet.hardware.machine(name),
        servers=servers,
        services=services,
        upstreams=fleet.upstreams if name == first else {},
        ports=ports,
        hooks=hooks,
        orchestration=fleet.orchestration if name == first else None,
        runtime=msgspec.structs.replace(fleet.runtime, front=front),
    )


def _listening(server: ServerConfig, hosts: Mapping[str, HostConfig], first: str) -> ServerConfig:
    """`server` with the address to listen on, and its host's key where it must ask for one."""
    address = _address(server.host, hosts, first)
    key = hosts[server.host].api_key_file if server.host in hosts and server.host != first else None
    return _asking(msgspec.structs.replace(server, host=address), key)


def _asking(server: ServerConfig, key: str | None) -> ServerConfig:
    if key is None or _asks_for_key(server.extra_args):
        return server
    return msgspec.structs.replace(server, extra_args=(*server.extra_args, KEY_FLAG, key))


def _asks_for_key(extra_args: Iterable[str]) -> bool:
    return any(word == KEY_FLAG or word.startswith(f"{KEY_FLAG}=") for word in extra_args)


def _address(written: str, hosts: Mapping[str, HostConfig], first: str) -> str:
    """The address of something whose `host` is `written`."""
    if written not in hosts:
        return written
    return _own_loopback(hosts[written]) if written == first else hosts[written].address


def _own_loopback(host: HostConfig) -> str:
    """The address by which a host asks itself: its own where that is loopback already (test hosts)."""
    return host.address if is_loopback(host.address) else LOOPBACK


def is_private(address: str) -> bool:
    """Whether `address` is loopback or a unix socket."""
    return is_loopback(address) or is_path(address) or address.endswith(".sock")


def without_foreign(
    servers: Iterable[ServerPlan], everyone: Mapping[str, object]
) -> tuple[tuple[ServerPlan, ...], list[Finding]]:
    """`servers` of one host, waiting only for one another; each other dependency becomes a warning.

    Hosts start independently: none knows when a server elsewhere is ready.
    """
    ours = tuple(servers)
    here = {s.name for s in ours}
    findings: list[Finding] = []
    kept = []
    for server in ours:
        foreign = [n for n in server.after if n not in here and n in everyone]
        if not foreign:
            kept.append(server)
            continue
        after = tuple(n for n in server.after if n not in foreign)
        kept.append(msgspec.structs.replace(server, after=after))
        message = f"{server.name} cannot wait for {', '.join(foreign)}: hosts start by themselves, and that is another"
        key = f"{server.key}.after"
        fix = Fix(override=f"{key}=[{','.join(n for n in server.config.after if n not in foreign)}]")
        findings.append(fault("plan/after-other-host", key, message, fixes=(fix,), severity="warning"))
    return tuple(kept), findings


def told_by(finding: Finding, host: Host) -> Finding:
    """`finding` about one host's part, in terms of the whole config."""
    if not host.name or not finding.key.startswith("hardware."):
        return finding
    key = f"hardware.hosts.{host.name}.{finding.key.removeprefix('hardware.')}"
    return msgspec.structs.replace(finding, key=key, message=f"{host.name}: {finding.message}")


def check_hosts(fleet: FleetConfig) -> Iterator[Finding]:
    """`plan/host-address`, `plan/host-without-key`, `plan/remote-demand`: what keeps hosts from working together."""
    hosts = fleet.hardware.hosts
    first = front_host(fleet)
    if hosts:
        yield from _addresses(hosts)
    demand: defaultdict[str, list[str]] = defaultdict(list)
    open_: defaultdict[str, list[str]] = defaultdict(list)
    all_keyed = fleet.runtime.server_key_file is not None
    for name, server in fleet.servers.items():
        keyed = all_keyed or _asks_for_key(server.extra_args)
        if server.host not in hosts and not is_private(server.host) and not keyed:
            message = f"{name} listens on {server.host} and asks nobody for a key: whoever reaches this address uses it"
            own_key = Fix(
                override=f"servers.{name}.extra_args=[{KEY_FLAG},/etc/launch/{name}.key]",
                effect="its key in a file, which the front reads too",
            )
            yield fault("plan/host-without-key", f"servers.{name}.host", message, fixes=(own_key,), severity="warning")
        if server.host not in hosts or server.host == first:
            continue
        start = starts(fleet, server.tier) if name not in fleet.include_warm else "boot"
        if start == "demand" or server.exclusive:
            demand[server.host].append(name)
        if start != "never" and not hosts[server.host].api_key_file and not keyed:
            open_[server.host].append(name)
    for host, names in open_.items():
        if not is_loopback(hosts[host].address):
            key = f"hardware.hosts.{host}.api_key_file"
            message = (
                f"{_some(names)} on {host} listen on {hosts[host].address} and ask nobody for a key: "
                "whoever reaches this address uses them"
            )
            fix = Fix(override=f"+{key}=/etc/launch/{host}.key", effect=f"a file with a key, on {host} and on {first}")
            yield fault("plan/host-without-key", key, message, fixes=(fix,), severity="warning")
    scheduled = fleet.deploy.kubernetes is not None or fleet.deploy.slurm is not None
    for host, names in () if scheduled else demand.items():
        message = (
            f"{_some(names)} on {host} start on demand or take turns, and the front runs on {first}: "
            f"only units on {host} start them (launch install), `launch up --host {host}` does not"
        )
        yield fault("plan/remote-demand", f"servers.{names[0]}.host", message, severity="warning")


SHOWN = 3


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


_HOST_NAME = re.compile(r"(?![\d.]*$)[\w-]+(\.[\w-]+)*\.?")
"""Numbers with dots alone are an IPv4 address gone wrong."""


def _is_address(text: str) -> bool:
    """Whether it is an IP address, or a name that llama-server takes for one, and not for a unix socket."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(_HOST_NAME.fullmatch(text)) and not text.endswith(SOCKET_END)
    return True


def _addresses(hosts: Mapping[str, HostConfig]) -> Iterator[Finding]:
    """Findings for addresses that are shared, cannot be asked, or are reachable only from their own host."""
    count = Counter(host.address for host in hosts.values())
    alone = [name for name, host in hosts.items() if is_loopback(host.address)]
    for name, host in hosts.items():
        address = host.address
        if not _is_address(address):
            why = f"{address!r} is no address: a name or an IP address is, without a port"
        elif address in ("0.0.0.0", "::"):  # noqa: S104 - refused here, never bound
            why = f"{address} means every address of a host, and names none"
        elif count[address] > 1:
            others = ", ".join(n for n, h in hosts.items() if h.address == address and n != name)
            why = f"{address} is also the address of {others}"
        elif name in alone and len(alone) < len(hosts):
            why = f"{address} is reached from {name} itself only"
        else:
            continue
        yield fault("plan/host-address", f"hardware.hosts.{name}.address", f"{name}: {why}")


def plan_of_host(plan: FleetPlan, name: str) -> FleetPlan:
    """One host's part of a fleet's `plan`, from which its bundle is rendered. KeyError: no such host."""
    host = next((h for h in split(plan.config) if h.name == name), None)
    if host is None:
        raise KeyError(name)
    if not name:
        return plan
    return msgspec.structs.replace(
        plan,
        deployment=f"{plan.deployment}-{name}",
        config=host.fleet,
        devices=tuple(d for d in plan.devices if d.host == name),
        servers=tuple(s for s in plan.servers if s.on == name),
        services=tuple(s for s in plan.services if s.on == name),
        on=name,
        front=host.front,
        remote=tuple(s for s in plan.servers if s.on != name) if host.front else (),
        solved=tuple(choice for choice in plan.solved if choice.server in host.fleet.servers),
        residency=tuple(table for table in plan.residency if table.host == name),
    )
