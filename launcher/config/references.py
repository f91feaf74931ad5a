"""Names that must lead somewhere: one function a rule, all of them in `CHECKS`. Pure.

Each check takes the decoded config and yields findings that speak in config keys. A new rule is one function
and its place in the tuple. What they say of values that are wrong already is passed over (`composing`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import get_args

import msgspec

from launcher.base.addresses import is_path
from launcher.config.contradictions import CONTRADICTIONS, conflict, exactly_one
from launcher.config.names import (
    addressable,
    callable_names,
    check_duplicate_names,
    check_hosts,
    check_names,
    check_paths,
    check_upstreams,
    check_variables,
    dangling,
)
from launcher.config.nearest import did_you_mean, listing, spell
from launcher.errors import Finding, Fix, fault
from launcher.ir.config import FleetConfig, OrchestrationConfig, OwnKvType, RungConfig, ServerConfig

KV_TYPES: tuple[str, ...] = get_args(OwnKvType)
"""K/V types that every build has."""

Check = Callable[[FleetConfig], Iterable[Finding]]


def check_servers(fleet: FleetConfig) -> Iterator[Finding]:
    """Servers of include_warm are in the fleet (their files may say another name); models, tiers, engines are there.

    Every server's and draft's model has a file in the quantization asked for, and that of every file is known.
    """
    yield from _members("include_warm", fleet.include_warm, "server", set(fleet.servers))
    for name, server in fleet.servers.items():
        yield from _model_file(fleet, f"servers.{name}", server.model, server.quantization)
        if server.draft is not None and server.draft.file is not None:
            yield from _model_file(fleet, f"servers.{name}.draft", *server.draft.file)
    for name, model in fleet.models.items():
        for quantization in model.files:
            key = f"models.{name}.files.{quantization}"
            yield from _named(key, quantization, "quantization", fleet.quantizations, fixes=())
    for collection, entries in (("servers", fleet.servers), ("services", fleet.services)):
        for name, entry in entries.items():
            yield from _named(f"{collection}.{name}.tier", entry.tier, "tier", fleet.tiers)
    for name, server in fleet.servers.items():
        yield from _named(f"servers.{name}.engine", server.engine, "engine", fleet.engines)


def _model_file(fleet: FleetConfig, key: str, model_name: str, quantization: str) -> Iterator[Finding]:
    model = fleet.models.get(model_name)
    yield from _named(f"{key}.model", model_name, "model", fleet.models)
    if quantization not in fleet.quantizations:
        names = model.files if model is not None and model.files else fleet.quantizations
        yield dangling(f"{key}.quantization", quantization, "quantization", names)
    elif model is not None and quantization not in model.files:
        fixes = tuple(
            Fix(override=f"{key}.quantization={spell(q)}", effect=f"the file {model.files[q].path}")
            for q in sorted(model.files)[:2]
        )
        yield fault(
            "config/dangling",
            f"{key}.quantization",
            f"{key}.quantization is {quantization!r}, and the model {model_name!r} has no such file",
            f"files of {model_name}: " + (", ".join(sorted(model.files)) or "none"),
            fixes=fixes,
        )


def check_cache_types(fleet: FleetConfig) -> Iterator[Finding]:
    """Every K/V type is llama.cpp's, or one that the server's engine names."""
    named = {name: frozenset(engine.cache_types) for name, engine in fleet.engines.items()}
    for name, server in fleet.servers.items():
        yield from cache_types(f"servers.{name}", server, named.get(server.engine, frozenset()), server.engine)
    if fleet.orchestration is None:
        return
    for i, rung in enumerate(fleet.orchestration.oom_ladder):
        workers = (rung.server,) if rung.server else fleet.orchestration.workers
        engines = sorted({fleet.servers[w].engine for w in workers if w in fleet.servers})
        every = frozenset.intersection(*(named.get(e, frozenset()) for e in engines)) if engines else frozenset()
        yield from cache_types(f"orchestration.oom_ladder.{i}", rung, every, ", ".join(engines))


def cache_types(
    key: str, entry: ServerConfig | RungConfig, named: Collection[str], engine: str = ""
) -> Iterator[Finding]:
    """A `config/choice` error for each K/V type of a server, its draft or a rung that is neither known nor `named`."""
    written = [(key, entry.cache_type_k, entry.cache_type_v)]
    if isinstance(entry, ServerConfig) and entry.draft is not None:
        written.append((f"{key}.draft", entry.draft.cache_type_k, entry.draft.cache_type_v))
    for at, *kinds in written:
        for field, kind in zip(("cache_type_k", "cache_type_v"), kinds, strict=True):
            if kind is None or kind in KV_TYPES or kind in named:
                continue
            known = (*KV_TYPES, *named)
            own = f"one that only a fork has is named by its engine: engines.{engine or 'NAME'}.cache_types.{kind}="
            yield fault(
                "config/choice",
                f"{at}.{field}",
                f"{at}.{field} is the string {kind!r}, not one of {', '.join(known)}",
                listing("choices", known),
                f"{own}{{block: VALUES, block_bytes: BYTES}}",
                fixes=did_you_mean(f"{at}.{field}", kind, known),
            )


def check_devices(fleet: FleetConfig) -> Iterator[Finding]:
    """Every device of a server is a GPU of the hardware; of several hosts, of its own."""
    for name, server in fleet.servers.items():
        gpus = fleet.gpus(server.host)
        yield from _members(f"servers.{name}.devices", server.devices, "GPU", set(gpus))
        drafting = (server.draft.devices or ()) if server.draft else ()
        yield from _members(f"servers.{name}.draft.devices", drafting, "GPU", set(gpus))
    for collection, entries in (("services", fleet.services), ("upstreams", fleet.upstreams)):
        for name, entry in entries.items():
            gpus = fleet.gpus(getattr(entry, "host", fleet.runtime.front.host))
            for device in entry.vram_bytes:
                yield from _named(f"{collection}.{name}.vram_bytes.{device}", device, "GPU", gpus, fixes=())


def check_start_order(fleet: FleetConfig) -> Iterator[Finding]:
    """Servers start after servers that exist, and never after themselves; services start with them, not before."""
    there = set(fleet.servers)
    for name, server in fleet.servers.items():
        yield from _members(f"servers.{name}.after", server.after, "server", there)
    graph = {name: [n for n in server.after if n in fleet.servers] for name, server in fleet.servers.items()}
    for cycle in cycles(graph):
        key = f"servers.{cycle[0]}.after"
        yield _cycle(key, cycle, "start after one another", f"{key}=[]")


def check_routing(fleet: FleetConfig) -> Iterator[Finding]:
    """Pools, fallbacks, escalations, timeouts and the default name servers, roles or aliases that exist.

    A rule *for* a name that does not exist is only dead, so it is a warning. Escalation always reaches a stronger role,
    so its chain has an end. Fallback may be mutual (the architects stand in for one another): the runtime tries no
    server twice for one request, so a cycle there ends by itself and is not looked for.
    """
    names, routing, chain = callable_names(fleet), fleet.routing, "routing.escalation.chain"
    yield from _named("routing.default", routing.default, "server", names)
    for key, group in (("defaults", routing.defaults), ("media", routing.media)):
        for field, name in msgspec.structs.asdict(group).items():
            yield from _named(f"routing.{key}.{field}", name, "server", names)
    for pool, config in routing.pools.items():
        yield from _members(f"routing.pools.{pool}.servers", config.servers, "server", names)
    for name, targets in routing.fallback.items():
        yield from _members(f"routing.fallback.{name}", targets, "server", names)
    for name, target in routing.escalation.chain.items():
        drop = Fix(override=f"~{chain}.{name}", effect="drops the rule")
        yield from _named(f"{chain}.{name}", target, "server", names, fixes=(drop,))
    yield from _keys("routing.fallback", routing.fallback, names)
    yield from _keys(chain, routing.escalation.chain, names)
    yield from _keys("routing.timeouts_s", routing.timeouts_s, names)
    yield from _keys("routing.n_ctx_min", routing.n_ctx_min, names)
    yield from _keys("routing.slots_max", routing.slots_max, names)
    for cycle in cycles({name: [target] for name, target in routing.escalation.chain.items()}):
        key = f"{chain}.{cycle[0]}"
        yield _cycle(key, cycle, "escalate to one another", f"~{key}")


def check_orchestration(fleet: FleetConfig) -> Iterator[Finding]:
    """The router, the validator, the workers and everything said about them exist."""
    orchestration = fleet.orchestration
    if orchestration is None:
        return
    names = addressable(fleet)
    for key, name in _named_servers(orchestration):
        yield from _named(key, name, "server", names)
    for i, pattern in enumerate(orchestration.warm_pool.patterns if orchestration.warm_pool else ()):
        yield from _members(f"orchestration.warm_pool.patterns.{i}", pattern, "server", names, removable=False)
    for i, rung in enumerate(orchestration.oom_ladder):
        key = f"orchestration.oom_ladder.{i}.quantization"
        yield from _named(key, rung.quantization, "quantization", fleet.quantizations)
    yield from _members("orchestration.workers", orchestration.workers, "server", names)
    yield from _keys("orchestration.model_policies", orchestration.model_policies, names)
    yield from _keys("orchestration.prompts", orchestration.prompts, names)


def check_domains(fleet: FleetConfig) -> Iterator[Finding]:
    """A rule without a model is for a task type of a pool; the warm pool's predictions name domains and workers.

    A domain is what policies, rules and the task types of pools name (`launcher.orchestrate.settings`).
    """
    orchestration = fleet.orchestration
    if orchestration is None:
        return
    task_types = {task_type for pool in fleet.routing.pools.values() for task_type in pool.task_types}
    for i, rule in enumerate(orchestration.rules):
        if rule.model is None:
            yield from _named(f"orchestration.rules.{i}.domain", rule.domain, "task type", task_types)
    pool, workers = orchestration.warm_pool, _meant(fleet, orchestration.workers)
    if pool is None or not workers:
        return
    domains = {*task_types, *orchestration.policies, *(rule.domain for rule in orchestration.rules)}
    yield from _keys("orchestration.warm_pool.predict", pool.predict, domains, kind="domain")
    expected = [(f"predict.{domain}", server) for domain, server in pool.predict.items()]
    for i, pattern in enumerate(pool.patterns):
        expected += [(f"patterns.{i}.{pattern.index(name)}", name) for name in dict.fromkeys(pattern)]
    names = addressable(fleet)
    for key, name in expected:
        if name in names and name not in workers:
            yield _no_worker(f"orchestration.warm_pool.{key}", name, workers)


def _no_worker(key: str, name: str, workers: set[str]) -> Finding:
    """The finding for a server unknown to the warm pool, or for a role: the warm pool takes servers only."""
    return fault(
        "config/dangling",
        key,
        f"{key} is {name!r}, which is no server of orchestration.workers: the warm pool never expects it",
        listing("workers", workers),
        severity="warning",
    )


def _meant(fleet: FleetConfig, written: Iterable[str]) -> set[str]:
    names = set(written)
    return {name for name, server in fleet.servers.items() if names & {name, *server.roles, *server.aliases}}


def _named_servers(orchestration: OrchestrationConfig) -> Iterator[tuple[str, str | None]]:
    yield "orchestration.router", orchestration.router
    if orchestration.validation is not None:
        yield "orchestration.validation.validator", orchestration.validation.validator
    for domain, server in (orchestration.warm_pool.predict if orchestration.warm_pool else {}).items():
        yield f"orchestration.warm_pool.predict.{domain}", server
    for i, rung in enumerate(orchestration.oom_ladder):
        yield f"orchestration.oom_ladder.{i}.server", rung.server
    for i, rule in enumerate(orchestration.rules):
        yield f"orchestration.rules.{i}.model", rule.model


def check_hooks(fleet: FleetConfig) -> Iterator[Finding]:
    """A hook does one thing, and posts to a server that exists."""
    names = addressable(fleet)
    for name, hook in fleet.hooks.items():
        key = f"hooks.{name}"
        given = [f for f in ("http", "command", "python") if getattr(hook, f)]
        if len(given) != 1:
            yield exactly_one(key, ("http", "command", "python"), given)
        if not hook.http or not hook.enabled:
            continue
        server, slash, path = hook.http.partition("/")
        if server not in names:
            yield dangling(f"{key}.http", server, "server", names, fixes=_respelled_hook(key, server, path, names))
        elif not slash:
            yield fault(
                "config/type",
                f"{key}.http",
                f"{key}.http is {hook.http!r}, and must be `server/path`",
                f"for example {server}/embedding",
            )


def _respelled_hook(key: str, server: str, path: str, names: Iterable[str]) -> tuple[Fix, ...]:
    """The hook with the nearest server, or without it."""
    near = dangling(f"{key}.http", server, "server", names).fixes
    respelled = tuple(Fix(override=f"{fix.override}/{path}", effect=fix.effect) for fix in near)
    return respelled or (Fix(override=f"{key}.enabled=false", effect="skips the hook"),)


def check_cluster(fleet: FleetConfig) -> Iterator[Finding]:
    """Hosts and engines in cluster settings must exist: others would be ignored."""
    hosts, engines = set(fleet.hardware.hosts), set(fleet.engines)
    if fleet.deploy.slurm is not None:
        yield from _keys("deploy.slurm.constraints", fleet.deploy.slurm.constraints, hosts, kind="host")
    if fleet.deploy.kubernetes is not None:
        yield from _keys("deploy.kubernetes.nodes", fleet.deploy.kubernetes.nodes, hosts, kind="host")
        yield from _keys("deploy.kubernetes.images", fleet.deploy.kubernetes.images, engines, kind="engine")


def check_ports(fleet: FleetConfig) -> Iterator[Finding]:
    """Every server and service has a port, its own or in `ports`; not the built-in front, and who has a unix socket."""
    used = {*fleet.ports.values(), fleet.runtime.front.port}
    for collection, entries in (("servers", fleet.servers), ("services", fleet.services)):
        for name, entry in entries.items():
            if is_path(entry.host) and collection == "servers":
                if entry.port is not None:
                    yield conflict(
                        f"{collection}.{name}.port",
                        f"{collection}.{name} listens on the unix socket {entry.host}, and has port {entry.port}",
                        "a server listens on one of both",
                        Fix(override=f"{collection}.{name}.port=null", effect="keeps the unix socket"),
                        Fix(override=f"{collection}.{name}.host=127.0.0.1", effect="keeps the port"),
                    )
                continue
            if entry.port is not None or name in fleet.ports or getattr(entry, "builtin", None):
                continue
            port = next((p for p in range(max(used) + 1, 65536) if p not in used), 0)
            used.add(port)
            yield fault(
                "config/missing",
                f"{collection}.{name}.port",
                f"{collection}.{name} has no port: neither {collection}.{name}.port nor ports.{name}",
                "give each server its own port",
                fixes=(Fix(override=f"+ports.{name}={port}", effect="a port nothing else uses"),) if port else (),
            )


def _named(
    key: str, name: str | None, kind: str, names: Collection[str], *, fixes: tuple[Fix, ...] | None = None
) -> Iterator[Finding]:
    """A name at `key` that leads nowhere; None names nothing."""
    if name is not None and name not in names:
        yield dangling(key, name, kind, names, fixes=fixes)


def _members(
    key: str, members: tuple[str, ...], kind: str, names: set[str], *, removable: bool = True
) -> Iterator[Finding]:
    """Members of a list that do not exist; the fix is the list with the nearest name, or without them."""
    for i, member in enumerate(members):
        for found in _named(f"{key}.{i}", member, kind, names):
            rest = [m for m in members if m in names]
            remove = Fix(override=f"{key}={spell(rest)}", effect=f"leaves {member} out")
            without = found.fixes or not removable
            yield found if without else msgspec.structs.replace(found, fixes=(remove,))


def _keys(key: str, table: Iterable[str], names: set[str], *, kind: str = "server") -> Iterator[Finding]:
    """Rules for names that do not exist: warnings."""
    for name in table:
        if name not in names:
            fix = Fix(override=f"~{key}.{name}", effect="drops the rule")
            yield dangling(f"{key}.{name}", name, kind, names, fixes=(fix,), severity="warning")


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Each cycle once, starting at its first name by the graph's order."""
    found: list[list[str]] = []
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        path = [start]
        stack = [iter(graph[start])]
        while stack:
            for target in stack[-1]:
                if target in path:
                    found.append(path[path.index(target) :])
                elif target in graph and target not in done:
                    path.append(target)
                    stack.append(iter(graph[target]))
                    break
            else:
                stack.pop()
                done.add(path.pop())
    return found


def _cycle(key: str, cycle: list[str], what: str, broken: str) -> Finding:
    fix = Fix(override=broken, effect="breaks the cycle there")
    circle = f"{key}: these {what}: " + " → ".join([*cycle, cycle[0]])
    return fault("config/cycle", key, circle, "one of them must be the last", fixes=(fix,))


CHECKS: tuple[Check, ...] = (
    check_names,
    check_variables,
    check_duplicate_names,
    check_servers,
    check_cache_types,
    check_devices,
    check_hosts,
    check_upstreams,
    check_paths,
    check_start_order,
    check_routing,
    check_orchestration,
    check_domains,
    check_hooks,
    check_cluster,
    check_ports,
    *CONTRADICTIONS,
)
"""Every rule, in the order its findings are reported."""
