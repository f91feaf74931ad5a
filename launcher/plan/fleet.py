"""From config and catalogue to the fleet's plan: the room's table of contents. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from launcher.errors import Finding
from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig
from launcher.ir.plan import FleetPlan, Residency, ServerPlan, ServicePlan, Solved
from launcher.ir.proof import Proved
from launcher.plan.checks import CHECKS, WHOLE, Planning
from launcher.plan.devices import device_plans, elect, others_on, totals
from launcher.plan.hosts import Host, check_hosts, placed, split, told_by, without_foreign
from launcher.plan.ladder import ladders
from launcher.plan.memory import WeightTables
from launcher.plan.order import start_order
from launcher.plan.peers import check_peers, with_shares
from launcher.plan.server import plan_server, with_proof
from launcher.plan.sharing import share
from launcher.plan.solve import solve
from launcher.plan.speed import speeds
from launcher.plan.together import residency, steady
from launcher.plan.waivers import sort_findings


def plan_fleet(
    fleet: FleetConfig,
    catalog: Catalog,
    *,
    deployment: str,
    input_digest: str,
    checks: Iterable[Callable[[Planning], Iterator[Finding]]] = CHECKS,
    proved: Mapping[str, Proved] | None = None,
) -> FleetPlan:
    """The whole decision. Always returns; everything found, errors too, is in `findings`, sorted.

    `proved`: servers whose own binary was asked what they take; their plan is the larger of bound and proof. What is
    left open is chosen by the bound alone, so that a proof never changes what it is about.
    """
    findings: list[Finding] = []
    tables = WeightTables()
    hosts, solved = _solved(split(fleet), catalog, tables)
    planned = [_planned(host, fleet, catalog, tables, findings, proved=proved or {}) for host in hosts]
    everyone = [server for servers in planned for server in servers]
    parts = [
        _part(host, catalog, tables, servers, with_shares(_services(host, findings), everyone), solved=solved)
        for host, servers in zip(hosts, planned, strict=True)
    ]
    whole = parts[0] if len(parts) == 1 else _together(fleet, catalog, tables, parts)
    checks = tuple(checks)
    for host, part in zip(hosts, parts, strict=True):
        own = checks if part is whole else (check for check in checks if check not in WHOLE)
        findings += (told_by(finding, host) for check in own for finding in check(part))
    if len(parts) > 1:
        findings += (finding for check in checks if check in WHOLE for finding in check(whole))
    findings += (*check_hosts(fleet), *check_peers(fleet))
    plan = FleetPlan(
        deployment=deployment,
        input_digest=input_digest,
        config=fleet,
        devices=whole.devices,
        servers=whole.servers,
        services=whole.services,
        totals=whole.totals,
        findings=sort_findings(findings),
        solved=solved,
        residency=tuple(table for part in parts if (table := _residency(part)) is not None),
        ladders={w: rungs for host in hosts for w, rungs in ladders(host.fleet, catalog, tables).items()},
    )
    return msgspec.structs.replace(plan, speeds=speeds(plan, (), {}))


def _solved(
    hosts: Iterable[Host], catalog: Catalog, tables: WeightTables
) -> tuple[tuple[Host, ...], tuple[Solved, ...]]:
    """`hosts` with everything chosen that they leave open."""
    found = [(host, *solve(host.fleet, catalog, tables)) for host in hosts]
    chosen = tuple(
        host if fleet is host.fleet else msgspec.structs.replace(host, fleet=fleet) for host, fleet, _ in found
    )
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
    """One host's servers, in the order of their starts."""
    planned = (placed(with_proof(s, proved), host) for s in _servers(host.fleet, catalog, findings, tables))
    servers, foreign = without_foreign(share(elect(tuple(planned))), fleet.servers)
    servers, cycles = start_order(servers, fleet.runtime.parallel_start_below_bytes, fleet.runtime.cooldown_s)
    findings += (*foreign, *cycles)
    return servers


def _part(
    host: Host,
    catalog: Catalog,
    tables: WeightTables,
    servers: tuple[ServerPlan, ...],
    services: tuple[ServicePlan, ...],
    *,
    solved: tuple[Solved, ...],
) -> Planning:
    """One host's servers and services, planned alone."""
    return Planning(
        fleet=host.fleet,
        catalog=catalog,
        servers=servers,
        services=services,
        devices=device_plans(host.fleet, servers, services, host=host.name),
        totals=totals(servers, services),
        tables=tables,
        solved=solved,
        front=host.front,
    )


def _residency(part: Planning) -> Residency | None:
    """Who of one host may be up at once."""
    always = [s for s in part.services if steady(s)]
    standing = {d.name: sum(size for _, size in others_on(d.name, part.fleet, always)) for d in part.devices}
    return residency(part.servers, part.services, part.devices, standing=standing, pooled=part.fleet.hardware.pooled)


def _together(fleet: FleetConfig, catalog: Catalog, tables: WeightTables, parts: Sequence[Planning]) -> Planning:
    """Several hosts as one, for what concerns all of them."""
    servers = tuple(s for part in parts for s in part.servers)
    services = tuple(s for part in parts for s in part.services)
    return Planning(
        fleet=fleet,
        catalog=catalog,
        servers=servers,
        services=services,
        devices=tuple(d for part in parts for d in part.devices),
        totals=totals(servers, services),
        tables=tables,
    )


def _servers(
    fleet: FleetConfig, catalog: Catalog, findings: list[Finding], tables: WeightTables
) -> Iterator[ServerPlan]:
    """Every server whose references resolve."""
    for name, config in fleet.servers.items():
        planned, found = plan_server(fleet, catalog, name, config, tables)
        findings += found
        if planned is not None:
            yield planned


def _services(host: Host, findings: list[Finding]) -> Iterator[ServicePlan]:
    """Services with their ports settled; our own front is where runtime.front says."""
    fleet = host.fleet
    for name, service in fleet.services.items():
        port = service.port if service.port is not None else fleet.ports.get(name)
        if port is None and service.builtin == "front":
            port = fleet.runtime.front.port
        if port is None:
            message = f"no port: write one here, or an entry {name} in ports"
            findings.append(
                Finding(code="plan/dangling-reference", severity="error", key=f"services.{name}.port", message=message)
            )
        tier = fleet.tiers.get(service.tier)
        starts = tier.start if tier else "boot"
        yield ServicePlan(name=name, port=port or 0, config=service, starts=starts, on=host.name)
