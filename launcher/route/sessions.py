"""Access to the page: links that are valid once, and the sessions that they open. Kept in memory alone.

A link is valid for five minutes and one visit. A session is a cookie that scripts cannot read and that browsers do not
send with requests of other sites; it ends with the runtime, after twelve hours, or with the key that opened it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from time import monotonic

LINK_S = 300.0
SESSION_S = 12 * 3600.0
_MOST = 256


class Sessions:
    """Links and sessions of one front."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._links: dict[bytes, tuple[float, str]] = {}
        self._sessions: dict[bytes, tuple[float, str]] = {}
        self.cookie = "launch"
        """Name of the cookie; the front adds its port, because browsers keep cookies per host only."""

    def make_link(self) -> str:
        """A new token, which `enter` accepts once."""
        return self._new(self._links, LINK_S, "")

    def enter(self, word: str) -> str | None:
        """A new session for an unused token of `make_link`; None for any other."""
        due, _ = self._links.pop(_digest(word), (0.0, ""))
        return self.open() if due > self._clock() else None

    def open(self, key: str = "") -> str:
        """A new session for an admitted caller: by an API key, or by a link ("")."""
        return self._new(self._sessions, SESSION_S, key)

    def end(self, cookies: bytes) -> None:
        """End the session in a Cookie header, if it has one."""
        for word in self._tokens(cookies):
            self._sessions.pop(_digest(word), None)

    def opened_by(self, cookies: bytes) -> str | None:
        """The API key that opened the session in a Cookie header; "" for a link; None without a valid session."""
        now = self._clock()
        found = (self._sessions.get(_digest(word), (0.0, "")) for word in self._tokens(cookies))
        return next((key for due, key in found if due > now), None)

    def _tokens(self, cookies: bytes) -> Iterator[str]:
        """Our cookies in a Cookie header: several, if another port of this host set one of the same name."""
        for part in cookies.decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self.cookie and value:
                yield value

    def _new(self, kept: dict[bytes, tuple[float, str]], good_s: float, key: str) -> str:
        """A new token in `kept`, from which expired ones are dropped."""
        now = self._clock()
        for digest in [d for d, (due, _) in kept.items() if due <= now]:
            del kept[digest]
        while len(kept) >= _MOST:
            del kept[next(iter(kept))]
        word = secrets.token_urlsafe(32)
        kept[_digest(word)] = now + good_s, key
        return word


def _digest(word: str) -> bytes:
    """The stored form of a token: comparing digests does not tell how much of a guess was right."""
    return hashlib.sha256(word.encode("utf-8", "replace")).digest()
