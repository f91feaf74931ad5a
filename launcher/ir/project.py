"""A project in a deployment's memory, as it is listed, and what was refused in it. Pure."""

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


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A text of `model` that `server` judged, and did not pass. `at`: Unix time of the generation's last change."""

    generation: str
    block: int
    """Which block of the answer it was to be, from 1."""
    attempt: int
    """Its verdict's number, from 1."""
    kind: str
    """fail, or what was wrong with the verdict: malformed, contradictory, timeout, unavailable."""
    reason: str
    correction: str
    server: str
    model: str
    text: str
    at: float
