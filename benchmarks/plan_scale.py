"""How planning grows with the fleet: `python -m benchmarks.plan_scale`. One host: a config has no more than one."""

from __future__ import annotations

import sys
import time

from launcher.plan import plan_fleet
from launcher.sizes import GIB
from tests.plan.fleets import LLAMA_8B, QWEN3_30B, SMOLLM2, catalog, fleet, hardware, model_file, server

SIZES = (125, 250, 500, 1000)
LIMIT_S = 2.0
ROUNDS = 3


def seconds(count: int) -> float:
    """Best of three plans of `count` servers of three models on a host that holds them."""
    models = [model_file(a, name=n) for n, a in (("small", SMOLLM2), ("dense", LLAMA_8B), ("experts", QWEN3_30B))]
    servers = {f"s{i:04}": server(model=models[i % 3].model, n_ctx=4096 + i % 7 * 1024) for i in range(count)}
    config = fleet(servers, hardware=hardware(ram_bytes=100_000 * GIB))
    found = catalog(*models)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        plan_fleet(config, found, deployment="scale", input_digest="")
        best = min(best, time.perf_counter() - start)
    return best


def main() -> int:
    """0 where a thousand servers are planned within the limit."""
    took = [seconds(count) for count in SIZES]
    for count, s in zip(SIZES, took, strict=True):
        print(f"{count:>5} servers {s * 1000:8.1f} ms  {s / count * 1e6:7.1f} us a server")
    return 0 if took[-1] <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
