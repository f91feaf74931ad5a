"""Everything that comes from one routing table. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.fleet import RoutingTable
from launcher.route.directory import Directory
from launcher.route.guard import Guard
from launcher.route.target import Target


class View(msgspec.Struct, frozen=True):
    """A table and what was made of it; requests in flight keep theirs across a reload."""

    table: RoutingTable
    directory: Directory
    guard: Guard
    targets: dict[str, Target]
    only: dict[str, Target]
    """Names that one server answers to, and nobody validates."""
    auto: frozenset[str] = frozenset()
    """Names that an orchestrator answers to (`auto`)."""
    growing: dict[str, int] = {}
    """Names whose pool grows → requests in flight above which it does."""
    validated: frozenset[str] = frozenset()
    """Names whose answers an orchestrator validates."""
