"""Who asks for what and when, and which hosts fail: drawn by a seed. Pure."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence

import msgspec


class Ask(msgspec.Struct, frozen=True):
    """A request: when it comes, for which model, how long its server is busy with it."""

    at: float
    model: str
    busy_s: float


class Outage(msgspec.Struct, frozen=True):
    """A host that is away for a while, with all that runs there."""

    host: str
    since: float
    until: float


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked in all. `drift_s`: how often a tenth of all models change places in popularity; 0: never."""

    seconds: float
    per_s: float = 20.0
    zipf: float = 1.0
    """The model of rank k is asked for in proportion to k to the power of minus this."""
    busy_s: float = 1.5
    drift_s: float = 0.0
    mtbf_s: float = 6 * 3600.0
    """Mean time of a host between failures; 0: none fails."""
    away_s: float = 300.0


def popularity(models: Sequence[str], seed: int) -> tuple[str, ...]:
    """`models`, the one that is asked for most first."""
    return tuple(random.Random(f"popularity {seed}").sample(list(models), len(models)))


def asks(models: Sequence[str], shape: Shape, seed: int) -> list[Ask]:
    """Every request in order of time; one comes as independently of the others as at a public service (Poisson)."""
    draw = random.Random(f"asks {seed}")
    ranks = list(popularity(models, seed))
    weights = list(itertools.accumulate((rank + 1) ** -shape.zipf for rank in range(len(ranks))))
    found: list[Ask] = []
    now, drifts_at = 0.0, shape.drift_s or float("inf")
    while (now := now + draw.expovariate(shape.per_s)) < shape.seconds:
        while now >= drifts_at:
            places = draw.sample(range(len(ranks)), max(2, len(ranks) // 10))
            moved = [ranks[place] for place in places]
            for place, model in zip(places, moved[1:] + moved[:1], strict=True):
                ranks[place] = model
            drifts_at += shape.drift_s
        model = ranks[min(bisect.bisect(weights, draw.random() * weights[-1]), len(ranks) - 1)]
        found.append(Ask(now, model, draw.expovariate(1 / shape.busy_s)))
    return found


def outages(hosts: Sequence[str], shape: Shape, seed: int) -> list[Outage]:
    """Every failure in order of time; no host fails while it is away."""
    found: list[Outage] = []
    for host in hosts if shape.mtbf_s else ():
        draw = random.Random(f"outages {seed} {host}")
        now = 0.0
        while (now := now + draw.expovariate(1 / shape.mtbf_s)) < shape.seconds:
            found.append(Outage(host, now, now + shape.away_s))
            now += shape.away_s
    return sorted(found, key=lambda outage: (outage.since, outage.host))
