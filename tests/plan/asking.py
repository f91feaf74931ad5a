"""What a llama-server of any build says of its buffers in its `no_alloc` pass, read by buffer and not by table."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.ir.config import ServerConfig

from .test_real_server import flags

END = "projected to use"
WORDS = ("--fit", "on", "--log-verbosity", "5", "--offline", "--host", "127.0.0.1", "--port", "0")
TIMEOUT_S = 60.0
COMPUTE = re.compile(r"sched_reserve: +(\S+) +compute buffer size = *([\d.]+) MiB")
OTHERS = {
    "kv": re.compile(r"llama_kv_cache\w*: size = *([\d.]+) MiB"),
    "recurrent": re.compile(r"llama_memory_recurrent: size = *([\d.]+) MiB"),
    "output": re.compile(r"output buffer size = *([\d.]+) MiB"),
}


def words(binary: Path, path: Path, config: ServerConfig) -> list[str]:
    """The command line of a server without devices, in words that every build knows."""
    found = flags(config)
    at = found.index("--load-mode")
    shared = ["--kv-unified"] if config.kv_unified and config.slots is not None else []
    return [str(binary), "-m", str(path), *found[:at], *found[at + 2 :], *shared]


def says(command: Sequence[str], devices: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """MiB of compute by device, and of K/V, states and output over all.

    `devices`: endpoint → our name; an RPC buffer is named by its endpoint, all others are the host's.
    """
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    log: list[str] = []
    with subprocess.Popen(
        [*command, *WORDS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as child:
        alarm = threading.Timer(TIMEOUT_S, child.kill)
        alarm.start()
        try:
            for line in child.stdout or ():
                log.append(line)
                if END in line:
                    break
        finally:
            alarm.cancel()
            child.kill()
    text = "".join(log)
    if END not in text:
        pytest.fail(f"{' '.join(command)}\n{''.join(log[-8:])}")
    compute: defaultdict[str, float] = defaultdict(float)
    for name, size in COMPUTE.findall(text):
        compute[next((ours for theirs, ours in devices.items() if theirs in name), "ram")] += float(size)
    return compute, {name: sum(map(float, found.findall(text))) for name, found in OTHERS.items()}
