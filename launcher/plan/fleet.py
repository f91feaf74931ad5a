"""From config and catalogue to the fleet's plan: the room's table of contents. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from launcher.errors import Finding
from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig
from launcher.ir.plan import FleetPlan, ServicePlan
from launcher.plan.checks import CHECKS, Planning
from launcher.plan.devices import device_plans, elect, totals
from launcher.plan.memory import WeightTables
from launcher.plan.order import start_order
from launcher.plan.server import Planned, plan_server
from launcher.plan.sharing import share
from launcher.plan.waivers import sort_findings


def plan_fleet(
    fleet: FleetConfig,
    catalog: Catalog,
    *,
    deployment: str,
    input_digest: str,
    checks: Iterable[Callable[[Planning], Iterator[Finding]]] = CHECKS,
) -> FleetPlan:
    """The whole decision. Always returns; everything found, errors too, is in `findings`, sorted."""
    findings: list[Finding] = []
    tables = WeightTables()
    servers = share(elect(tuple(_servers(fleet, catalog, findings, tables))))
    servers, cycles = start_order(servers, fleet.runtime.parallel_start_below_bytes)
    services = tuple(_services(fleet, findings))
    planning = Planning(
        fleet=fleet,
        catalog=catalog,
        servers=servers,
        services=services,
        devices=device_plans(fleet, servers, services),
        totals=totals(fleet, servers, services),
        tables=tables,
    )
    findings += cycles
    findings += (finding for check in checks for finding in check(planning))
    return FleetPlan(
        deployment=deployment,
        input_digest=input_digest,
        config=fleet,
        tiers=fleet.tiers,
        devices=planning.devices,
        servers=tuple(s.plan for s in servers),
        services=services,
        totals=planning.totals,
        findings=sort_findings(findings),
    )


def _servers(fleet: FleetConfig, catalog: Catalog, findings: list[Finding], tables: WeightTables) -> Iterator[Planned]:
    """Every server whose references resolve."""
    for name, config in fleet.servers.items():
        planned, found = plan_server(fleet, catalog, name, config, tables)
        findings += found
        if planned is not None:
            yield planned


def _services(fleet: FleetConfig, findings: list[Finding]) -> Iterator[ServicePlan]:
    """Services with their ports settled; our own front is where runtime.front says."""
    for name, service in fleet.services.items():
        port = service.port if service.port is not None else fleet.ports.get(name)
        if port is None and service.builtin == "front":
            port = fleet.runtime.front.port
        if port is None:
            message = f"no port: write one here, or an entry {name} in ports"
            findings.append(
                Finding(code="plan/dangling-reference", severity="error", key=f"services.{name}.port", message=message)
            )
        yield ServicePlan(name=name, port=port or 0, config=service)
