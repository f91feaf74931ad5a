"""`FleetPlan` → `RoutingTable`: every name a request may use → servers, and outside targets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from launcher.base.addresses import address_text
from launcher.ir.config import Start, UpstreamConfig
from launcher.ir.fleet import BreakerUnit, FaceUnit, FrontUnit, OutsideUnit, RoutePool, RouteTarget, RoutingTable
from launcher.ir.plan import START_RANK, FleetPlan, ServerPlan, ServicePlan
from launcher.render.passed import own_key_file


def resolve(
    name: str,
    servers: Sequence[ServerPlan],
    ranks: Mapping[Start, int] | None = None,
    speeds: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """Servers meant by `name`, best first: the server so named, then by role, by alias, by model.

    Within each, those with the lower rank (`ranks` by when they start: resident before on demand), then those that are
    expected to generate faster (`speeds` in tokens a second, where all of them are known), then plan order.
    """
    meant: list[tuple[int, ServerPlan]] = []
    for server in servers:
        kind = next((i for i, names in enumerate(_claims(server)) if name in names), None)
        if kind is not None:
            meant.append((kind, server))
    known = speeds if speeds and all(server.name in speeds for _, server in meant) else {}
    meant.sort(key=lambda one: (one[0], (ranks or {}).get(one[1].starts, 0), -known.get(one[1].name, 0.0)))
    return tuple(server.name for _, server in meant)


def _claims(server: ServerPlan) -> tuple[tuple[str, ...], ...]:
    """Names by which requests reach a server, the most direct first."""
    config = server.config
    return (server.name,), config.roles, (*config.aliases, *config.faces), (server.model.entry, config.model)


_V1 = "/v1"
_PORTS = {"http": 80, "https": 443}


def outside_targets(plan: FleetPlan) -> tuple[RouteTarget, ...]:
    """Upstreams, then services; those of a tier that never starts have no target."""
    services = (s for s in plan.services if s.config.models and s.starts != "never")
    upstreams = plan.config.upstreams.items()
    return (*(_upstream(name, config) for name, config in upstreams), *(_service(service) for service in services))


def _upstream(name: str, config: UpstreamConfig) -> RouteTarget:
    """A target that somebody else runs: from here it is up, or does not answer."""
    parts = urlsplit(config.url)
    base = parts.path.rstrip("/") or _V1
    return _outside(
        *(name, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0), config.models),
        model=config.description,
        aliases=config.aliases,
        slots=config.slots,
        n_ctx_per_slot=config.n_ctx,
        modalities=config.modalities,
        request_timeout_s=config.request_timeout_s,
        total_timeout_s=config.total_timeout_s,
        request_defaults=config.request_defaults,
        request_set=config.request_set,
        request_strip=config.request_strip,
        api_key_file=config.key_file,
        outside=OutsideUnit(
            url=config.url,
            health_path=config.health_path or f"{base}/models",
            key_header=config.key_header,
            ca_file=config.ca_file,
        ),
    )


def _service(service: ServicePlan) -> RouteTarget:
    """A target of this fleet: started, stopped and supervised as servers are."""
    config = service.config
    url = f"http://{address_text(config.host, service.port)}{_V1}"
    return _outside(
        *(service.name, config.host, service.port, config.models),
        model=config.model or config.description,
        aliases=(),
        slots=config.slots,
        n_ctx_per_slot=0,
        modalities=config.modalities,
        request_timeout_s=config.request_timeout_s,
        request_defaults={},
        start=service.starts,
        exclusive=config.exclusive,
        outside=OutsideUnit(url=url, health_path=config.health_path, supervised=True),
    )


def _outside(name: str, host: str, port: int, models: Mapping[str, str], **fields: Any) -> RouteTarget:
    """A target whose models are faces; the one of its name, else the first, answers to every other name."""
    own = {"model": models.get(name, next(iter(models.values()), name))}
    faces = {asked: FaceUnit(request_set={"model": theirs}) for asked, theirs in models.items() if asked != name}
    fields = {"roles": (), "start": "boot", "exclusive": None, "embedding": False} | fields
    fields["request_set"] = own | fields.get("request_set", {})
    return RouteTarget(name=name, host=host, port=port, faces=faces, **fields)


def routing_table(plan: FleetPlan) -> RoutingTable:
    """The routing table of `plan`.

    Values of pools, fallback and escalation become server names (what this plan does not run is left out, and a
    server is no fallback of itself); their keys stay as written, to be looked up by the name that was asked for.
    Of one host's plan the front asks its own servers and, where it is the fleet's, those of the other hosts.
    """
    everyone = (*plan.servers, *plan.remote)
    routing = plan.config.routing
    others = outside_targets(plan)
    speeds = {speed.server: speed.decode[0] for speed in plan.speeds}
    called = {name for server in everyone for names in _claims(server) for name in names}
    names = {name: resolve(name, everyone, START_RANK, speeds) for name in sorted(called)}
    names |= {name: (unit.name,) for unit in others for name in (unit.name, *unit.aliases, *unit.faces)}
    front = msgspec.convert(plan.config.runtime.front, FrontUnit, from_attributes=True)
    for port in (service.port for service in plan.services if service.config.builtin == "front"):
        front = msgspec.structs.replace(front, port=port)  # a service that is our own front settles it
    escalation = {source: _servers((target,), names) for source, target in routing.escalation.chain.items()}
    return RoutingTable(
        deployment=plan.deployment,
        front=front,
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
    """One upstream. One on another host is started there, so that from here it is up, or does not answer."""
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


def _default(plan: FleetPlan, names: dict[str, tuple[str, ...]]) -> str | None:
    """The server for requests that name none: as written (replicas by their name), else the only one for text."""
    written = plan.config.routing.default
    if written is not None:
        servers = names.get(written, ())
        return written if len(servers) > 1 else next(iter(servers), None)
    completing = [s.name for s in (*plan.servers, *plan.remote) if not s.settings.embedding and s.pooling != "rank"]
    if not completing and len(plan.config.upstreams) == 1:
        return next(iter(plan.config.upstreams))
    return completing[0] if len(completing) == 1 else None


def _by_kind(plan: FleetPlan, names: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The server for each kind of request that names no model: as written, else the first able one, resident first."""
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
    return tuple(dict.fromkeys(server for name in written for server in names.get(name, ())))
