"""`FleetPlan` → `RoutingTable`: every name a request may use → servers. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from launcher.ir.fleet import BreakerUnit, FrontUnit, RoutePool, RouteTarget, RoutingTable
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render.names import all_names, resolve
from launcher.render.server_keys import own_key_file

START_RANK = {"boot": 0, "demand": 1, "never": 2}
"""Resident servers are preferred to those that must be started."""


def routing_table(plan: FleetPlan) -> RoutingTable:
    """The routing table of `plan`.

    Values of pools, fallback and escalation become server names (what this plan does not run is left out, and a
    server is no fallback of itself); their keys stay as written, to be looked up by the name that was asked for.
    Of one host's plan the front asks its own servers and, where it is the fleet's, those of the other hosts.
    """
    everyone = (*plan.servers, *plan.remote)
    routing = plan.config.routing
    orchestration = plan.config.orchestration
    names = {name: resolve(name, everyone, _ranks(plan)) for name in all_names(everyone)}
    escalation = {source: _servers((target,), names) for source, target in routing.escalation.chain.items()}
    return RoutingTable(
        deployment=plan.deployment,
        input_digest=plan.input_digest,
        front=_front(plan),
        targets={server.name: _target(server, plan) for server in everyone},
        names=names,
        default=_default(plan, names),
        pools=_pools(plan, names),
        fallback={
            source: kept
            for source, targets in routing.fallback.items()
            if source in names and (kept := tuple(t for t in _servers(targets, names) if t != names[source][0]))
        },
        escalation={
            source: targets[0]
            for source, targets in escalation.items()
            if source in names and targets and targets[0] != names[source][0]
        },
        max_retries=routing.escalation.max_retries,
        max_escalations=routing.escalation.max_escalations,
        breaker=BreakerUnit(
            failures=routing.breaker.failures,
            open_s=routing.breaker.open_s,
            open_max_s=routing.breaker.open_max_s,
        ),
        timeouts_s=dict(routing.timeouts_s),
        orchestration=msgspec.to_builtins(orchestration) if orchestration is not None else None,
    )


def _ranks(plan: FleetPlan) -> dict[str, int]:
    """Tier → how late its servers are preferred."""
    return {name: START_RANK[tier.start] for name, tier in plan.tiers.items()}


def _target(server: ServerPlan, plan: FleetPlan) -> RouteTarget:
    """One upstream. Who runs on another host is started there, so that from here it is up, or does not answer."""
    remote = server.on != plan.on
    return RouteTarget(
        name=server.name,
        host=server.host,
        port=server.port,
        slots=server.slots,
        n_ctx_per_slot=server.n_ctx_per_slot,
        model=server.model,
        roles=server.roles,
        aliases=server.aliases,
        start="boot" if remote else plan.tiers[server.tier].start,
        exclusive=None if remote else server.exclusive,
        request_timeout_s=server.request_timeout_s,
        request_defaults=server.request_defaults,
        embedding=server.embedding or server.pooling == "rank",
        modalities=("text", "image") if server.projector_path else ("text",),
        request_set=server.request_set,
        request_strip=server.request_strip,
        api_key_file=own_key_file(server.extra_args),
        rungs=0 if remote else len(plan.ladders.get(server.name, ())),
        on=server.on if remote else "",
    )


def _front(plan: FleetPlan) -> FrontUnit:
    """The front's socket and limits; a service that is our own front settles the port."""
    front: dict[str, Any] = {name: getattr(plan.config.runtime.front, name) for name in FrontUnit.__struct_fields__}
    for service in plan.services:
        if service.config.builtin == "front":
            front["port"] = service.port
    return FrontUnit(**front)


def _default(plan: FleetPlan, names: dict[str, tuple[str, ...]]) -> str | None:
    """What answers when a request names none: as written (replicas by their name), else the only one for text."""
    written = plan.config.routing.default
    if written is not None:
        servers = names.get(written, ())
        return written if len(servers) > 1 else next(iter(servers), None)
    completing = [s.name for s in (*plan.servers, *plan.remote) if not s.embedding and s.pooling != "rank"]
    return completing[0] if len(completing) == 1 else None


def _pools(plan: FleetPlan, names: dict[str, tuple[str, ...]]) -> tuple[RoutePool, ...]:
    """Pools with the servers that this plan runs; empty ones are left out.

    A pool expands at the lowest threshold above 0 among its servers' tiers.
    """
    tier_of = {server.name: plan.tiers[server.tier] for server in (*plan.servers, *plan.remote)}
    pools: list[RoutePool] = []
    for name, pool in plan.config.routing.pools.items():
        servers = _servers(pool.servers, names)
        thresholds = [t for s in servers if (t := tier_of[s].expansion_threshold) > 0]
        if servers:
            pools.append(
                RoutePool(
                    name=name,
                    servers=servers,
                    task_types=pool.task_types,
                    expansion_threshold=min(thresholds, default=0),
                )
            )
    return tuple(pools)


def _servers(written: Iterable[str], names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Server names meant by names as written, each once, in order."""
    return tuple(dict.fromkeys(server for name in written for server in names.get(name, ())))
