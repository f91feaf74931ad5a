"""What a llama-server of any build says of its buffers in its `no_alloc` pass, read by buffer and not by table."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launcher.engine import probe
from launcher.ir.config import LoadMode, ServerConfig
from launcher.plan.builds import build_number

END = "projected to use"
WORDS = ("--fit", "on", "--log-verbosity", "5", "--offline", "--host", "127.0.0.1", "--port", "0")
TIMEOUT_S = 60.0
ATTEMPTS = 2
"""At a dry run: one in tens of thousands aborts by chance (see `launcher.engine.prove.DryRunError`)."""
COMPUTE = re.compile(r"sched_reserve: +(\S+) +compute buffer size = *([\d.]+) MiB")
OTHERS = {
    "kv": re.compile(r"llama_kv_cache\w*: size = *([\d.]+) MiB"),
    "recurrent": re.compile(r"llama_memory_recurrent: size = *([\d.]+) MiB"),
    "output": re.compile(r"output buffer size = *([\d.]+) MiB"),
}


def flags(config: ServerConfig) -> list[str]:
    """The fields that these tests vary, but for the load mode, in words that every build knows."""
    found = ["-c", str(config.n_ctx), "-b", str(config.n_batch), "-ub", str(config.n_ubatch)]
    found += ["-ctk", config.cache_type_k, "-ctv", config.cache_type_v]
    found += ["-fa", "off" if config.flash_attention == "off" else "on"]  # as it is rendered: never `auto`
    found += ["-np", str(config.slots)] if config.slots is not None else []
    found += ["--kv-unified"] if config.kv_unified and config.slots is not None else []
    found += ["--swa-full"] if config.swa_full else []
    found += ["--embedding"] if config.embedding else []
    found += ["--n-cpu-moe", str(config.n_cpu_moe)] if config.n_cpu_moe else []
    found += [] if config.kv_offload else ["--no-kv-offload"]
    return found if config.repack else [*found, "--no-repack"]


OLD_LOAD_MODES = {
    "mmap": (),
    "none": ("--no-mmap",),
    "mlock": ("--no-mmap", "--mlock"),
    "mmap+mlock": ("--mlock",),
    "dio": ("--direct-io",),
}
"""Load modes in the words of builds before `--load-mode` (b10068)."""


@functools.cache
def number(binary: Path) -> int:
    """The build's number."""
    return build_number(probe(binary, None).name)


@functools.cache
def _help(binary: str) -> str:
    """What a build says of its flags."""
    return subprocess.run([binary, "--help"], capture_output=True, text=True, check=False, errors="replace").stdout


def load_words(binary: str | Path, mode: LoadMode) -> tuple[str, ...]:
    """How this build is told how to load weights."""
    return ("--load-mode", mode) if "--load-mode" in _help(str(binary)) else OLD_LOAD_MODES[mode]


def _log_of(command: Sequence[str]) -> str:
    """What a dry run says, up to its projection if it comes to that."""
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    log: list[str] = []
    with subprocess.Popen(
        command,
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
    return "".join(log)


def says(command: Sequence[str], devices: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """MiB of compute by device, and of K/V, states and output over all.

    `devices`: endpoint → our name; an RPC buffer is named by its endpoint, all others are the host's.
    """
    text = ""
    for _ in range(ATTEMPTS):
        text = _log_of([*command, *WORDS])
        if END in text:
            break
    else:
        pytest.fail(f"{' '.join(command)}\n{text[-1000:]}")
    compute: defaultdict[str, float] = defaultdict(float)
    for name, size in COMPUTE.findall(text):
        compute[next((ours for theirs, ours in devices.items() if theirs in name), "ram")] += float(size)
    return compute, {name: sum(map(float, found.findall(text))) for name, found in OTHERS.items()}
