"""From config and catalogue to the fleet's plan: this room's table of contents. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush

import msgspec

from launcher.errors import Finding, fault
from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig
from launcher.ir.measured import Proved
from launcher.ir.plan import FleetPlan, Residency, ServerPlan, ServicePlan, Solved
from launcher.plan.checks import CHECKS, WHOLE, Check, Planning
from launcher.plan.devices import device_plans, elect, others_on, share, steady, totals
from launcher.plan.hosts import Host, check_hosts, split, starts, told_by, without_foreign
from launcher.plan.memory.weights import WeightTables
from launcher.plan.server import ladders, plan_server, with_proof
from launcher.plan.speed import speeds
from launcher.plan.waivers import sort_findings


def plan_fleet(
    fleet: FleetConfig,
    catalog: Catalog,
    *,
    deployment: str,
    input_digest: str,
    checks: Iterable[Check] = CHECKS,
    proved: Mapping[str, Proved] | None = None,
) -> FleetPlan:
    """The whole plan. Always returns; all findings, errors too, are in `findings`, sorted.

    `proved`: servers whose own binary did a dry run; their plan is the larger of bound and dry run. Open choices are
    made with the bound alone, so that a proof never changes what it was made for.
    """
    findings: list[Finding] = []
    tables = WeightTables()
    hosts, solved = _solved(split(fleet), catalog, tables)
    planned = [_planned(host, fleet, catalog, tables, findings, proved=proved or {}) for host in hosts]
    services = [tuple(_services(host, findings)) for host in hosts]
    if any(server.rpc for server in fleet.servers.values()):
        from launcher.plan import peers  # noqa: PLC0415 - only a fleet with a model over several hosts needs it

        everyone = [server for servers in planned for server in servers]
        services = [peers.with_shares(own, everyone) for own in services]
        findings += peers.check_peers(fleet)
    parts = [
        Planning(
            fleet=host.fleet,
            catalog=catalog,
            servers=servers,
            services=own,
            devices=device_plans(host.fleet, servers, own, host=host.name),
            tables=tables,
            solved=solved,
            front=host.front,
        )
        for host, servers, own in zip(hosts, planned, services, strict=True)
    ]
    whole = parts[0] if len(parts) == 1 else _together(fleet, catalog, tables, parts)
    findings += _checked(tuple(checks), hosts, parts, whole)
    findings += check_hosts(fleet)
    plan = FleetPlan(
        deployment=deployment,
        input_digest=input_digest,
        config=fleet,
        devices=whole.devices,
        servers=whole.servers,
        services=whole.services,
        totals=totals(whole.servers, whole.services),
        findings=sort_findings(findings),
        solved=solved,
        residency=tuple(table for part in parts if (table := _residency(part)) is not None),
        ladders={w: rungs for host in hosts for w, rungs in ladders(host.fleet, catalog, tables).items()},
    )
    return msgspec.structs.replace(plan, speeds=speeds(plan, (), {}))


def _checked(
    checks: Sequence[Check], hosts: Sequence[Host], parts: Sequence[Planning], whole: Planning
) -> Iterator[Finding]:
    for host, part in zip(hosts, parts, strict=True):
        own = (check for check in checks if part is whole or check not in WHOLE)
        yield from (told_by(finding, host) for check in own for finding in check(part))
    if len(parts) > 1:
        yield from (finding for check in checks if check in WHOLE for finding in check(whole))


def _solved(
    hosts: tuple[Host, ...], catalog: Catalog, tables: WeightTables
) -> tuple[tuple[Host, ...], tuple[Solved, ...]]:
    if not any(s.fill or s.n_gpu_layers == "auto" for host in hosts for s in host.fleet.servers.values()):
        return hosts, ()
    from launcher.plan.solve import solve  # noqa: PLC0415 - only a fleet that leaves something open needs it

    found = [(host, *solve(host.fleet, catalog, tables)) for host in hosts]
    chosen = tuple(msgspec.structs.replace(host, fleet=fleet) for host, fleet, _ in found)
    return chosen, tuple(choice for _, _, choices in found for choice in choices)


def _planned(
    host: Host,
    fleet: FleetConfig,
    catalog: Catalog,
    tables: WeightTables,
    findings: list[Finding],
    *,
    proved: Mapping[str, Proved],
) -> tuple[ServerPlan, ...]:
    """One host's servers whose references resolve, in start order."""
    planned: list[ServerPlan] = []
    for name, config in host.fleet.servers.items():
        server, found = plan_server(host.fleet, catalog, name, config, tables)
        findings += found
        if server is not None:
            server = with_proof(server, proved[name]) if name in proved else server
            planned.append(msgspec.structs.replace(server, on=host.name) if host.name else server)
    servers = share(elect(planned))
    if host.name:
        servers, foreign = without_foreign(servers, fleet.servers)
        findings += foreign
    servers, cycles = start_order(servers, fleet.runtime.parallel_start_below_bytes, fleet.runtime.cooldown_s)
    findings += cycles
    return servers


def _residency(part: Planning) -> Residency | None:
    processes: tuple[ServerPlan | ServicePlan, ...] = (*part.servers, *part.services)
    if all(process.starts == "never" or steady(process) for process in processes):
        return None
    from launcher.plan.together import residency  # noqa: PLC0415 - only where something comes and goes

    always = [s for s in part.services if steady(s)]
    standing = {d.name: sum(size for _, size in others_on(d.name, part.fleet, always)) for d in part.devices}
    return residency(part.servers, part.services, part.devices, standing=standing, pooled=part.fleet.hardware.pooled)


def _together(fleet: FleetConfig, catalog: Catalog, tables: WeightTables, parts: Sequence[Planning]) -> Planning:
    """Several hosts as one, for what concerns all of them."""
    return Planning(
        fleet=fleet,
        catalog=catalog,
        servers=tuple(s for part in parts for s in part.servers),
        services=tuple(s for part in parts for s in part.services),
        devices=tuple(d for part in parts for d in part.devices),
        tables=tables,
    )


def _services(host: Host, findings: list[Finding]) -> Iterator[ServicePlan]:
    """Services with their ports resolved; the builtin front is at runtime.front."""
    fleet = host.fleet
    for name, service in fleet.services.items():
        port = service.port if service.port is not None else fleet.ports.get(name)
        if port is None and service.builtin == "front":
            port = fleet.runtime.front.port
        if port is None:
            message = f"no port: write one here, or an entry {name} in ports"
            findings.append(fault("plan/dangling-reference", f"services.{name}.port", message))
        start = starts(fleet, service.tier)
        yield ServicePlan(name=name, port=port or 0, config=service, starts=start, on=host.name)


def start_order(
    servers: Sequence[ServerPlan], serial_from_bytes: int, cooldown_s: float = 0
) -> tuple[tuple[ServerPlan, ...], list[Finding]]:
    """Servers after those that they wait for, else as listed; cycles become findings.

    Models of at least `serial_from_bytes` that are up after start load one at a time: each waits for the last, and
    `cooldown_s` more.
    """
    names, findings = topological({s.name: s.after for s in servers})
    by_name = {s.name: s for s in servers}
    ordered: list[ServerPlan] = []
    big: str | None = None
    for name in names:
        server = by_name[name]
        if server.initial and server.model.file_bytes >= serial_from_bytes:
            if big:
                after = tuple(dict.fromkeys((*server.after, big)))
                server = msgspec.structs.replace(server, after=after, cooldown_s=cooldown_s)
            big = name
        ordered.append(server)
    return tuple(ordered), findings


def topological(after: Mapping[str, Sequence[str]]) -> tuple[list[str], list[Finding]]:
    """Names ordered so that each comes after those it refers to; unknown names and cycles become findings.

    A cycle is broken at its first name as listed, so that there is always an order.
    """
    findings = [
        fault("plan/start-unknown", f"servers.{name}.after", f"no server {other}")
        for name, others in after.items()
        for other in others
        if other not in after
    ]
    order: list[str] = []
    waiting = {name: {o for o in others if o in after} for name, others in after.items()}
    position = {name: place for place, name in enumerate(after)}
    behind: defaultdict[str, list[str]] = defaultdict(list)
    for name, others in waiting.items():
        for other in others:
            behind[other].append(name)
    free = [place for name, place in position.items() if not waiting[name]]
    names = list(after)
    while waiting:
        if free:
            ready = names[heappop(free)]
        else:
            ready = next(iter(waiting))
            cycle = ", ".join(sorted(waiting))
            message = f"these wait for one another: {cycle}"
            findings.append(fault("plan/start-cycle", f"servers.{ready}.after", message))
        del waiting[ready]
        for name in behind[ready]:
            if name in waiting and ready in waiting[name]:
                waiting[name].discard(ready)
                if not waiting[name]:
                    heappush(free, position[name])
        order.append(ready)
    return order, findings
