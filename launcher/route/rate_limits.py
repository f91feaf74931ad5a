"""Limits of a key: requests and tokens per minute, requests at once. Pure.

Two token buckets that fill evenly: a minute's worth may come at once, then as much as has been filled since. Tokens are
known only after a server has reported them, so a request may overdraw the bucket; later ones wait until it is balanced.
"""

from __future__ import annotations

import msgspec

from launcher.route.problem import HttpError

_MINUTE_S = 60.0


class Limits(msgspec.Struct, frozen=True):
    """Limits of one key; 0: no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    in_flight: int = 0


class _Bucket:
    """So much a minute, 0: without limit; full at first. Times are monotonic, in seconds."""

    __slots__ = ("_at", "_per_minute", "level")

    def __init__(self, per_minute: int, now: float) -> None:
        self._per_minute = per_minute
        self._at = now
        self.level = float(per_minute)

    def wait_s(self, now: float) -> float:
        """Seconds until there is one in it; 0: there is."""
        if not self._per_minute:
            return 0.0
        rate = self._per_minute / _MINUTE_S
        self.level = min(float(self._per_minute), self.level + (now - self._at) * rate)
        self._at = now
        return max(0.0, (1.0 - self.level) / rate)


class Usage:
    """What one key has used up."""

    __slots__ = ("_requests", "_tokens", "in_flight", "limits")

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self._requests = _Bucket(limits.requests_per_minute, now)
        self._tokens = _Bucket(limits.tokens_per_minute, now)
        self.in_flight = 0

    def admit(self, now: float) -> None:
        """Count the begin of a request. Raises HttpError 429 `rate_limited`, and then nothing is counted."""
        limits = self.limits
        if limits.in_flight and self.in_flight >= limits.in_flight:
            raise _limited(f"have {limits.in_flight} requests at once", 1)
        if (wait_s := self._tokens.wait_s(now)) > 0:
            raise _limited(f"have {limits.tokens_per_minute} tokens a minute", wait_s)
        if (wait_s := self._requests.wait_s(now)) > 0:
            raise _limited(f"ask {limits.requests_per_minute} times a minute", wait_s)
        self._requests.level -= 1
        self.in_flight += 1

    def ended(self, tokens: int) -> None:
        """Count the end of an admitted request, and its tokens."""
        self.in_flight -= 1
        self._tokens.level -= tokens


def _limited(what: str, wait_s: float) -> HttpError:
    return HttpError(429, "rate_limited", f"this API key may {what}", retry_after_s=wait_s)
