"""What the front knows of each server, for `launch status`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from launcher.route.front import Front


class Figures(msgspec.Struct, frozen=True):
    """Requests that wait for a slot, and the speed that the last answer reported."""

    queued: int
    tokens_per_second: float | None


def figures(front: Front) -> dict[str, Figures]:
    """Of every server of the table that is served now."""
    return {
        name: Figures(len(target.gate.waiters), target.tokens.per_second) for name, target in front.view.targets.items()
    }
