"""What the front reports about itself: readiness, metrics, figures for the status, the page at `/`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

import msgspec

from launcher.base import metrics
from launcher.ir.fleet import RouteTarget, RoutingTable
from launcher.ir.live import ServerState
from launcher.route.target import SERVING, Target


class Figures(msgspec.Struct, frozen=True):
    """What the front knows of a server, for `launch status`: requests waiting for a slot, speed of the last answer."""

    queued: int
    tokens_per_second: float | None
    breaker_s: float = 0.0
    """Seconds until it is asked again after failures, unless its health check succeeds before; 0: it is asked."""
    first_token_s: float | None = None


StateOf = Callable[[str], ServerState]


def figures(targets: Mapping[str, Target]) -> dict[str, Figures]:
    """The figures of every server that is served now."""
    now = monotonic()
    return {
        name: Figures(len(t.gate.waiters), t.tokens.per_second, _pause_s(t, now), t.tokens.first_s)
        for name, t in targets.items()
    }


def _pause_s(target: Target, now: float) -> float:
    """Seconds for which the server's breaker keeps requests away; 0: none."""
    return max(0.1, target.breaker.open_until - now) if target.breaker.open_s else 0.0


def _context(unit: RouteTarget) -> str:
    """Slots and their context: `4 × 1024`; if all slots share one context, `1024 for 4`."""
    return f"{unit.n_ctx_shared} for {unit.slots}" if unit.n_ctx_shared else f"{unit.slots} × {unit.n_ctx_per_slot}"


def not_ready(table: RoutingTable, state_of: StateOf) -> list[dict[str, str]]:
    """Servers of the resident set that do not serve; an exclusive group counts as serving with one member."""
    waiting: list[dict[str, str]] = []
    groups: dict[str, list[dict[str, str]]] = {}
    served: set[str] = set()
    for name, unit in table.targets.items():
        state = state_of(name)
        entry = {"name": name, "state": state}
        if unit.exclusive is not None and state in SERVING:
            served.add(unit.exclusive)
        if unit.start != "boot" or state in SERVING:
            continue
        (waiting if unit.exclusive is None else groups.setdefault(unit.exclusive, [])).append(entry)
    for group, members in groups.items():
        if group not in served:
            waiting += members
    return waiting


def metrics_text(
    targets: Mapping[str, Target],
    state_of: StateOf,
    refused: Mapping[str, int],
    escalations: Mapping[tuple[str, str, str], int],
) -> str:
    """Prometheus text. `refused`: requests without an answer of a server, by code; `escalations`: by from, to, why."""
    now = monotonic()
    servers = [({"server": name}, target) for name, target in targets.items()]

    def each(of: Callable[[Target], float]) -> metrics.Samples:
        return [(server, of(target)) for server, target in servers]

    statuses = [(server | {"status": str(s)}, n) for server, t in servers for s, n in sorted(t.by_status.items())]
    refusals = [({"code": code}, n) for code, n in sorted(refused.items())]
    steps = [({"from": server, "to": to, "why": why}, n) for (server, to, why), n in sorted(escalations.items())]
    escalated = metrics.counter("launch_escalations_total", "Answers that a stronger server took over.", steps)
    states: metrics.Samples = [(server | {"state": state_of(t.name)}, 1) for server, t in servers]
    speeds = [({"model": t.unit.model} | server, t.tokens.per_second) for server, t in servers]
    known = [(labels, speed) for labels, speed in speeds if speed is not None]
    return metrics.text(
        metrics.counter("launch_requests_total", "Requests by server and status (499: the client left).", statuses),
        metrics.counter("launch_requests_refused_total", "Requests answered with an error of the front.", refusals),
        escalated if steps else (),
        metrics.gauge("launch_requests_in_flight", "Slots taken.", each(lambda t: t.gate.in_flight)),
        metrics.gauge("launch_requests_queued", "Requests waiting for a slot.", each(lambda t: len(t.gate.waiters))),
        metrics.gauge("launch_server_state", "1 for the state that the server is in.", states),
        metrics.gauge(
            "launch_breaker_open",
            "1 while the server is left alone after failures.",
            each(lambda t: t.breaker.open_s > 0),
        ),
        metrics.gauge(
            "launch_breaker_seconds",
            "Seconds until it is asked again at the latest.",
            each(lambda t: _pause_s(t, now)),
        ),
        metrics.counter(
            "launch_prompt_tokens_total",
            "Prompt tokens that answers reported.",
            each(lambda t: t.tokens.prompt),
        ),
        metrics.counter(
            "launch_generated_tokens_total",
            "Generated tokens that answers reported.",
            each(lambda t: t.tokens.generated),
        ),
        metrics.gauge("inference_tokens_per_second", "Generation speed that the last answer reported.", known),
        metrics.counter("launch_request_duration_seconds_sum", "Seconds of requests.", each(lambda t: t.seconds)),
        metrics.counter(
            "launch_request_duration_seconds_count",
            "Requests whose seconds are summed.",
            each(lambda t: sum(t.by_status.values())),
        ),
    )


def home_page(table: RoutingTable, state_of: StateOf, url: str, may_ask: Callable[[str, str], bool]) -> str:
    """A page for people: the models that the caller may ask, and how. A caller that may ask none sees no names.

    `url` is the front's own address.
    """
    import html  # noqa: PLC0415  # late: 0.4 MiB of entities' names

    names = {unit.name: unit for unit in table.targets.values() if may_ask(unit.name, unit.name)}
    rows = "\n".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(', '.join(unit.roles))}</td>"
        f"<td>{html.escape(unit.model)}</td><td>{_context(unit)}</td><td>{state_of(name)}</td></tr>"
        for name, unit in names.items()
    )
    model = table.default if table.default in names else next(iter(names), "NAME")
    title = html.escape(table.deployment) if names else "An API key is asked for here"
    key = "" if names else "-H 'Authorization: Bearer KEY' "
    curl = (
        f"curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>launch: {title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.25rem .75rem .25rem 0;
border-bottom:1px solid #8884}}
pre{{overflow:auto;padding:1rem;background:#8882}}</style></head>
<body><h1>{title}</h1>
<table><thead><tr><th>Model</th><th>Roles</th><th>File</th><th>Slots × context</th><th>State</th></tr></thead>
<tbody>
{rows}
</tbody></table>
<h2>Ask one</h2>
<pre>{html.escape(curl)}</pre>
<p><a href="/v1/models">/v1/models</a> · <a href="/ready">/ready</a> · <a href="/metrics">/metrics</a></p>
</body></html>
"""
