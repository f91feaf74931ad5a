"""`python -m benchmarks.cluster [--part planning|steady|drifting] [--hosts N] [--models N] [--seconds S]`."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.cluster import planning
from benchmarks.cluster.load import Shape, asks, outages, popularity
from benchmarks.cluster.policies import Policy, counted
from benchmarks.cluster.simulation import WARM_UP_S, Outcome, played
from benchmarks.cluster.site import made

POLICIES = (
    Policy(title="launch"),
    Policy(title="launch, with warm pools", pools=True),
    Policy(title="launch, one runtime for all hosts", one_runtime=True),
    Policy(title="launch, each model on two hosts", homes=2),
    Policy(title="static: the most asked that fit", static=True),
    Policy(title="LRU by count, as many as always fit", counts="safe"),
    Policy(title="LRU by count, as many as fit on average", counts="usual"),
)


def row(title: str, found: Outcome) -> str:
    """One line of the table."""
    others = found.asked - found.answered
    cells = (
        f"{found.at_once / found.asked:.2%}",
        f"{others / found.asked:.2%}",
        f"{found.wait_s(0.5):.1f} s",
        f"{found.wait_s(0.99):.1f} s",
        f"{found.loads:,}",
        f"{found.from_disk:,}",
        f"{found.swaps:,}",
        f"{found.out_of_memory:,}",
    )
    return f"| {title} | {' | '.join(cells)} |"


def simulate(hosts: int, models: int, shape: Shape, seed: int, only: str) -> None:
    """Every policy whose title has `only` under one load."""
    sites = {homes: made(hosts, models, homes, seed) for homes in (1, 2)}
    names = sorted({server.model for server in sites[1].servers})
    coming, failing = asks(names, shape, seed), outages(sites[1].hosts, shape, seed)
    print(
        f"{hosts} hosts, {models:,} models, {len(coming):,} requests in {shape.seconds / 3600:g} h (the first "
        f"{WARM_UP_S / 60:g} min not counted), {len(failing)} hosts fail for {shape.away_s / 60:g} min each, "
        + (f"a tenth of the models change places every {shape.drift_s / 60:g} min" if shape.drift_s else "no drift")
    )
    print("\n| policy | without a load | no answer | p50 wait | p99 wait | loads | from disk | swaps | out of memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for policy in (policy for policy in POLICIES if only in policy.title):
        most = counted(sites[policy.homes], policy).values()
        title = f"{policy.title} ({min(most)} to {max(most)} a host)" if most else policy.title
        begun = time.process_time()
        found = played(sites[policy.homes], policy, coming, failing, popularity(names, seed))
        print(row(title, found), flush=True)
        print(f"{title}: {found.said}, {time.process_time() - begun:.0f} s of CPU", file=sys.stderr, flush=True)
    print()


def main() -> int:
    """0 where planning keeps its limits."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--per-s", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="policies with this in their names")
    parser.add_argument("--part", choices=("planning", "steady", "drifting", "all"), default="all")
    options = parser.parse_args()
    kept = options.part not in ("planning", "all") or planning.main()
    for part, drift_s in (("steady", 0.0), ("drifting", 300.0)):
        if options.part in (part, "all"):
            shape = Shape(seconds=options.seconds, per_s=options.per_s, drift_s=drift_s)
            simulate(options.hosts, options.models, shape, options.seed, options.only)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
