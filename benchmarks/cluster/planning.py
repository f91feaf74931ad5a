"""CPU seconds of planning ten servers a host, up to ten thousand: of the planner, and of the whole command."""

from __future__ import annotations

from benchmarks.plan_scale import PER_HOST, command_seconds, seconds

SIZES = (1250, 2500, 5000, 10_000)
LIMIT_S = 20.0
GROWTH_LIMIT = 1.5
"""Seconds a server of the largest fleet over those of the smallest."""


def main() -> bool:
    """Whether both keep the limit and grow no faster than the fleet; prints what they take."""
    seconds(SIZES[0])  # the first plan pays for what is computed once
    kept = True
    for what, took in (
        ("the planner", {count: seconds(count) for count in SIZES}),
        ("launch plan -f, every server another model", {count: command_seconds(count, count) for count in SIZES}),
    ):
        print(f"| {what} | CPU | a server |\n| --- | --- | --- |")
        for count, s in took.items():
            print(f"| {count:,} servers on {count // PER_HOST:,} hosts | {s:.2f} s | {s / count * 1e6:.0f} µs |")
        growth = took[SIZES[-1]] / SIZES[-1] / (took[SIZES[0]] / SIZES[0])
        print(f"\na server of {SIZES[-1]:,} costs {growth:.2f} times one of {SIZES[0]:,}\n", flush=True)
        kept = kept and took[SIZES[-1]] <= LIMIT_S and growth <= GROWTH_LIMIT
    return kept
