"""Servers as jobs of a Slurm cluster: submitted, followed in the queue, cancelled by the leading front alone. I/O.

In: the `SlurmUnit` of a manifest. Out: a `ProcessOwner`. `queue` is pure.
"""

from __future__ import annotations

from launcher.supervise.slurm.owner import Jobs

__all__ = ["Jobs"]
