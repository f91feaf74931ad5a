"""How planning grows with the fleet, ten servers a host: `python -m benchmarks.plan_scale`.

Then the whole command, `launch plan -f`, on fleet files of servers that are all different: each with a context and a
batch of its own, and each with a model of its own; and, for comparison, of a hundred models.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
COMMAND_LIMITS_S = {1000: 2.0, 3000: 6.0}
"""CPU seconds of `launch plan -f` by servers, each with a model of its own."""
MODELS = 100


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


def different(count: int, models: int) -> dict[str, Any]:
    """A fleet file of `count` servers, no two alike, over `models` models that nobody has at hand."""
    architectures = ("llama", "qwen2", "qwen3")
    entries = {
        f"m{i:04}": {
            "title": f"model {i}",
            "source": "made up",
            "architecture": {
                "arch": architectures[i % 3],
                "n_layer": 16 + i % 17,
                "n_embd": 1024 + i % 5 * 512,
                "n_head": 16,
                "n_head_kv": 8,
                "n_ff": 4096 + i % 7 * 256,
                "n_vocab": 32000 + i,
                "n_ctx_train": 65536,
            },
            "files": {"q8_0": {"path": f"/nowhere/m{i:04}.gguf"}},
        }
        for i in range(models)
    }
    servers = {
        f"s{i:04}": {
            "model": f"m{i % models:04}",
            "quantization": "q8_0",
            "tier": "hot",
            "host": f"h{i // PER_HOST:03}",
            "port": 10000 + i,
            "slots": 1 + i % 4,
            "n_ctx_per_slot": 4096 + i * 4,
            "n_ubatch": 128 + i % 50 * 8,
            "threads": 1,
            "cache_ram_mib": 0,
        }
        for i in range(count)
    }
    hosts = {f"h{i:03}": {"address": f"10.0.{i // 250}.{i % 250 + 1}"} for i in range(-(-count // PER_HOST))}
    machine = {
        "name": "many",
        "cpu": {"physical_cores": 64, "logical_cores": 128, "features": ["avx2"]},
        "ram_bytes": "1000GiB",
        "hosts": hosts,
    }
    engines = {"default": {"binary": "/nowhere/llama-server", "dialect": "b11434"}}
    runtime = {"server_key_file": "/etc/launch/key"}
    return {"hardware": machine, "models": entries, "servers": servers, "engines": engines, "runtime": runtime}


def command_seconds(count: int, models: int) -> float:
    """CPU seconds of the whole command, the best of three. Raises CalledProcessError where it does not plan."""
    best = float("inf")
    with tempfile.TemporaryDirectory(prefix="launch-scale-") as folder:
        file = Path(folder, "fleet.yaml")
        file.write_bytes(msgspec.yaml.encode(different(count, models)))
        # as where `launch` is installed: with bytecode, which the first round writes
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = folder
        for _ in range(1 + ROUNDS):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            words = [sys.executable, "-c", "from launcher.cli import main; main()", "plan", "-f", str(file)]
            subprocess.run(words, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def of_the_command() -> bool:
    """Whether the whole command keeps its limits and grows no faster than the fleet; prints what it takes."""
    took = {count: command_seconds(count, count) for count in COMMAND_LIMITS_S}
    for count, s in took.items():
        few = command_seconds(count, MODELS)
        print(f"launch plan -f, {count} servers: {few:5.2f} s of {MODELS} models, {s:5.2f} s of {count} models")
    fewest, most = min(took), max(took)
    growth = took[most] / most / (took[fewest] / fewest)
    return growth <= 1 and all(s <= COMMAND_LIMITS_S[count] for count, s in took.items())


def main() -> int:
    """0 where plan and command keep their limits, and growth is linear."""
    seconds(SIZES[0])  # the first plan pays for what is computed once
    took = [seconds(count) for count in SIZES]
    for count, s in zip(SIZES, took, strict=True):
        print(
            f"{count:>5} servers on {-(-count // PER_HOST):>3} hosts {s * 1000:8.1f} ms  {s / count * 1e6:7.1f} us each"
        )
    growth = took[-1] / SIZES[-1] / (took[0] / SIZES[0])
    print(f"a server of {SIZES[-1]} costs {growth:.2f} times one of {SIZES[0]}")
    kept = took[-1] <= LIMIT_S and growth <= GROWTH_LIMIT
    return 0 if of_the_command() and kept else 1


if __name__ == "__main__":
    sys.exit(main())
