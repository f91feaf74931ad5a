"""What a scheduler answers when it does not do what it is asked. Pure."""

from __future__ import annotations


class SchedulerError(Exception):
    """The scheduler refused, or could not be asked.

    `status`: as HTTP has it; 0: no whole answer in time, so that it may have acted.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passes(self) -> bool:
        """Whether the same may be asked again: it was away, busy or broken, or our token has just run out."""
        return self.status in (0, 401, 408, 409, 410, 429) or self.status >= 500
