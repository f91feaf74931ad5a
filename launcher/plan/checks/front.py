"""The one port that clients talk to. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from launcher.errors import Finding, Fix
from launcher.ir.plan import ServerPlan
from launcher.plan.checks.planning import Planning, finding
from launcher.plan.hosts import LOOPBACK, is_loopback, is_private

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/*\s]+|(?!https?:)[a-z][a-z0-9+.-]*://\*")

_PLAIN = re.compile(r"[A-Za-z0-9_,-]+")
"""Names that an override takes without quotes."""


def check_front(planning: Planning) -> Iterator[Finding]:
    """`route/public-without-key`: what the front itself refuses when it opens, said before anything is started."""
    front = planning.fleet.runtime.front
    near = [host for host in front.listen if is_private(host.strip("[]"))]
    public = {"runtime.front.listen": [host for host in front.listen if host not in near]}
    public["runtime.front.host"] = [] if is_loopback(front.host.strip("[]")) else [front.host]
    less = {"runtime.front.listen": f"[{','.join(near)}]", "runtime.front.host": LOOPBACK}
    for key, hosts in public.items():
        if hosts and front.api_key_file is None:
            yield finding(
                "error",
                "route/public-without-key",
                key,
                f"the front would listen on {' and '.join(hosts)}, beyond this machine, without an API key",
                notes=("set runtime.front.api_key_file to a file with one key a line, or listen on 127.0.0.1",),
                fixes=(
                    Fix(override=f"{key}={less[key]}", effect="only this machine reaches it"),
                    Fix(override="runtime.front.api_key_file=/etc/launch/keys", effect="a file with one key a line"),
                ),
            )


def check_origins(planning: Planning) -> Iterator[Finding]:
    """`route/origin-too-wide`: an entry of `allowed_origins` that lets the whole web in, or means nothing."""
    front = planning.fleet.runtime.front
    for i, origin in enumerate(front.allowed_origins):
        if origin == "null" or _ORIGIN.fullmatch(origin.lower()):
            continue
        left = ",".join(f"'{o}'" for o in front.allowed_origins if o != origin)
        yield finding(
            "error",
            "route/origin-too-wide",
            f"runtime.front.allowed_origins.{i}",
            f"{origin!r} names no page: any site that somebody visits, or none, could use the front",
            notes=("SCHEME://HOST[:PORT], any page of an app (`vscode-webview://*`), or null",),
            fixes=(Fix(override=f"runtime.front.allowed_origins=[{left}]", effect="without it"),),
        )


def check_default_kinds(planning: Planning) -> Iterator[Finding]:
    """`plan/default-kind`: whom `routing.defaults` or `routing.media` names cannot do what they are named for."""
    routing = planning.fleet.routing
    for group, entries in (("defaults", routing.defaults), ("media", routing.media)):
        for kind, name in msgspec.structs.asdict(entries).items():
            named = [s for s in planning.servers if name in (s.name, *s.config.roles, *s.config.aliases)]
            if not named or any(_does(s, kind) for s in named):
                continue
            able = [s.name for s in planning.servers if _does(s, kind)]
            key = f"routing.{group}.{kind}"
            yield finding(
                "error",
                "plan/default-kind",
                key,
                f"{name} is to answer requests for {kind}, and its server does not do that",
                notes=(f"{'these do' if able else 'no server of the fleet does'}: {', '.join(able)}".rstrip(": "),),
                fixes=tuple(Fix(override=f"{key}={able_one}", effect="") for able_one in (*able[:2], "null")),
            )


def check_included(planning: Planning) -> Iterator[Finding]:
    """`plan/no-task`: `include_warm` starts a server to which no task of the pools leads, and nothing else either."""
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
        if server is None or named & {name, *server.config.roles, *server.config.aliases}:
            continue
        words = {word for known in (name, *server.config.roles) for word in known.split("_")}
        pool = next((pool for pool in pools if pool in words), next(iter(pools)))
        joined = ",".join((name, *pools[pool].servers))
        message = f"{name} is started, and no task leads to it: it is in no pool, and answers who asks for it by name"
        fix = Fix(override=f"routing.pools.{pool}.servers=[{joined}]", effect=f"it takes {pool}'s tasks first")
        fixes = (fix,) if _PLAIN.fullmatch(f"{pool}{joined}") else ()
        yield finding("warning", "plan/no-task", f"include_warm.{i}", message, fixes=fixes)


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
