"""In which order servers start, and what each waits for. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

import msgspec

from launcher.errors import Finding
from launcher.ir.plan import ServerPlan


def start_order(
    servers: Sequence[ServerPlan], serial_from_bytes: int, cooldown_s: float = 0
) -> tuple[tuple[ServerPlan, ...], list[Finding]]:
    """Servers with what they wait for first, else as listed; and cycles as findings.

    Models of at least `serial_from_bytes` that are up after start load one after another: each waits for the last, and
    `cooldown_s` more.
    """
    names, findings = topological({s.name: s.after for s in servers})
    by_name = {s.name: s for s in servers}
    ordered: list[ServerPlan] = []
    big: str | None = None
    for name in names:
        server = by_name[name]
        if server.initial and server.model.file_bytes >= serial_from_bytes:
            if big:
                after = tuple(dict.fromkeys((*server.after, big)))
                server = msgspec.structs.replace(server, after=after, cooldown_s=cooldown_s)
            big = name
        ordered.append(server)
    return tuple(ordered), findings


def topological(after: Mapping[str, Sequence[str]]) -> tuple[list[str], list[Finding]]:
    """Names so that each comes after those it names; unknown names and cycles become findings.

    On a cycle the first name as listed goes on, so that there is always an order.
    """
    findings = [
        Finding(code="plan/start-unknown", severity="error", key=f"servers.{name}.after", message=f"no server {other}")
        for name, others in after.items()
        for other in others
        if other not in after
    ]
    order: list[str] = []
    waiting = {name: {o for o in others if o in after} for name, others in after.items()}
    position = {name: place for place, name in enumerate(after)}
    behind: defaultdict[str, list[str]] = defaultdict(list)
    for name, others in waiting.items():
        for other in others:
            behind[other].append(name)
    free = [place for name, place in position.items() if not waiting[name]]
    names = list(after)
    while waiting:
        if free:
            ready = names[heappop(free)]
        else:
            ready = next(iter(waiting))
            cycle = ", ".join(sorted(waiting))
            message = f"these wait for one another: {cycle}"
            findings.append(
                Finding(code="plan/start-cycle", severity="error", key=f"servers.{ready}.after", message=message)
            )
        del waiting[ready]
        for name in behind[ready]:
            if name in waiting and ready in waiting[name]:
                waiting[name].discard(ready)
                if not waiting[name]:
                    heappush(free, position[name])
        order.append(ready)
    return order, findings
