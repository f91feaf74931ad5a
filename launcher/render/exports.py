"""The plan in other programs' formats: llama-swap, llama.cpp's router, Prometheus, Grafana. Pure.

One template below `templates/exports/` each; values are JSON text where YAML or JSON is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from launcher.base.addresses import is_path
from launcher.base.names import control_character
from launcher.errors import Finding, fault
from launcher.ir.config import ExportName
from launcher.ir.dialect import Dialect
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render.command import Command, Engines
from launcher.render.extra import known, walk
from launcher.render.fleet_manifest import targets_of
from launcher.render.quoting import shell_lines
from launcher.render.units import reachable_url

_ROUTERS_OWN = ("--host", "--port", "--alias")
"""Options that the router sets for its children (tools/server/server-models.cpp)."""

_PANELS = (
    ("Requests a second", "reqps", "sum by (server) (rate(launch_requests_total{%s}[1m]))", "{{server}}"),
    ("Slots taken", "short", "launch_requests_in_flight{%s}", "{{server}}"),
    ("Requests that wait", "short", "launch_requests_queued{%s}", "{{server}}"),
    ("Generated tokens a second", "short", "rate(launch_generated_tokens_total{%s}[1m])", "{{server}}"),
    ("Prompt tokens a second", "short", "rate(launch_prompt_tokens_total{%s}[1m])", "{{server}}"),
    ("Refused a second", "reqps", "sum by (code) (rate(launch_requests_refused_total{%s}[1m]))", "{{code}}"),
    ("Tokens a second of the last answer", "short", "inference_tokens_per_second{%s}", "{{model}}"),
    (
        "Swaps: 95 of 100 within",
        "s",
        "histogram_quantile(0.95, sum by (source, le) (rate(model_swap_duration_seconds_bucket{%s}[5m])))",
        "{{source}}",
    ),
    ("Starts that failed", "short", "model_load_failures_total{%s}", "{{model}}"),
    ("RAM in use", "bytes", "ram_used_bytes{%s}", "RAM"),
    ("Targets: met (1) or missed (0)", "short", "launch_target_met{%s}", "{{target}} {{server}}"),
)


Values = tuple[dict[str, Any], list[Finding]]
"""What a template needs, and `render/left-out`, a warning for what the format cannot describe."""


class Export(NamedTuple):
    """A file below `exports/`; its template has the same name with `.j2`."""

    file: str
    values: Callable[[FleetPlan, Mapping[str, Command], Engines], Values]


def _llama_swap(plan: FleetPlan, commands: Mapping[str, Command], _: Engines) -> Values:
    """Models by name, with a group for each exclusive group and one for what stays loaded."""
    servers, findings = [], []
    for server in _started(plan):
        command = commands[server.name]
        findings += _requests_lost("llama_swap", server)
        shell = " ".join(shell_lines(command.argv))
        why = "llama-swap asks for a URL, and it listens on a unix socket" if is_path(server.config.host) else ""
        why = "llama-swap would take ${ for a macro" if "${" in shell + _filters(server) else why
        if why:
            findings.append(_left_out("llama_swap", server, why))
            continue
        servers.append((server, command, shell))
    kept = [server for server, _, _ in servers]
    groups: dict[str, list[ServerPlan]] = {}
    for server in kept:
        groups.setdefault(server.config.exclusive or f"tier-{server.tier}", []).append(server)
    values = {
        "timeout_s": max([math.ceil(s.start_timeout_s) for s in kept], default=60),
        "servers": [
            {
                "name": _json(server.name),
                "shell": _json(shell),
                "url": _json(reachable_url(server.config.host, server.port)),
                "env": _json([f"{k}={v}" for k, v in command.env.items()]) if command.env else "",
                "aliases": _json(aliases) if (aliases := _aliases(server, kept)) else "",
                "filters": _filters(server),
                "idle_s": math.ceil(plan.config.tiers[server.tier].idle_timeout_s),
            }
            for server, command, shell in servers
        ],
        "groups": [
            {
                "name": _json(name),
                "swap": _json(members[0].config.exclusive is not None),
                "persistent": _json(members[0].config.exclusive is None and members[0].starts == "boot"),
                "members": _json([s.name for s in members]),
            }
            for name, members in groups.items()
        ],
        "preload": _json(booted) if (booted := [s.name for s in kept if s.initial]) else "",
    }
    return values, findings


def _router(plan: FleetPlan, commands: Mapping[str, Command], engines: Engines) -> Values:
    """One section per server; options are its flags without dashes."""
    servers, findings = [], []
    for server in _started(plan):
        findings += _requests_lost("router", server)
        options = _options(commands[server.name].words[1:], engines[server.config.engine][1])
        if isinstance(options, str):
            findings.append(_left_out("router", server, options))
            continue
        servers.append({"section": server.name, "options": options, "boot": server.initial})
    return {"servers": servers, "models_max": max(len(servers), 1)}, findings


def _options(words: tuple[str, ...], dialect: Dialect) -> list[tuple[str, str]] | str:
    """Flags with their values as keys of an INI section, or why that cannot be written."""
    options: dict[str, str] = {}
    for _, word, _, values in walk(words, known(dialect).flags):
        if word in _ROUTERS_OWN:
            continue
        text = " ".join(values) if values else "true"
        key = word.lstrip("-")
        if key in options:
            return f"{word} is given twice"
        if len(values) > 1 or not text or text != text.strip() or {*";#"} & {*text} or control_character(text):
            return f"no INI line can carry the value of {word}"
        options[key] = text
    return list(options.items())


def _scrape(target: ExportName, plan: FleetPlan) -> Values:
    """Addresses of the front, if it is here, and of servers that run from boot; with the front all hosts'.

    Alerts and the dashboard select by the labels: the metrics have none of their own.
    """
    front = plan.config.runtime.front
    booted = [server for server in (*plan.servers, *plan.remote) if server.initial]
    unasked = [server for server in booted if is_path(server.config.host)]
    why = "Prometheus asks an address, and it listens on a unix socket; the front's own figures have it"
    values = {
        "name": _json(plan.deployment),
        "front": _json(reachable_url(front.host, front.port).removeprefix("http://")) if plan.front else "",
        "key_file": _json(front.api_key_file) if front.api_key_file else "",
        "targets": bool(targets_of(plan)),
        "scraped": [
            {
                "name": _json(server.name),
                "tier": _json(server.tier),
                "address": _json(reachable_url(server.config.host, server.port).removeprefix("http://")),
                "start_s": math.ceil(server.start_timeout_s),
            }
            for server in booted
            if server not in unasked
        ],
    }
    return values, [_left_out(target, server, why) for server in unasked]


def _grafana(plan: FleetPlan, _: Mapping[str, Command], __: Engines) -> Values:
    label = f"deployment={_json(plan.deployment)}"
    panels = [
        {"title": _json(title), "unit": _json(unit), "expr": _json(expr % label), "legend": _json(legend)}
        for title, unit, expr, legend in _PANELS
    ]
    uid = re.sub(r"[^A-Za-z0-9_-]", "-", f"launch-{plan.deployment}")[:40]
    values = {"title": _json(f"launch {plan.deployment}"), "uid": _json(uid)}
    return {**values, "panels": panels}, []


def _started(plan: FleetPlan) -> list[ServerPlan]:
    return [s for s in plan.servers if s.starts != "never"]


def _aliases(server: ServerPlan, servers: list[ServerPlan]) -> list[str]:
    """The server's other names that nobody else has: llama-swap knows no replicas."""
    others = (o for o in servers if o is not server)
    taken = {server.name, *(name for o in others for name in (o.name, *o.config.roles, *o.config.aliases))}
    return [name for name in dict.fromkeys((*server.config.roles, *server.config.aliases)) if name not in taken]


def _json(value: Any) -> str:
    """`value` as JSON text, which is YAML, too."""
    return msgspec.json.encode(value).decode()


def _requests_lost(target: ExportName, server: ServerPlan) -> list[Finding]:
    """Warnings for request changes that the target cannot make: `setParams` would overrule a client."""
    config = server.config
    lost: dict[str, tuple[Iterable[str], str]] = {
        "request_defaults": (config.request_defaults or (), "clients must send them"),
        "faces": (config.faces, "they are asked as nothing there"),
    }
    if target != "llama_swap":
        lost["request_set"] = (config.request_set, "clients must send them")
        lost["request_strip"] = (config.request_strip, "clients must leave them out")
    return [
        fault(
            "render/left-out",
            f"servers.{server.name}.{field}",
            f"{EXPORTS[target].file} leaves out {field} of {server.name} ({', '.join(names)}): {why}",
            severity="warning",
        )
        for field, (names, why) in lost.items()
        if names
    ]


def _filters(server: ServerPlan) -> str:
    """llama-swap's `filters`: what is taken out of requests, and what is put in; empty without either."""
    config = server.config
    strip = {"stripParams": ", ".join(config.request_strip)} if config.request_strip else {}
    put = {"setParams": config.request_set} if config.request_set else {}
    return _json(strip | put) if strip or put else ""


def _left_out(target: ExportName, server: ServerPlan, why: str) -> Finding:
    message = f"{EXPORTS[target].file} leaves out {server.name}: {why}"
    return fault("render/left-out", f"servers.{server.name}", message, severity="warning")


EXPORTS: dict[ExportName, Export] = {
    "llama_swap": Export("llama-swap.yaml", _llama_swap),
    "router": Export("router.ini", _router),
    "prometheus": Export("prometheus.yml", lambda plan, _, __: _scrape("prometheus", plan)),
    "alerts": Export("alerts.yml", lambda plan, _, __: _scrape("alerts", plan)),
    "grafana": Export("grafana.json", _grafana),
}
"""Keyed by the names in `deploy.targets`."""
