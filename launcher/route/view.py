"""What is derived from one routing table; requests in flight keep theirs across a reload. Pure."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from launcher.base.addresses import is_path
from launcher.ir.exchange import Orchestrating
from launcher.ir.fleet import RoutePool, RoutingTable
from launcher.route.directory import Directory
from launcher.route.endpoint import Kind
from launcher.route.guard import Guard
from launcher.route.media import MEDIA, TEXT
from launcher.route.target import Target
from launcher.route.upstream import Connection


class Route(msgspec.Struct, frozen=True):
    """The servers that a name leads to."""

    name: str
    tiers: tuple[tuple[Target, ...], ...]
    """Its own servers, then those of its fallbacks, nearest first."""
    timeouts_s: dict[str, float]
    """Per server: longest silence, in seconds, for requests by this name."""
    grows_above: int = 0
    """Requests in flight above which another server of its pool is started; 0: never."""
    is_validated: bool = False
    """Its answers are validated by an orchestrator."""
    has_replicas: bool = False
    """Its first tier has several servers."""
    lacks: frozenset[str] = frozenset()
    """Media that no server of its first tier accepts."""
    stronger: tuple[str, ...] = ()
    """Names that may answer, in turn, what its servers refuse."""
    only_target: Target | None = None
    """The only server of its first tier, if it is this fleet's; None: there is a choice to make."""


class View(msgspec.Struct, frozen=True):
    """A routing table, and what is derived from it."""

    table: RoutingTable
    directory: Directory
    guard: Guard
    targets: dict[str, Target]
    routes: dict[str, Route]
    orchestrated: frozenset[str] = frozenset()
    """Names that an orchestrator answers (`auto`)."""

    def route(self, model: str | None, kind: Kind | None = None) -> Route:
        """The route for `model`; for None the default of its `kind`. Raises HttpError."""
        return self.routes[self.directory.asked(model, kind)]


def _is_where(one: str, other: str) -> bool:
    """Whether both addresses are on one host, as far as they tell: a unix socket is on the front's own."""
    return one == other or is_path(one) or is_path(other)


def view_of(
    table: RoutingTable,
    old: dict[str, Target],
    orchestrator: Orchestrating | None,
    check: Callable[[Target, Connection], Awaitable[None]],
) -> View:
    """The view of `table`; servers on the same host keep connections, counts, breakers and waiters.

    `check` raises UpstreamError where a fresh connection does not lead to the expected server. Raises ConfigError or
    HostError for a table that cannot be served safely.
    """
    directory = Directory(table)
    guard = Guard(table.front)
    targets: dict[str, Target] = {}
    for name, unit in table.targets.items():
        known = old.get(name)
        if known is not None and _is_where(known.unit.host, unit.host) and known.unit.outside == unit.outside:
            known.update(unit)
            targets[name] = known
        else:
            made = targets[name] = Target(unit)
            if unit.outside is None:
                made.pool.check = functools.partial(check, made)
    names = directory.names()
    validated = orchestrator.validated() if orchestrator is not None else frozenset()
    auto = frozenset(orchestrator.names()) - frozenset(names) if orchestrator is not None else frozenset()
    routes = {
        name: _route(
            name,
            directory,
            targets,
            above=grows_above(table.pools, directory.tiers(name)[0]),
            validated=name in validated,
            stronger=table.stronger(name),
        )
        for name in names
    }
    for target in targets.values():
        sharing = {
            t.name: t.gate for r in routes.values() if target in r.tiers[0] for t in r.tiers[0] if t is not target
        }
        target.gate.siblings = tuple(sharing.values())
    return View(table, directory, guard, targets, routes, auto)


def _route(
    name: str,
    directory: Directory,
    targets: dict[str, Target],
    *,
    above: int,
    validated: bool,
    stronger: tuple[str, ...],
) -> Route:
    tiers = tuple(tuple(targets[server] for server in tier) for tier in directory.tiers(name))
    timeouts_s = {t.name: directory.timeout_s(name, t.unit) for tier in tiers for t in tier}
    lacks = MEDIA.difference(*(target.unit.modalities for target in tiers[0]))
    lacks |= {TEXT} if tiers[0] and all(target.unit.embedding for target in tiers[0]) else set()
    sole = tiers[0][0] if len(tiers[0]) == 1 and tiers[0][0].outside is None else None
    return Route(name, tiers, timeouts_s, above, validated, len(tiers[0]) > 1, lacks, stronger, sole)


def grows_above(pools: Iterable[RoutePool], servers: tuple[str, ...]) -> int:
    """The expansion threshold of the pool that has all of `servers`; 0: none."""
    for pool in pools:
        if len(servers) > 1 and pool.expansion_threshold > 0 and set(pool.servers).issuperset(servers):
            return pool.expansion_threshold
    return 0
