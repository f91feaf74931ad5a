"""A copy of a forwarded answer, for an orchestrator that must read it. Pure."""

from __future__ import annotations


class Tap:
    """Copies an answer of up to `most` bytes; of a longer one nothing is kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts: list[bytes] = []
        self.whole = b""
        """The answer, once it is complete and if it was kept."""

    def add(self, data: bytes, *, done: bool) -> None:
        """Add a part that was forwarded; `done` marks the last one."""
        self._most -= len(data)
        if self._most < 0:
            self._parts.clear()
            return
        self._parts.append(data)
        if done:
            self.whole = b"".join(self._parts)
