"""Requests → routed, generated, validated, committed.

In: requests for `model: auto`, or with a validation policy, as the front hands them over (`launcher.ir.exchange`), and
the routing table's orchestration. Out: answers, and a project memory of what was decided, judged and committed. I/O:
requests to the fleet's servers, a SQLite file; the decisions are pure (`cycle`, `decision`, `verdict`, `context`).
"""

from __future__ import annotations

from launcher.orchestrate.archive import (
    export_project,
    forget_project,
    list_drafts,
    list_projects,
    read_generation,
    recent_generations,
)
from launcher.orchestrate.memory import FILE_NAME, ProjectMemory
from launcher.orchestrate.orchestrator import Orchestrator

__all__ = [
    "FILE_NAME",
    "Orchestrator",
    "ProjectMemory",
    "export_project",
    "forget_project",
    "list_drafts",
    "list_projects",
    "read_generation",
    "recent_generations",
]
