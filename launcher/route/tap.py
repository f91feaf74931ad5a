"""A copy of an answer that is passed on, for who has to read it. Pure."""

from __future__ import annotations


class Tap:
    """Copies an answer of up to `most` bytes; of a longer one it keeps nothing."""

    def __init__(self, most: int) -> None:
        """Nothing has passed."""
        self._most = most
        self._parts: list[bytes] = []
        self.whole = b""
        """All of it, once it is complete and if it was kept."""

    def add(self, data: bytes, *, done: bool) -> None:
        """A part went by; with `done` it was the last."""
        self._most -= len(data)
        if self._most < 0:
            self._parts.clear()
            return
        self._parts.append(data)
        if done:
            self.whole = b"".join(self._parts)
