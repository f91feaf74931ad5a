"""Which server has a conversation or a completion, so that later requests about it go there. Pure."""

from __future__ import annotations

import re
from collections import OrderedDict

import msgspec

_ENTRIES = 8192
"""Ids remembered; the least recently used are forgotten first."""
_ID = re.compile(rb'"id":\s*"([^"\\]{1,128})"')
_MAX_KEY_BYTES = 512
"""Longer ids are not remembered, so that memory is bounded."""


class Owner(msgspec.Struct, frozen=True):
    """A server, the name by which it was asked, and the name of the caller's key."""

    server: str
    asked: str
    caller: str


class Owners:
    """Ids → owners."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, Owner] = OrderedDict()

    def remember(self, key: bytes, owner: Owner) -> None:
        """`owner` has the id `key` from now on."""
        if len(key) > _MAX_KEY_BYTES:
            return
        self._seen[key] = owner
        self._seen.move_to_end(key)
        if len(self._seen) > _ENTRIES:
            self._seen.popitem(last=False)

    def learn(self, first: bytes, owner: Owner) -> None:
        """Remember `owner` for the completion whose event stream begins with `first`."""
        match = _ID.search(first)
        if match is not None:
            self.remember(match[1], owner)

    def server(self, key: bytes, caller: str) -> str | None:
        """The server that has it, if the caller is its owner."""
        owner = self.of(key, caller)
        return None if owner is None else owner.server

    def of(self, key: bytes, caller: str) -> Owner | None:
        """The owner, if it is the caller."""
        owner = self._seen.get(key)
        return owner if owner is not None and owner.caller == caller else None
