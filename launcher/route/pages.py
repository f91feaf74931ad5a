"""What the front says about itself: models, readiness, metrics, the plain page at `/`. Pure."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from launcher.ir.fleet import RouteTarget, RoutingTable
from launcher.ir.live import ServerState
from launcher.route.target import SERVING, Target

StateOf = Callable[[str], ServerState]


def model_entry(unit: RouteTarget, state: ServerState, created: int) -> dict[str, Any]:
    """One server as OpenAI's and Anthropic's clients list a model, with what is ours beside it."""
    return {
        "id": unit.name,
        "object": "model",
        "created": created,
        "owned_by": "launch",
        "type": "model",
        "display_name": unit.name,
        "created_at": "1970-01-01T00:00:00Z",
        "model": unit.model,
        "roles": list(unit.roles),
        "aliases": list(unit.aliases),
        "state": state,
        "slots": unit.slots,
        "n_ctx_per_slot": unit.n_ctx_per_slot,
        "modalities": list(unit.modalities),
        "embedding": unit.embedding,
    }


def auto_entry(name: str, created: int) -> dict[str, Any]:
    """A name behind which somebody decides who answers."""
    entry = {"id": name, "object": "model", "created": created, "owned_by": "launch", "type": "model"}
    return {**entry, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}


def models_list(
    table: RoutingTable, state_of: StateOf, created: int, auto: Iterable[str], may_ask: Callable[[str, str], bool]
) -> dict[str, Any]:
    """Every server that the caller may ask by some name, in the table's order, then `auto`, by the same rule.

    Both APIs' list fields; nothing is left for a second page. `may_ask` is given a name and the server behind it.
    """
    named = {**table.names, **{pool.name: pool.servers for pool in table.pools}}
    data = [
        model_entry(unit, state_of(name), created)
        for name, unit in table.targets.items()
        if may_ask(name, name) or any(may_ask(asked, name) for asked, servers in named.items() if name in servers)
    ]
    data += [auto_entry(name, created) for name in sorted(auto) if may_ask(name, name)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": False, **ends}


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


def metrics_text(targets: Mapping[str, Target], state_of: StateOf, refused: Mapping[str, int]) -> str:
    """Prometheus text. `refused` counts by code the requests that no server answered."""
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


def home_page(table: RoutingTable, state_of: StateOf, url: str) -> str:
    """A page for people: the models and how to ask one. `url` is the front's own address."""
    rows = "\n".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(', '.join(unit.roles))}</td>"
        f"<td>{html.escape(unit.model)}</td><td>{unit.slots} × {unit.n_ctx_per_slot}</td><td>{state_of(name)}</td></tr>"
        for name, unit in table.targets.items()
    )
    model = table.default or next(iter(table.targets), "NAME")
    curl = (
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>launch: {html.escape(table.deployment)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.25rem .75rem .25rem 0;
border-bottom:1px solid #8884}}
pre{{overflow:auto;padding:1rem;background:#8882}}</style></head>
<body><h1>{html.escape(table.deployment)}</h1>
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
