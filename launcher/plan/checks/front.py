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
