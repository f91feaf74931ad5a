"""`FleetPlan` → `RoutingTable`: every name a request may use → servers. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from launcher.ir.config import Start
from launcher.ir.fleet import BreakerUnit, FaceUnit, FrontUnit, RoutePool, RouteTarget, RoutingTable
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render.names import all_names, resolve
from launcher.render.outside import outside_targets
from launcher.render.server_keys import own_key_file

START_RANK: dict[Start, int] = {"boot": 0, "demand": 1, "never": 2}
"""Resident servers are preferred to those that must be started."""


def routing_table(plan: FleetPlan) -> RoutingTable:
    """The routing table of `plan`.

    Values of pools, fallback and escalation become server names (what this plan does not run is left out, and a
    server is no fallback of itself); their keys stay as written, to be looked up by the name that was asked for.
    Of one host's plan the front asks its own servers and, where it is the fleet's, those of the other hosts.
    """
    everyone = (*plan.servers, *plan.remote)
    routing = plan.config.routing
    others = outside_targets(plan)
    names = {name: resolve(name, everyone, START_RANK) for name in all_names(everyone)}
    names |= {name: (unit.name,) for unit in others for name in (unit.name, *unit.aliases, *unit.faces)}
    escalation = {source: _servers((target,), names) for source, target in routing.escalation.chain.items()}
    return RoutingTable(
        deployment=plan.deployment,
        front=_front(plan),
        targets={server.name: _target(server, plan) for server in everyone} | {unit.name: unit for unit in others},
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
        breaker=msgspec.convert(routing.breaker, BreakerUnit, from_attributes=True),
        timeouts_s=dict(routing.timeouts_s),
        defaults=_by_kind(plan, names),
        media={
            medium: name
            for medium, name in msgspec.structs.asdict(routing.media).items()
            if name is not None and name in names
        },
        unknown_model=routing.unknown_model,
        orchestration=plan.config.orchestration,
    )


def _target(server: ServerPlan, plan: FleetPlan) -> RouteTarget:
    """One upstream. Who runs on another host is started there, so that from here it is up, or does not answer."""
    remote = server.on != plan.on
    return RouteTarget(
        name=server.name,
        host=server.config.host,
        port=server.port,
        slots=server.settings.slots,
        n_ctx_per_slot=server.settings.n_ctx_per_slot,
        model=server.config.model,
        roles=server.config.roles,
        aliases=server.config.aliases,
        start="boot" if remote else server.starts,
        exclusive=None if remote else server.config.exclusive,
        request_timeout_s=server.config.request_timeout_s,
        total_timeout_s=server.config.total_timeout_s,
        request_defaults=server.config.request_defaults,
        embedding=server.settings.embedding or server.pooling == "rank",
        modalities=server.modalities,
        request_set=server.config.request_set,
        request_strip=server.config.request_strip,
        api_key_file=own_key_file(server.config.extra_args),
        rungs=0 if remote else len(plan.ladders.get(server.name, ())),
        on=server.on if remote else "",
        n_ctx_shared=server.settings.n_ctx if server.settings.kv_unified and server.settings.slots > 1 else 0,
        faces=msgspec.convert(server.config.faces, dict[str, FaceUnit], from_attributes=True),
        n_ctx_train=server.model.architecture.n_ctx_train,
        n_params=server.model.n_params,
        size_bytes=server.model.tensor_bytes,
        id=server.config.id or "",
    )


def here_target(target: RouteTarget, server: ServerPlan) -> RouteTarget:
    """`target` for a front that starts `server` itself, on whatever host; there is no smaller way to run it."""
    return msgspec.structs.replace(target, start=server.starts, exclusive=server.config.exclusive, rungs=0, on="")


def _front(plan: FleetPlan) -> FrontUnit:
    """The front's socket and limits; a service that is our own front settles the port."""
    front = msgspec.convert(plan.config.runtime.front, FrontUnit, from_attributes=True)
    ports = [service.port for service in plan.services if service.config.builtin == "front"]
    return msgspec.structs.replace(front, port=ports[-1]) if ports else front


def _default(plan: FleetPlan, names: dict[str, tuple[str, ...]]) -> str | None:
    """What answers when a request names none: as written (replicas by their name), else the only one for text."""
    written = plan.config.routing.default
    if written is not None:
        servers = names.get(written, ())
        return written if len(servers) > 1 else next(iter(servers), None)
    completing = [s.name for s in (*plan.servers, *plan.remote) if not s.settings.embedding and s.pooling != "rank"]
    if not completing and len(plan.config.upstreams) == 1:
        return next(iter(plan.config.upstreams))
    return completing[0] if len(completing) == 1 else None


def _by_kind(plan: FleetPlan, names: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Who answers each kind of request that names no model: as written, else the first that does it, resident first."""
    servers = sorted((*plan.servers, *plan.remote), key=lambda s: START_RANK[s.starts])
    able = {
        "embedding": [s.name for s in servers if s.settings.embedding and s.pooling != "rank"],
        "rerank": [s.name for s in servers if s.pooling == "rank"],
        "audio": [s.name for s in servers if "audio" in s.modalities],
        "infill": [],
    }
    written = msgspec.structs.asdict(plan.config.routing.defaults)
    found = {kind: written[kind] if written[kind] in names else next(iter(able[kind]), None) for kind in able}
    return {kind: name for kind, name in found.items() if name is not None}


def _pools(plan: FleetPlan, names: dict[str, tuple[str, ...]]) -> tuple[RoutePool, ...]:
    """Pools with the servers that this plan runs; empty ones are left out.

    A pool expands at the lowest threshold above 0 among its servers' tiers.
    """
    tier_of = {server.name: plan.config.tiers[server.tier] for server in (*plan.servers, *plan.remote)}
    tier_of |= {s.name: plan.config.tiers[s.config.tier] for s in plan.services if s.config.tier in plan.config.tiers}
    pools: list[RoutePool] = []
    for name, pool in plan.config.routing.pools.items():
        servers = _servers(pool.servers, names)
        thresholds = [t for s in servers if s in tier_of and (t := tier_of[s].expansion_threshold) > 0]
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
