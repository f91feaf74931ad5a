"""What can be wrong with a plan: one function a check, all of them in `CHECKS`.

In: `Planning`. Out: findings, in any order. Pure.
"""

from __future__ import annotations

from launcher.plan.checks import front, memory, models, processes
from launcher.plan.checks.planning import Check, Planning

WHOLE: frozenset[Check] = frozenset({*front.WHOLE, *memory.WHOLE, *processes.WHOLE})
"""Checks that see a fleet of several hosts as one; each of the others sees one host after another."""
CHECKS: tuple[Check, ...] = (*front.CHECKS, *memory.CHECKS, *models.CHECKS, *processes.CHECKS, *WHOLE)

__all__ = ["CHECKS", "WHOLE", "Check", "Planning"]
