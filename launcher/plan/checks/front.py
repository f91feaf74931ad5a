"""Checks of the front and its orchestration: names, timeouts, targets. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from math import ceil, floor

import msgspec

from launcher.base.addresses import is_loopback
from launcher.errors import Finding, Fix, Severity, fault
from launcher.ir.config import FleetConfig, OrchestrationConfig
from launcher.ir.measured import ServerSpeed
from launcher.ir.plan import ServerPlan
from launcher.plan.checks.planning import Planning, set_fields
from launcher.plan.hosts import LOOPBACK, is_private
from launcher.plan.speed import expected, states_rates, touched
from launcher.sizes import gib

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/*\s]+|(?!https?:)[a-z][a-z0-9+.-]*://\*")

_PLAIN = re.compile(r"[A-Za-z0-9_,-]+")
"""Comma-separated names that need no quotes in an override."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def check_front(planning: Planning) -> Iterator[Finding]:
    """`route/public-without-key`: the front would refuse to open; said before anything is started.

    `route/origin-too-wide`: an entry of `allowed_origins` that admits every page, or means nothing.
    """
    front = planning.fleet.runtime.front
    near = [host for host in front.listen if is_private(host.strip("[]"))]
    public = {"runtime.front.listen": [host for host in front.listen if host not in near]}
    public["runtime.front.host"] = [] if is_loopback(front.host.strip("[]")) else [front.host]
    less = {"runtime.front.listen": f"[{','.join(near)}]", "runtime.front.host": LOOPBACK}
    for key, hosts in public.items():
        if hosts and front.api_key_file is None:
            message = f"the front would listen on {' and '.join(hosts)}, beyond this machine, without an API key"
            notes = ("set runtime.front.api_key_file to a file with one key a line, or listen on 127.0.0.1",)
            either = (
                Fix(override=f"{key}={less[key]}", effect="only this machine reaches it"),
                Fix(override="runtime.front.api_key_file=/etc/launch/keys", effect="a file with one key a line"),
            )
            yield fault("route/public-without-key", key, message, *notes, fixes=either)
    for i, origin in enumerate(front.allowed_origins):
        if origin == "null" or _ORIGIN.fullmatch(origin.lower()):
            continue
        left = ",".join(f"'{o}'" for o in front.allowed_origins if o != origin)
        message = f"{origin!r} names no page: any site that somebody visits, or none, could use the front"
        notes = ("SCHEME://HOST[:PORT], any page of an app (`vscode-webview://*`), or null",)
        fixes = (Fix(override=f"runtime.front.allowed_origins=[{left}]", effect="without it"),)
        yield fault("route/origin-too-wide", f"runtime.front.allowed_origins.{i}", message, *notes, fixes=fixes)


def check_default_kinds(planning: Planning) -> Iterator[Finding]:
    """`plan/default-kind`: a server named in `routing.defaults` or `routing.media` cannot do that."""
    routing = planning.fleet.routing
    for group, entries in (("defaults", routing.defaults), ("media", routing.media)):
        for kind, name in msgspec.structs.asdict(entries).items():
            named = _meant(planning, name)
            if not named or any(_does(s, kind) for s in named):
                continue
            able = [s.name for s in planning.servers if _does(s, kind)]
            key = f"routing.{group}.{kind}"
            message = f"{name} is to answer requests for {kind}, and its server does not do that"
            notes = (f"{'these do' if able else 'no server of the fleet does'}: {', '.join(able)}".rstrip(": "),)
            fixes = tuple(Fix(override=f"{key}={able_one}", effect="") for able_one in (*able[:2], "null"))
            yield fault("plan/default-kind", key, message, *notes, fixes=fixes)


def check_included(planning: Planning) -> Iterator[Finding]:
    """`plan/no-task`: no task of the pools, nor anything else, leads to a server started by `include_warm`."""
    routing, parts = planning.fleet.routing, planning.fleet.orchestration
    pools = {name: pool for name, pool in routing.pools.items() if pool.task_types}
    if not pools:
        return
    named = {routing.default, *msgspec.structs.astuple(routing.defaults), *msgspec.structs.astuple(routing.media)}
    named |= {name for pool in routing.pools.values() for name in pool.servers}
    named |= {*routing.escalation.chain.values(), *(name for names in routing.fallback.values() for name in names)}
    if parts is not None:
        validator = {parts.validation.validator} if parts.validation is not None else set()
        named |= {parts.router, *parts.workers, *(rule.model for rule in parts.rules)} | validator
    for i, name in enumerate(planning.fleet.include_warm):
        server = next((s for s in planning.servers if s.name == name and not _does(s, "embedding")), None)
        if server is None or named & {*server.names}:
            continue
        words = {word for known in (name, *server.config.roles) for word in known.split("_")}
        pool = next((pool for pool in pools if pool in words), next(iter(pools)))
        joined = ",".join((name, *pools[pool].servers))
        message = f"{name} is started, and no task leads to it: it is in no pool, and answers who asks for it by name"
        fix = Fix(override=f"routing.pools.{pool}.servers=[{joined}]", effect=f"it takes {pool}'s tasks first")
        fixes = (fix,) if _PLAIN.fullmatch(f"{pool}{joined}") else ()
        yield fault("plan/no-task", f"include_warm.{i}", message, fixes=fixes, severity="warning")


def _does(server: ServerPlan, kind: str) -> bool:
    """Whether a server answers requests of a kind, or with a medium."""
    ranks = server.pooling == "rank"
    if kind == "embedding":
        return server.settings.embedding and not ranks
    if kind == "rerank":
        return ranks
    if kind == "infill":
        return not server.settings.embedding and not ranks
    return kind in server.modalities


def check_orchestration(planning: Planning) -> Iterator[Finding]:
    """`plan/no-workers`, `plan/same-server`: roles of the orchestration that are unfilled or filled twice.

    `plan/no-validator`, `plan/block-tokens`, `plan/warm-pool-too-small`: whether what passes between them fits.
    """
    orchestration = planning.fleet.orchestration
    if orchestration is not None:
        yield from _workers(planning, orchestration)
        yield from _validation(planning, orchestration)
        yield from _pool_size(planning, orchestration)


def _workers(planning: Planning, orchestration: OrchestrationConfig) -> Iterator[Finding]:
    """`plan/no-workers`: there is none to recommend. `plan/same-server`: the router or validator is a worker too."""
    key = "orchestration.workers"
    if not orchestration.workers:
        message = "the router has no worker to recommend: `model: auto` is answered without asking it"
        yield fault("plan/no-workers", key, message, severity="warning")
    parts: dict[str, tuple[Severity, str, str]] = {
        orchestration.router: ("note", "router", "while its slots write answers, it sorts no request")
    }
    if orchestration.validation is not None:
        parts[orchestration.validation.validator] = ("warning", "validator", "it would judge what it wrote itself")
    players = {server.name: part for name, part in parts.items() if (server := _first(planning, name)) is not None}
    meant = {worker: server.name for worker in orchestration.workers if (server := _first(planning, worker))}
    left = [worker for worker in orchestration.workers if meant.get(worker) not in players]
    spelled = left and all(_NAME.fullmatch(worker) for worker in left)
    fixes = (Fix(override=f"{key}=[{','.join(left)}]", effect="workers that are nothing else"),) if spelled else ()
    for i, worker in enumerate(orchestration.workers):
        if (name := meant.get(worker)) in players:
            severity, part, why = players[name]
            message = f"{name} is the {part} and a worker: {why}"
            yield fault("plan/same-server", f"{key}.{i}", message, fixes=fixes, severity=severity)


def _validation(planning: Planning, orchestration: OrchestrationConfig) -> Iterator[Finding]:
    """`plan/no-validator`: a policy without a validator. `plan/block-tokens`: a block larger than any slot."""
    validation = orchestration.validation
    if validation is None:
        for key, policy in _policies(orchestration):
            if policy not in (None, "none"):
                message = f"{key} is {policy}, and nothing is validated: there is no orchestration.validation"
                yield fault("plan/no-validator", key, message, severity="warning")
        return
    named = (*orchestration.workers, validation.validator)
    players = [server for name in named if (server := _first(planning, name)) is not None]
    if players:
        smallest = min(players, key=lambda server: server.settings.n_ctx_per_slot)
        slot = smallest.settings.n_ctx_per_slot
        if validation.block_tokens >= slot:
            key = "orchestration.validation.block_tokens"
            message = (
                f"a block may have {validation.block_tokens} tokens, and a slot of {smallest.name} has {slot} "
                "for the request and the block: blocks are cut shorter"
            )
            fixes = (Fix(override=f"{key}={slot // 4}", effect="leaves room for the request"),)
            yield fault("plan/block-tokens", key, message, fixes=fixes, severity="warning")


def _pool_size(planning: Planning, orchestration: OrchestrationConfig) -> Iterator[Finding]:
    """`plan/warm-pool-too-small`: the warm pool is smaller than every worker's file."""
    pool = orchestration.warm_pool
    if pool is None or not pool.ram_bytes or not pool.models_max:
        return
    workers = [server for name in orchestration.workers for server in _meant(planning, name)]
    smallest = min(workers, key=lambda server: server.model.file_bytes, default=None)
    size = smallest.model.file_bytes if smallest else 0
    if smallest and pool.ram_bytes < size:
        message = (
            f"the warm pool has {gib(pool.ram_bytes)}, and no worker's file fits: {smallest.name}, "
            f"the smallest, has {gib(size)}"
        )
        fixes = (Fix(override=f"orchestration.warm_pool.ram_bytes={size}", effect=f"holds {smallest.name}"),)
        yield fault(
            "plan/warm-pool-too-small", "orchestration.warm_pool.ram_bytes", message, fixes=fixes, severity="warning"
        )


def _meant(planning: Planning, name: str | None) -> list[ServerPlan]:
    """Servers that `name` stands for: the one so called first, then those of the role or alias."""
    return sorted((s for s in planning.servers if name in s.names), key=lambda server: server.name != name)


def _first(planning: Planning, name: str) -> ServerPlan | None:
    return next(iter(_meant(planning, name)), None)


def _policies(orchestration: OrchestrationConfig) -> Iterator[tuple[str, str | None]]:
    for table in ("policies", "model_policies"):
        for name, policy in getattr(orchestration, table).items():
            yield f"orchestration.{table}.{name}", policy
    for i, rule in enumerate(orchestration.rules):
        yield f"orchestration.rules.{i}.policy", rule.policy


def check_starts(planning: Planning) -> Iterator[Finding]:
    """`plan/timeout-order`, `plan/start-too-short`: a start times out before it counts as stalled, or is read."""
    for server in planning.running:
        stall, start = server.config.stall_timeout_s, server.start_timeout_s
        if stall > start > 0:
            message = (
                f"a start is called stalled after {stall:g} s without progress, but it is given up after {start:g} s"
            )
            fixes = (set_fields(server, stall_timeout_s=f"{start:g}"),)
            yield fault("plan/timeout-order", f"{server.key}.stall_timeout_s", message, fixes=fixes, severity="warning")
        load_s = server.load_s
        if load_s is not None and load_s > start:
            size = server.model.file_bytes
            speed = gib(int(size / load_s))
            message = f"{gib(size)} are read in {load_s:.0f} s at {speed} a second, the start is late after {start:g} s"
            longer = (
                set_fields(server, start_timeout_s=f"{2 * load_s + 60:.0f}"),
                set_fields(server, "derives it from the size", start_timeout_s="null"),
            )
            yield fault(
                "plan/start-too-short", f"{server.key}.start_timeout_s", message, fixes=longer, severity="warning"
            )


def check_timeouts(planning: Planning) -> Iterator[Finding]:
    """`plan/timeout-order`: an inner timeout that cannot fire before the outer one.

    A request that starts a server waits for the start, too; connecting must time out before the answer does, and the
    orchestration's wait for its router before the router's own request timeout.
    """
    routing, orchestration = planning.fleet.routing, planning.fleet.orchestration
    connect = planning.fleet.runtime.front.connect_timeout_s
    answers: list[tuple[float, str]] = []
    for server in planning.running:
        key, answer = _answer_timeout(routing.timeouts_s, server)
        answers.append((answer, server.name))
        start = server.start_timeout_s
        if not server.initial and answer < start:
            message = (
                f"{server.name} is started by a request, which is given up after {answer:g} s, "
                f"but its start may take {start:g} s: the first caller may get an error while the server still loads"
            )
            fixes = (Fix(override=f"{key}={start:g}", effect="the first caller waits for the start"),)
            yield fault("plan/timeout-order", key, message, fixes=fixes, severity="note")
    shortest, slowest = min(answers, default=(connect + 1, ""))
    if connect >= shortest:
        message = f"connecting may take {connect:g} s, but a request to {slowest} is given up after {shortest:g} s"
        yield fault("plan/timeout-order", "runtime.front.connect_timeout_s", message, severity="warning")
    for server in planning.servers:
        if orchestration is not None and server.name == orchestration.router:
            given, outer = orchestration.router_timeout_s, server.config.request_timeout_s
            outer = routing.timeouts_s.get(server.name, outer)
            if given >= outer:
                message = f"the router is given {given:g} s, its server answers within {outer:g} s"
                yield fault("plan/timeout-order", "orchestration.router_timeout_s", message, severity="warning")


def _answer_timeout(given: Mapping[str, float], server: ServerPlan) -> tuple[str, float]:
    """The shortest timeout of a request to `server`, and its config key."""
    named = {f"routing.timeouts_s.{n}": given[n] for n in (server.name, *server.config.roles) if n in given}
    own = {f"{server.key}.request_timeout_s": server.config.request_timeout_s}
    return min((named or own).items(), key=lambda item: item[1])


OUT_OF_REACH = "plan/target-out-of-reach"


def check_targets(planning: Planning) -> Iterator[Finding]:
    """`plan/target-out-of-reach`: by the rates in the hardware file a speed or a swap misses its target."""
    fleet = planning.fleet
    wanted = [s for s in planning.running if fleet.wanted(s.name, "tokens_per_second_min") and not s.settings.embedding]
    if wanted and states_rates(fleet.hardware):
        found = (expected(s, touched(s), fleet.hardware, (), "") for s in wanted)
        yield from too_slow(fleet, (speed for speed in found if speed is not None))
    if fleet.orchestration is not None and fleet.orchestration.swap_target_s is not None:
        yield from _slow_swaps(planning, fleet.orchestration, fleet.orchestration.swap_target_s)


def too_slow(fleet: FleetConfig, speeds: Iterable[ServerSpeed]) -> Iterator[Finding]:
    """Servers whose expected speed, at its highest, is below their target."""
    for speed in speeds:
        wanted, most = fleet.wanted(speed.server, "tokens_per_second_min"), speed.decode[1]
        if wanted is None or most >= wanted:
            continue
        own = fleet.servers[speed.server].tokens_per_second_min is not None
        key = f"servers.{speed.server}.tokens_per_second_min"
        low, short = floor(most * 10) / 10, 1 - most / wanted
        yield fault(
            OUT_OF_REACH,
            key if own else "orchestration.tokens_per_second_min",
            f"{speed.server} should make {wanted:g} tokens/s, at most {most:.1f} are expected: {short:.0%} short",
            f"{speed.source}: {speed.basis}",
            fixes=(Fix(override=f"{key}={low:g}", effect="what is expected at best"),),
            severity="warning",
        )


def _slow_swaps(planning: Planning, orchestration: OrchestrationConfig, target: float) -> Iterator[Finding]:
    """Members of exclusive groups whose files take longer to read from disk than a swap should.

    Where the warm pool has room for the files, a swap reads RAM.
    """
    pool = orchestration.warm_pool
    late = [
        s
        for s in planning.running
        if s.config.exclusive
        and (s.load_s or 0) > target
        and not (pool and pool.models_max and not 0 < pool.ram_bytes < s.model.file_bytes)
    ]
    if not late:
        return
    slowest = max(late, key=lambda s: s.load_s or 0)
    took = slowest.load_s or 0
    message = (
        f"a swap should take {target:g} s at most, {slowest.name} is read for {took:.1f} s and no warm pool keeps it: "
        f"{took - target:.1f} s too long"
    )
    notes = tuple(f"{s.name} is read for {s.load_s:.1f} s" for s in late if s is not slowest)
    fixes = (Fix(override=f"orchestration.swap_target_s={ceil(took)}", effect="what reading takes"),)
    yield fault(OUT_OF_REACH, "orchestration.swap_target_s", message, *notes, fixes=fixes, severity="warning")


CHECKS = (check_front, check_included, check_targets)
WHOLE = (check_default_kinds, check_orchestration, check_starts, check_timeouts)
