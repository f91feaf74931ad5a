"""In which order servers start, and what each waits for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from launcher.errors import Finding
from launcher.plan.server import Planned


def start_order(servers: Sequence[Planned], serial_from_bytes: int) -> tuple[tuple[Planned, ...], list[Finding]]:
    """Servers with what they wait for first, else as listed; and cycles as findings.

    Models of at least `serial_from_bytes` that are up after start load one after another: each waits for the last.
    """
    names, findings = topological({s.name: s.plan.after for s in servers})
    by_name = {s.name: s for s in servers}
    ordered: list[Planned] = []
    big: str | None = None
    for name in names:
        server = by_name[name]
        if server.initial and server.model.file_bytes >= serial_from_bytes:
            if big and big not in server.plan.after:
                plan = msgspec.structs.replace(server.plan, after=(*server.plan.after, big))
                server = msgspec.structs.replace(server, plan=plan)
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
    while waiting:
        ready = next((n for n, others in waiting.items() if not others), None)
        if ready is None:
            ready = next(iter(waiting))
            cycle = ", ".join(sorted(waiting))
            message = f"these wait for one another: {cycle}"
            findings.append(
                Finding(code="plan/start-cycle", severity="error", key=f"servers.{ready}.after", message=message)
            )
        del waiting[ready]
        for others in waiting.values():
            others.discard(ready)
        order.append(ready)
    return order, findings
