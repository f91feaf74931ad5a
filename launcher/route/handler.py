"""Who answers one request, as its connection sees it. Types only. Pure."""

from __future__ import annotations

from typing import Protocol

from launcher.route.head import Head
from launcher.route.problem import HttpError


class Handler(Protocol):
    """Who answers one request."""

    head: Head
    body: bytes
    complete: bool
    """The body has come."""
    held: int
    """Bytes of it that are counted."""
    length: bytes | None
    """Content-Length, where the body comes later."""
    has_turn: bool
    """Those before it are answered: until then it keeps a refusal to itself."""
    refusal: HttpError | None

    def drop_body(self) -> None:
        """It is not needed any more."""

    def opened(self) -> None:
        """The head has come, perhaps the body too, and those before it are answered."""

    def received(self) -> None:
        """The body has come, too."""

    def refuse(self, error: HttpError) -> None:
        """Something is wrong with the rest of the request."""

    def progress(self) -> None:
        """The client can take more again."""

    def overdue(self) -> None:
        """What was given to `answer_by` has passed."""

    def client_left(self) -> None:
        """Nobody waits for the answer."""

    def stop(self) -> None:
        """The front's drain is over."""
