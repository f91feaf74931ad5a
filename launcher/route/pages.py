"""What the front says about itself: models, readiness, metrics, the plain page at `/`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import monotonic

import msgspec

from launcher.ir.fleet import RouteTarget, RoutingTable
from launcher.ir.live import ServerState
from launcher.route.target import SERVING, Target


class Figures(msgspec.Struct, frozen=True):
    """What the front knows of a server, for `launch status`: who waits for a slot, how fast the last answer came."""

    queued: int
    tokens_per_second: float | None
    breaker_s: float = 0.0
    """Seconds until it is asked again after failures, unless it answers before; 0: it is asked."""
    first_token_s: float | None = None


StateOf = Callable[[str], ServerState]


def figures(targets: Mapping[str, Target]) -> dict[str, Figures]:
    """Of every server that is served now."""
    now = monotonic()
    return {
        name: Figures(len(t.gate.waiters), t.tokens.per_second, _pause_s(t, now), t.tokens.first_s)
        for name, t in targets.items()
    }


def _pause_s(target: Target, now: float) -> float:
    """Seconds for which its breaker keeps requests away."""
    return max(0.1, target.breaker.open_until - now) if target.breaker.open_s else 0.0


def _context(unit: RouteTarget) -> str:
    """`4 × 1024`; where all slots share one context, `1024 for 4`."""
    return f"{unit.n_ctx_shared} for {unit.slots}" if unit.n_ctx_shared else f"{unit.slots} × {unit.n_ctx_per_slot}"


def not_ready(table: RoutingTable, state_of: StateOf) -> list[dict[str, str]]:
    """Servers of the resident set that do not serve; one serving member stands for an exclusive group."""
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
    """Prometheus text. `refused`: by code, requests that no server answered; `escalations`: by from, to, why."""
    lines: list[str] = []

    def family(name: str, kind: str, meaning: str, samples: Iterable[tuple[str, float]]) -> None:
        """One metric with its samples."""
        lines.extend((f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"))
        lines.extend(f"{name}{{{labels}}} {value:.10g}" for labels, value in samples)

    servers = [(f'server="{_label(name)}"', t) for name, t in targets.items()]
    family(
        "launch_requests_total",
        "counter",
        "Requests by server and status (499: the client left).",
        ((f'{s},status="{code}"', n) for s, t in servers for code, n in sorted(t.tally.by_status.items())),
    )
    refusals = ((f'code="{_label(code)}"', n) for code, n in sorted(refused.items()))
    family("launch_requests_refused_total", "counter", "Requests answered with an error of the front.", refusals)
    if escalations:
        steps = (
            (f'from="{_label(server)}",to="{_label(to)}",why="{_label(why)}"', n)
            for (server, to, why), n in sorted(escalations.items())
        )
        family("launch_escalations_total", "counter", "Answers that a stronger server took over.", steps)
    family("launch_requests_in_flight", "gauge", "Slots taken.", ((s, t.gate.in_flight) for s, t in servers))
    family(
        "launch_requests_queued",
        "gauge",
        "Requests waiting for a slot.",
        ((s, len(t.gate.waiters)) for s, t in servers),
    )
    family(
        "launch_server_state",
        "gauge",
        "1 for the state that the server is in.",
        ((f'{s},state="{state_of(t.name)}"', 1) for s, t in servers),
    )
    now = monotonic()
    family(
        "launch_breaker_open",
        "gauge",
        "1 while the server is left alone after failures.",
        ((s, int(t.breaker.open_s > 0)) for s, t in servers),
    )
    pauses = ((s, _pause_s(t, now)) for s, t in servers)
    family("launch_breaker_seconds", "gauge", "Seconds until it is asked again at the latest.", pauses)
    family(
        "launch_prompt_tokens_total",
        "counter",
        "Prompt tokens that answers reported.",
        ((s, t.tokens.prompt) for s, t in servers),
    )
    family(
        "launch_generated_tokens_total",
        "counter",
        "Generated tokens that answers reported.",
        ((s, t.tokens.generated) for s, t in servers),
    )
    family(
        "inference_tokens_per_second",
        "gauge",
        "Generation speed that the last answer reported.",
        (
            (f'model="{_label(t.unit.model)}",{s}', t.tokens.per_second)
            for s, t in servers
            if t.tokens.per_second is not None
        ),
    )
    family(
        "launch_request_duration_seconds_sum",
        "counter",
        "Seconds of requests.",
        ((s, t.tally.seconds) for s, t in servers),
    )
    family(
        "launch_request_duration_seconds_count",
        "counter",
        "Requests whose seconds are summed.",
        ((s, sum(t.tally.by_status.values())) for s, t in servers),
    )
    return "\n".join(lines) + "\n"


def home_page(table: RoutingTable, state_of: StateOf, url: str, may_ask: Callable[[str, str], bool]) -> str:
    """A page for people: the models that the caller may ask, and how; who may ask none learns nothing of the fleet.

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


def _label(value: str) -> str:
    """`value` as a Prometheus label value."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
