"""`python -m benchmarks.sweep.table`: the server-stack document's table of a concurrency sweep, by one `launch sweep`.

Three servers as there, in small: the front door a mixture of experts and the coder dense (random weights, written
first), the worker SmolLM2; each with one slot, and tried with two and four. What is printed is what the command prints;
`docs/sweep.md` has it. Wants a quiet machine, 2 GB of disk and of RAM, and a quarter of an hour.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.speed import LETTERS, MODELS, SMOLLM2
from tests.tinymodels import write

SERVERS = {"frontdoor": "experts-q4", "coder": "dense-q4", "worker": ""}
"""Server → its random model; the worker has SmolLM2."""


def fleet(folder: Path, threads: int) -> Path:
    """The fleet's file; models that `folder` has already are not written again."""
    common = {"slots": 1, "n_ctx_per_slot": 512, "cache_ram_mib": 0, "devices": [], "threads": threads}
    servers = {}
    for name, random in SERVERS.items():
        if not random:
            servers[name] = common | {"file": SMOLLM2}
            continue
        file = folder / f"{random}.gguf"
        if not file.exists():
            arch, quantization, shape = MODELS[random]
            write(arch, folder, quantization=quantization, **shape).rename(file)
        servers[name] = common | LETTERS | {"file": str(file)}
    path = folder / "stack.yaml"
    path.write_bytes(msgspec.yaml.encode({"servers": servers}))
    return path


def main() -> int:
    """The exit code of `launch sweep`, which gets every other option (`--batches 3`)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep.table")
    parser.add_argument("--models", type=Path, help="where they are kept for the next time; default: nowhere")
    parser.add_argument("--slots", default="1,2,4")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--svg", type=Path, default=Path("docs/sweep-stack.svg"))
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="launch-stack-") as name:
        file = fleet(options.models or Path(name), options.threads)
        env = os.environ | {"XDG_STATE_HOME": str(Path(name, "state"))}
        launch = Path(sys.executable).with_name("launch")
        words = ("sweep", *SERVERS, f"slots={options.slots}", "-f", str(file), "--svg", str(options.svg.absolute()))
        command = [str(launch), *words, "--n-predict", "32", "--prompt-tokens", "64", *more]
        return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
