"""Which processes of a fleet the front of a cluster scales; all others have a pod always. Pure."""

from __future__ import annotations

from launcher.ir.plan import FleetPlan, ServerPlan, ServicePlan


def is_scaled(one: ServerPlan | ServicePlan) -> bool:
    """Whether it is started on demand, or takes turns."""
    if isinstance(one, ServicePlan) and one.config.container is None:
        return False
    return one.starts != "never" and (one.starts == "demand" or one.config.exclusive is not None)


def scaled(plan: FleetPlan) -> tuple[ServerPlan | ServicePlan, ...]:
    """Everything that the front scales, servers first."""
    everyone: tuple[ServerPlan | ServicePlan, ...] = (*plan.servers, *plan.services)
    return tuple(one for one in everyone if is_scaled(one))
