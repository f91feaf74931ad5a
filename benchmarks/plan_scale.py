"""How planning grows with the fleet, ten servers a host: `python -m benchmarks.plan_scale`."""

from __future__ import annotations

import sys
import time

import msgspec

from launcher.ir.config import HostConfig
from launcher.plan import plan_fleet
from launcher.sizes import GIB
from tests.plan.fleets import LLAMA_8B, QWEN3_30B, SMOLLM2, catalog, fleet, hardware, model_file, server

SIZES = (125, 250, 500, 1000)
PER_HOST = 10
LIMIT_S = 2.0
GROWTH_LIMIT = 1.5
"""Seconds a server of the largest fleet over those of the smallest."""
ROUNDS = 3


def seconds(count: int) -> float:
    """CPU seconds of a plan of `count` servers, the best of three; planning is one thread and waits for nothing."""
    models = [model_file(a, name=n) for n, a in (("small", SMOLLM2), ("dense", LLAMA_8B), ("experts", QWEN3_30B))]
    hosts = {
        f"h{i:03}": HostConfig(address=f"10.0.{i // 250}.{i % 250 + 1}", api_key_file="/etc/launch/key")
        for i in range(-(-count // PER_HOST))
    }
    servers = {
        f"s{i:04}": server(model=models[i % 3].model, host=f"h{i // PER_HOST:03}", n_ctx=4096 + i % 7 * 1024)
        for i in range(count)
    }
    machine = msgspec.structs.replace(hardware(ram_bytes=1000 * GIB), hosts=hosts)
    config = fleet(servers, hardware=machine)
    found = catalog(*models)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        plan = plan_fleet(config, found, deployment="scale", input_digest="")
        best = min(best, time.process_time() - start)
        if len(plan.servers) != count or len(plan.devices) != len(hosts):
            raise RuntimeError(f"{len(plan.servers)} servers, {len(plan.devices)} devices")
    return best


def main() -> int:
    """0 where a thousand servers on a hundred hosts are planned within the limit, and growth is linear."""
    seconds(SIZES[0])  # the first plan pays for what is computed once
    took = [seconds(count) for count in SIZES]
    for count, s in zip(SIZES, took, strict=True):
        print(
            f"{count:>5} servers on {-(-count // PER_HOST):>3} hosts {s * 1000:8.1f} ms  {s / count * 1e6:7.1f} us each"
        )
    growth = took[-1] / SIZES[-1] / (took[0] / SIZES[0])
    print(f"a server of {SIZES[-1]} costs {growth:.2f} times one of {SIZES[0]}")
    return 0 if took[-1] <= LIMIT_S and growth <= GROWTH_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
