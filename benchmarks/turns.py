"""Exclusive servers that take turns: time swapping over time serving, collected turns against plain FIFO.

    python -m benchmarks.turns [--seconds N]

The real supervisor over processes that are simulated, in simulated time: loads, ends and answers take all of it. The
load is F21's of the cases, and an even one: four clients a model, each asks again as soon as it is answered.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.supervise.turns import Client, played

LOADS_S = (3.0, 12.0, 60.0)
LOADS: dict[str, Sequence[Client]] = {
    "3 ask for one, 1 for two every 0.5 s": (*[Client("one", 0.1)] * 3, Client("two", 0.1, 0.5)),
    "4 ask for each, answers of 5 s": tuple(Client(name, 5.0) for name in ("one", "two") for _ in range(4)),
}


def stays() -> Iterator[tuple[str, dict[str, float | None]]]:
    """What is compared."""
    for label, stay in (("0: plain FIFO", 0.0), ("absent: as it took to load", None), ("10", 10.0), ("60", 60.0)):
        yield label, {"one": stay, "two": stay}


def main() -> None:
    """Parse, play, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=900)
    seconds = parser.parse_args().seconds
    print("| load | loads in | `min_stay_s` | swaps | swapping / serving | answers | longest wait |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "servers").mkdir()
        for what, clients in LOADS.items():
            for load_s in LOADS_S:
                for label, stay in stays():
                    turns = played(Path(name), clients, stay, seconds=seconds, load_s=load_s)
                    served_s = max(one.ended for one in turns.asked) - turns.swapping_s
                    ratio = turns.swapping_s / served_s
                    longest = max(turns.longest_s("one"), turns.longest_s("two"))
                    cells = (f"{len(turns.swaps)}", f"{ratio:.2f}", f"{len(turns.asked):,}", f"{longest:.0f} s")
                    print(f"| {what} | {load_s:g} s | {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
