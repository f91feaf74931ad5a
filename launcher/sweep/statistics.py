"""Figures from samples, and a gain with its uncertainty from pairs of batches. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import exp, log, sqrt
from statistics import fmean, median

import msgspec

from launcher.ir.sweep import Gain, PointResult, Sample, Spread

RESAMPLES = 2000
LEVEL = 0.99
"""Confidence level of the bounds of a gain. With 90 %, one in twenty of equal settings would be called better."""
TRIMMED = 0.2
"""Share of pairs left out at either end: on a shared machine some batches meet another program's burst."""


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie, interpolated. Raises ValueError when there are none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def batch_speeds(samples: Iterable[Sample]) -> tuple[float, ...]:
    """Tokens per second of each batch: all generated tokens by the batch's duration, not a mean of streams."""
    ordered = sorted(samples, key=lambda s: s.batch)
    batches = (list(batch) for _, batch in groupby(ordered, key=lambda s: s.batch))
    return tuple(sum(s.predicted_n for s in batch) / batch[0].batch_s for batch in batches)


def summarise(result: PointResult, samples: Sequence[Sample]) -> PointResult:
    """`result` with the figures of its samples; there must be at least one."""
    speeds = batch_speeds(samples)
    drafted = sum(s.draft_n for s in samples)
    prompts = [s.prompt_n / s.prompt_ms * 1000 for s in samples if s.prompt_ms]  # none: all of it was in its cache
    return msgspec.structs.replace(
        result,
        together=fmean(speeds),
        prompt=median(prompts) if prompts else 0.0,
        generation=median(s.predicted_n / s.predicted_ms * 1000 for s in samples),
        first_token=_spread(s.latency_s - s.predicted_ms / 1000 for s in samples),
        latency=_spread(s.latency_s for s in samples),
        accepted=sum(s.draft_accepted for s in samples) / drafted if drafted else None,
        memory_bytes=max(s.memory_bytes for s in samples),
        batches=len(speeds),
    )


def with_expectation(result: PointResult, decode: tuple[float, float] | None) -> PointResult:
    """`result` with the expected speed of each of its requests, from that of a single one (`decode`).

    Of several at once each is between as fast as alone, if their tokens share one reading of the weights, and an n-th
    of it, if they only take turns.
    """
    if decode is None:
        return result
    low, high = decode[0] / result.in_flight, decode[1]
    ratio = result.generation / sqrt(low * high) if result.generation and low else None
    return msgspec.structs.replace(result, expected=(low, high), ratio=ratio)


def _spread(seconds: Iterable[float]) -> Spread:
    known = tuple(seconds)
    return Spread(p50=percentile(known, 0.5), p95=percentile(known, 0.95), p99=percentile(known, 0.99))


def with_multipliers(results: Sequence[PointResult]) -> tuple[PointResult, ...]:
    """`results` with p95 relative to that of one request at a time, with the same settings but the fewest slots."""
    done = []
    for result in results:
        alone = [
            (int(other.settings.get("slots", "0")), other.latency.p95)
            for other in results
            if other.in_flight == 1 and other.latency and _without_slots(other) == _without_slots(result)
        ]
        multiplier = result.latency.p95 / min(alone)[1] if result.latency and alone else None
        done.append(msgspec.structs.replace(result, multiplier=multiplier))
    return tuple(done)


def _without_slots(result: PointResult) -> tuple[str, dict[str, str]]:
    """The server, and its settings without slots."""
    return result.server, {field: value for field, value in result.settings.items() if field != "slots"}


def gain_of(pairs: Sequence[tuple[float, float]]) -> Gain:
    """How much faster the second of each pair is, with bounds by bootstrap over pairs.

    Pairs are measured side by side in time, so that what the machine does meanwhile affects both. The estimate is the
    trimmed mean of log ratios. Raises ValueError when there are no pairs.
    """
    ratios = [log(after / before) for before, after in pairs]
    if not ratios:
        raise ValueError("no pairs")
    draw = random.Random(1)  # noqa: S311 - resampling, no secret
    resampled = sorted(_trimmed(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    tail = (1 - LEVEL) / 2
    return Gain(
        gain=exp(_trimmed(ratios)) - 1,
        low=exp(percentile(resampled, tail)) - 1,
        high=exp(percentile(resampled, 1 - tail)) - 1,
        confidence=sum(r > 0 for r in resampled) / RESAMPLES,
        pairs=len(ratios),
    )


def _trimmed(values: Sequence[float]) -> float:
    """Mean without the share TRIMMED of the largest and of the smallest values."""
    left_out = int(len(values) * TRIMMED)
    kept = sorted(values)[left_out : len(values) - left_out]
    return sum(kept) / len(kept)
