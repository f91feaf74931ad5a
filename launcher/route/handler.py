"""The handler of one request, as its connection sees it. Types only. Pure."""

from __future__ import annotations

from typing import Protocol

from launcher.route.head import Head
from launcher.route.problem import HttpError


class Handler(Protocol):
    """Answers one request."""

    head: Head
    body: bytes
    complete: bool
    """The request's body has arrived."""
    held: int
    """Bytes of the body that count against `max_held_bytes`."""
    length: bytes | None
    """Content-Length, where the body arrives after the head."""
    has_turn: bool
    """All earlier requests of the connection are answered; until then a refusal is kept in `refusal`."""
    refusal: HttpError | None

    def drop_body(self) -> None:
        """Free the request's body."""

    def opened(self) -> None:
        """Start: the head has arrived, perhaps the body too, and all earlier requests are answered."""

    def received(self) -> None:
        """Go on: the body has arrived as well."""

    def refuse(self, error: HttpError) -> None:
        """Answer with `error`, which the rest of the request caused."""

    def progress(self) -> None:
        """Write on: the client can take more again."""

    def overdue(self) -> None:
        """The deadline given to `set_answer_deadline` has passed."""

    def client_left(self) -> None:
        """Stop: the client has disconnected."""

    def stop(self) -> None:
        """Stop: the front's drain is over."""
