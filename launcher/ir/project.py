"""A project in a deployment's memory, as it is listed. Pure."""

from __future__ import annotations

import msgspec


class ProjectSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One project. `owner`: the name of the key that made it; `last_at`: Unix time of its last journal entry."""

    owner: str
    name: str
    generations: int
    blocks: int
    notes: int
    last_at: float
