"""Which worker will be needed next: by rules, history and frequency, each as far as it was right before. Pure.

A run of requests for one worker is one entry of the history: the prediction is of the next swap.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

LONGEST = 4
"""Length of the longest sequence of workers before a swap that is learned."""
_FORGET = 0.9
"""Factor for the weight of older evidence at each newer piece: habits change."""
_REMEMBERED = 1024
_TRUSTED = 0.5
_LEARNING = 0.3

Why = Literal["rule", "pattern", "history", "frequency", "declared"]


class Forecast(msgspec.Struct, frozen=True):
    """A worker that may be next, and the reason."""

    worker: str
    why: Why
    score: float = 0.0
    """Trust of a rule or pattern (0 to 1), weight in the history, or number of uses; comparable within one `why`."""


class Predictor:
    """Learns from `note`, answers with `forecast`. The same notes give the same forecasts.

    A declared rule or pattern comes first while it has been right at least half of the time lately, otherwise after the
    history. An empty history is normal: then the declared order decides.
    """

    def __init__(
        self, workers: Iterable[str], rules: Mapping[str, str], patterns: Iterable[tuple[str, ...]] = ()
    ) -> None:
        """`rules`: domain → worker likely next; `patterns`: when all but the last just ran, the last is likely."""
        self._workers = tuple(workers)
        self._rules = {domain: worker for domain, worker in rules.items() if worker in self._workers}
        self._patterns = tuple(p for p in patterns if len(p) > 1 and all(w in self._workers for w in p))
        self._recent: deque[str] = deque(maxlen=LONGEST)
        self._after: dict[tuple[str, ...], dict[str, float]] = {}
        self._uses: Counter[str] = Counter()
        self._trust: dict[object, float] = {}
        self._domain = ""

    @property
    def current(self) -> str:
        """The worker that was needed last; "" at first."""
        return self._recent[-1] if self._recent else ""

    def domain(self, domain: str) -> None:
        """Set the domain of the latest request."""
        self._domain = domain

    def note(self, worker: str) -> None:
        """Note that `worker` is needed, and update the trust in declared rules by it."""
        if worker == self.current or worker not in self._workers:
            return
        for source, expected in self._declared():
            right = 1.0 if expected == worker else 0.0
            self._trust[source] = (1 - _LEARNING) * self._trust.get(source, 1.0) + _LEARNING * right
        recent = tuple(self._recent)
        for length in range(1, len(recent) + 1):
            self._learn(recent[-length:], worker)
        self._uses[worker] += 1
        self._recent.append(worker)

    def forecast(self) -> tuple[Forecast, ...]:
        """Every other worker, likeliest first."""
        declared = [
            (trust := self._trust.get(s, 1.0), Forecast(w, "rule" if s[0] == "rule" else "pattern", trust))
            for s, w in self._declared()
        ]
        ranked = [
            *(forecast for trust, forecast in declared if trust >= _TRUSTED),
            *(Forecast(worker, "history", weight) for worker, weight in self._history()),
            *(forecast for trust, forecast in declared if trust < _TRUSTED),
            *(Forecast(worker, "frequency", uses) for worker, uses in self._uses.most_common()),
            *(Forecast(worker, "declared") for worker in self._workers),
        ]
        first: dict[str, Forecast] = {}
        for forecast in ranked:
            if forecast.worker != self.current:
                first.setdefault(forecast.worker, forecast)
        return tuple(first.values())

    def _declared(self) -> list[tuple[tuple[str, str | int], str]]:
        """Rules and patterns that apply now, with the workers they predict."""
        found: list[tuple[tuple[str, str | int], str]] = []
        ruled = self._rules.get(self._domain)
        if ruled is not None and ruled != self.current:
            found.append((("rule", self._domain), ruled))
        recent = tuple(self._recent)
        for number, pattern in enumerate(self._patterns):
            before = pattern[:-1]
            if recent[-len(before) :] == before and pattern[-1] != self.current:
                found.append((("pattern", number), pattern[-1]))
        return found

    def _history(self) -> list[tuple[str, float]]:
        """Workers that followed the present sequence before; the longest sequence seen more than once comes first."""
        recent = tuple(self._recent)
        ranked: list[tuple[str, float]] = []
        for length in range(len(recent), 0, -1):
            seen = self._after.get(recent[-length:], {})
            if length == 1 or sum(seen.values()) > 1:
                ranked += sorted(seen.items(), key=lambda known: (-known[1], known[0]))
        return ranked

    def _learn(self, before: tuple[str, ...], worker: str) -> None:
        seen = self._after.pop(before, {})
        weighed = {known: weight * _FORGET for known, weight in seen.items()}
        weighed[worker] = weighed.get(worker, 0.0) + 1
        self._after[before] = weighed
        if len(self._after) > _REMEMBERED:
            del self._after[next(iter(self._after))]
