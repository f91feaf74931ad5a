"""`python -m benchmarks.dataplane [--rounds N] [--seconds S]`: the front beside direct and HAProxy, as ratios.

wrk and HAProxy come from Debian (`apt-get install wrk haproxy`). All sides are asked in turn in every round, so that
whatever else the machine does falls on all of them; medians of the rounds are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.dataplane import sides
from benchmarks.dataplane.front_process import KEY
from benchmarks.dataplane.idle import idle_streams
from benchmarks.dataplane.wrk import Figures, measure, script

CASES = {
    "p50 at c=1": (1, "/v1/chat/completions"),
    "requests/s at c=32": (32, "/v1/chat/completions"),
    "200-chunk streams/s at c=8": (8, "/stream"),
}
Results = dict[tuple[str, str], list[Figures]]


def main() -> None:
    """Alternate rounds, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    missing = [name for name in ("wrk", "haproxy") if shutil.which(name) is None]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; sudo apt-get install {' '.join(missing)}")
    results: Results = {}
    print(f"load of the machine before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plain = script(directory / "plain.lua", key=None)
        keyed = script(directory / "keyed.lua", key=KEY)
        ports = {side: sides.free_port() for side in ("direct", "HAProxy", "front", "front, guarded")}
        upstream = ports["direct"]
        argvs = {
            "direct": sides.instant(upstream),
            "HAProxy": sides.haproxy(ports["HAProxy"], upstream, directory),
            "front": sides.front(ports["front"], upstream),
            "front, guarded": sides.front(ports["front, guarded"], upstream, "--guarded"),
        }
        pids = {side: stack.enter_context(sides.running(argv, ports[side])) for side, argv in argvs.items()}
        for _ in range(options.rounds):
            for case, (clients, path) in CASES.items():
                for side, port in ports.items():
                    lua = keyed if side == "front, guarded" else plain
                    url = f"http://127.0.0.1:{port}{path}"
                    figures = measure(url, lua, clients=clients, seconds=options.seconds)
                    results.setdefault((case, side), []).append(figures)
        report(results, list(ports))
        grown = idle_streams(ports["front"], pids["front"], 1000)
        print(f"1000 idle streams: {grown / 2**20:.1f} MiB")


def report(results: Results, names: list[str]) -> None:
    """Medians, and what they are of direct's."""
    for case in CASES:
        print(case)
        for side in names:
            rounds = results[case, side]
            if case.startswith("p50"):
                here, direct = (statistics.median(r.p50_s for r in x) for x in (rounds, results[case, "direct"]))
                best = min(r.p50_s for r in rounds) - min(r.p50_s for r in results[case, "direct"])
                added = f"added {(here - direct) * 1e6:5.0f} µs, {best * 1e6:5.0f} µs between the best rounds"
                print(f"  {side:15} {here * 1e6:7.0f} µs  {added}")
            else:
                here, direct = (statistics.median(r.per_second for r in x) for x in (rounds, results[case, "direct"]))
                best = max(r.per_second for r in rounds) / max(r.per_second for r in results[case, "direct"])
                print(f"  {side:15} {here:7.0f} /s  {here / direct:6.2f} × direct, {best:.2f} × in the best rounds")


if __name__ == "__main__":
    main()
