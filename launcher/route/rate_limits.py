"""What a key may spend: requests and tokens a minute, requests at once. Pure.

Two buckets that fill evenly: a minute's worth may come at once, then as much as has been filled since. Tokens are known
when a server has reported them, so that a request may overdraw the bucket; the next ones wait until it is paid back.
"""

from __future__ import annotations

import msgspec

from launcher.route.problem import HttpError

_MINUTE_S = 60.0


class Limits(msgspec.Struct, frozen=True):
    """Of one key; 0: none."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    in_flight: int = 0


class Bucket:
    """So much a minute; full at first."""

    __slots__ = ("_at", "_per_minute", "level")

    def __init__(self, per_minute: int, now: float) -> None:
        """`now`: a monotonic time in seconds."""
        self._per_minute = per_minute
        self._at = now
        self.level = float(per_minute)

    def wait_s(self, least: float, now: float) -> float:
        """Seconds until there are `least` in it; 0: there are."""
        rate = self._per_minute / _MINUTE_S
        self.level = min(float(self._per_minute), self.level + (now - self._at) * rate)
        self._at = now
        return max(0.0, (least - self.level) / rate)


class Usage:
    """What one key has spent."""

    __slots__ = ("_requests", "_tokens", "in_flight", "limits")

    def __init__(self, limits: Limits, now: float) -> None:
        """Nothing yet."""
        self.limits = limits
        self._requests = Bucket(limits.requests_per_minute, now)
        self._tokens = Bucket(limits.tokens_per_minute, now)
        self.in_flight = 0

    def admit(self, now: float) -> None:
        """One more request begins. Raises HttpError 429 `rate_limited`, and then nothing is counted."""
        limits = self.limits
        if limits.in_flight and self.in_flight >= limits.in_flight:
            message = f"this API key may have {limits.in_flight} requests at once"
            raise HttpError(429, "rate_limited", message, retry_after_s=1)
        if limits.tokens_per_minute:
            wait_s = self._tokens.wait_s(min(1.0, float(limits.tokens_per_minute)), now)
            if wait_s > 0:
                message = f"this API key may have {limits.tokens_per_minute} tokens a minute"
                raise HttpError(429, "rate_limited", message, retry_after_s=wait_s)
        if limits.requests_per_minute:
            wait_s = self._requests.wait_s(1.0, now)
            if wait_s > 0:
                message = f"this API key may ask {limits.requests_per_minute} times a minute"
                raise HttpError(429, "rate_limited", message, retry_after_s=wait_s)
            self._requests.level -= 1
        self.in_flight += 1

    def ended(self, tokens: int) -> None:
        """A request that was admitted has ended, and took so many tokens."""
        self.in_flight -= 1
        if self.limits.tokens_per_minute:
            self._tokens.level -= tokens
