"""What Kubernetes and Slurm have in common: the life of scheduled processes, and which front leads. I/O.

In: what a scheduler says of a server (`Seen`), and a lease. Out: an `OwnedProcess`, an `Election`. `seen` and `lease`
are pure.
"""

from __future__ import annotations

from launcher.supervise.scheduled.election import CALL_SHARE, Election
from launcher.supervise.scheduled.lease import identity
from launcher.supervise.scheduled.owner import ScheduledOwner, ScheduledProcess
from launcher.supervise.scheduled.seen import SchedulerError, Seen, Stage

__all__ = [
    "CALL_SHARE",
    "Election",
    "ScheduledOwner",
    "ScheduledProcess",
    "SchedulerError",
    "Seen",
    "Stage",
    "identity",
]
