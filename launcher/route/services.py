"""What an exchange needs of the front that it belongs to. Types only. Pure."""

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
"""The exchange."""


class Services(Notes, Protocol[E_contra]):
    """Implemented by `launcher.route.front.Front`."""

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
    """How often whom took over from whom, and why."""
    has_journal: bool
    """Whether `note_attempt` does anything."""

    def note(self, exchange: E_contra, status: int, code: str, /) -> None:
        """A request has ended, with the `code` of an error of the front, or "-"."""

    def open(self, exchange: E_contra) -> None:
        """Check who asks; answer what needs no body. Raises HttpError."""

    def dispatch(self, exchange: E_contra) -> None:
        """The whole request is here: answer it, or `start` it on its way. Raises HttpError."""

    def other_metrics(self) -> str:
        """Prometheus text of those beside it."""

    def grow(self, route: Route) -> None:
        """One more request goes by `route`."""

    def route_for_media(self, exchange: E_contra, route: Route) -> Route | None:
        """Where a chat goes that contains what nobody of `route` takes; None: it does not. Raises HttpError."""

    def note_attempt(self, exchange: E_contra, status: int, seconds: float, tokens: tuple[int, int]) -> None:
        """A server was asked: for the journal."""
