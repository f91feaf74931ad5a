"""What passes of an answer, kept for who asked for it. Pure."""

from __future__ import annotations


class Tap:
    """Keeps what passes of an answer, as long as it is no more than `most` bytes."""

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
