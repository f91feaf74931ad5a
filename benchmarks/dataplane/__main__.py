"""`python -m benchmarks.dataplane [--rounds N] [--seconds S]`: the front beside direct, as ratios."""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks.dataplane.load import measure

HERE = Path(__file__).parent
CASES = {"p50 at c=1": (1, False), "requests/s at c=32": (32, False), "200-chunk streams/s at c=8": (8, True)}


def free_port() -> int:
    """A loopback port nobody holds now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(argv: list[str], port: int) -> Iterator[None]:
    """A process that listens on `port`, ended afterwards."""
    process = subprocess.Popen(argv)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv} does not listen on {port}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def main() -> None:
    """Alternate rounds, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    direct, front = free_port(), free_port()
    instant = [sys.executable, "-m", "benchmarks.dataplane.instant", str(direct)]
    ours = [str(HERE / "front"), str(front), f"http://127.0.0.1:{direct}"]
    results: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with running(instant, direct), running(ours, front):
        for _ in range(options.rounds):
            for name, (clients, stream) in CASES.items():
                for side, port in (("direct", direct), ("front", front)):
                    figures = measure(port, clients=clients, stream=stream, seconds=options.seconds)
                    results.setdefault((name, side), []).append(uvloop.run(figures))
    for name in CASES:
        column = 0 if name.startswith("p50") else 1
        a, b = (statistics.median(r[column] for r in results[name, side]) for side in ("direct", "front"))
        if column == 0:
            print(f"{name}: direct {a * 1e6:.0f} µs, front {b * 1e6:.0f} µs, added {(b - a) * 1e6:.0f} µs")
        else:
            print(f"{name}: direct {a:.0f}, front {b:.0f}, ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
