"""`launch plan hardware=epyc profile=hot_only` as a whole process, against a bare `@hydra.main` hello-world.

    python -m benchmarks.cli_start [ROUNDS]

Rounds alternate, so that a noisy machine disturbs both alike. The aim is a ratio of medians of at most 1.5.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELLO = """
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg):
    print("hello")

main()
"""
PLAN = ("plan", "hardware=epyc", "profile=hot_only")


def timed(argv: list[str], directory: Path) -> float:
    """Seconds of one whole process, its output thrown away."""
    start = time.perf_counter()
    subprocess.run(argv, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Alternates both commands and prints medians and their ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    launch = Path(sys.executable).with_name("launch")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "hello.py").write_text(HELLO)
        (directory / "conf").mkdir()
        (directory / "conf/config.yaml").write_text("greeting: hello\n")
        commands = {
            "bare @hydra.main": [sys.executable, "hello.py"],
            "launch plan": [str(launch), *PLAN],
            "launch plan --json": [str(launch), *PLAN, "--json"],
        }
        times: dict[str, list[float]] = {label: [] for label in commands}
        for label in [*commands] * (rounds + 1):
            times[label].append(timed(commands[label], directory))
    medians = {label: statistics.median(seen[1:]) for label, seen in times.items()}
    base = medians["bare @hydra.main"]
    for label, median in medians.items():
        print(f"{label:<20} {median * 1000:7.0f} ms  {median / base:5.2f} x")


if __name__ == "__main__":
    main()
