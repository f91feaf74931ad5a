"""Running a fleet: processes started in order, proven ready, watched, restarted, stopped, and found again.

In: a `FleetManifest`. Out: running processes, `FleetStatus`, events; implements `Upstreams` of `launcher.ir.live`.
I/O, except `lifecycle`, `scheduler`, `reload`, `diagnosis`, `spec` and `events`, which are pure and decide.
"""

from __future__ import annotations

from launcher.supervise.children import Children
from launcher.supervise.ending import early_finding, end_runtime, reach_runtime
from launcher.supervise.findings import starting_finding, state_moved_finding, stopping_finding
from launcher.supervise.identity import RecordStore, marked_deployments
from launcher.supervise.offline import (
    LOCK_NAME,
    RuntimeAliveError,
    offline_status,
    runtime_holder,
    stop_orphans,
)
from launcher.supervise.owner import ProcessOwner
from launcher.supervise.ports import port_owner
from launcher.supervise.supervisor import Supervisor
from launcher.supervise.units import SystemdUnits

__all__ = [
    "LOCK_NAME",
    "Children",
    "ProcessOwner",
    "RecordStore",
    "RuntimeAliveError",
    "Supervisor",
    "SystemdUnits",
    "early_finding",
    "end_runtime",
    "marked_deployments",
    "offline_status",
    "port_owner",
    "reach_runtime",
    "runtime_holder",
    "starting_finding",
    "state_moved_finding",
    "stop_orphans",
    "stopping_finding",
]
