"""What a fleet should keep to while it runs, from its config. Pure."""

from __future__ import annotations

from launcher.ir.fleet import TargetUnit
from launcher.ir.plan import FleetPlan


def targets_of(plan: FleetPlan) -> tuple[TargetUnit, ...]:
    """What the config wants to be kept to, of the servers of `plan`."""
    cycle = plan.config.orchestration
    found = []
    if cycle and cycle.swap_target_s is not None and any(s.config.exclusive for s in plan.servers):
        found.append(TargetUnit(name="swap_seconds", server="", limit=cycle.swap_target_s))
    for server in plan.servers:
        speed = plan.config.slowest(server.name)
        if speed is not None:
            found.append(TargetUnit(name="tokens_per_second", server=server.name, limit=speed))
        first = plan.config.latest(server.name)
        if first is not None:
            found.append(TargetUnit(name="first_token_seconds", server=server.name, limit=first))
    return tuple(found)
