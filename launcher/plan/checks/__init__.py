"""The checks of a plan, one function each, all of them in `CHECKS`.

In: `Planning`. Out: findings, in any order. Pure.
"""

from __future__ import annotations

from launcher.plan.checks import front, memory, models, processes
from launcher.plan.checks.planning import Check, Planning

WHOLE: frozenset[Check] = frozenset({*front.WHOLE, *memory.WHOLE, *processes.WHOLE})
"""Checks that see all hosts of a fleet at once; the others see one host at a time."""
CHECKS: tuple[Check, ...] = (*front.CHECKS, *memory.CHECKS, *models.CHECKS, *processes.CHECKS, *WHOLE)

__all__ = ["CHECKS", "WHOLE", "Check", "Planning"]
