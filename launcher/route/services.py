"""What an exchange needs of its front. Types only. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Protocol, TypeVar

from launcher.ir.live import Upstreams
from launcher.route.body_reader import BodyReader
from launcher.route.faults import Faults
from launcher.route.owners import Owners
from launcher.route.reply import Notes
from launcher.route.sticky import Sticky
from launcher.route.view import Route

E_contra = TypeVar("E_contra", contravariant=True)
"""The exchange's type."""


class Services(Notes, Protocol[E_contra]):
    """The front as its exchanges see it; implemented by `launcher.route.front.Front`."""

    upstreams: Upstreams
    created: int
    """When it began (Unix time)."""
    sticky: Sticky
    conversations: Owners
    completions: Owners
    faults: Faults
    body_reader: BodyReader
    refused: Counter[str]
    """How often it answered with an error of its own, by code."""
    escalations: Counter[tuple[str, str, str]]
    """Escalations by server, its replacement, and reason."""
    has_journal: bool
    """Whether `note_attempt` writes anything."""

    def note(self, exchange: E_contra, status: int, code: str, /) -> None:
        """Record an ended request. `code`: of an error of the front, "-" for none."""

    def open(self, exchange: E_contra) -> None:
        """Check who asks, and answer what needs no body. Raises HttpError."""

    def dispatch(self, exchange: E_contra) -> None:
        """Answer a whole request, or `start` it on its way. Raises HttpError."""

    def other_metrics(self) -> str:
        """Prometheus text of those beside it."""

    def grow(self, route: Route) -> None:
        """Count a request by `route`: a busy pool gets another server."""

    def route_for_media(self, exchange: E_contra, route: Route) -> Route | None:
        """The route for a chat with media that no server of `route` accepts; None: not needed. Raises HttpError."""

    def note_attempt(self, exchange: E_contra, status: int, seconds: float, tokens: tuple[int, int]) -> None:
        """Write the journal entry of a request that was sent to a server."""
