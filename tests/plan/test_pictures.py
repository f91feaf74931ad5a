"""What image encoders take to compute, planned and as the real server's log says."""

from __future__ import annotations

import random
import re
import subprocess
import threading
from pathlib import Path

import pytest

from launcher.catalog.files import read_header
from launcher.catalog.projector import image_encoder
from launcher.plan.memory.process import image_compute
from launcher.sizes import MIB
from tests import tinymodels

TEXT = {
    "qwen2vl-projector": "qwen2vl",
    "qwen2.5vl-projector": "qwen2vl",
    "qwen3vl-projector": "qwen3vlmoe",
    "gemma3-projector": "gemma3",
    "pixtral-projector": "llama",
}
"""Projectors, and the architecture of a text model for each."""
_SAID = re.compile(r"compute buffer size = +([0-9.]+) MiB")
ROUNDED = MIB // 100


def _said(binary: Path, text: Path, projector: Path, *flags: str) -> int:
    """Bytes of the encoder's compute buffer by the log of a real start, which ends there."""
    words = [binary, "-m", text, "--mmproj", projector, "--host", "127.0.0.1", "--port", "0", "-c", "256", "-np", "1"]
    words += ["--device", "none", "--fit", "off", "--offline", "-lv", "4", "--cache-ram", "0", *flags]
    log: list[str] = []
    with subprocess.Popen(
        list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        alarm = threading.Timer(60, process.kill)
        alarm.start()
        try:
            for line in process.stdout:
                log.append(line)
                if "warmup: flash attention is" in line:
                    break
        finally:
            alarm.cancel()
            process.kill()
    sizes = [found[1] for line in log if "reserve_compute_meta" in line and (found := _SAID.search(line))]
    assert sizes, "".join(log[-20:])
    return int(float(sizes[-1]) * MIB)


def _held(binary: Path, folder: Path, kind: str, n_embd: int, n_ff: int, n_head: int, *, flash: bool) -> float:
    """Planned bytes over those of a server with a projector of these measures, which they must not be under."""
    head = {"n_head": 4, "head_dim": n_embd // 4} if kind.startswith("qwen2") else {}
    text = tinymodels.write(TEXT[kind], folder, n_embd=n_embd, **head)
    tower = {"head_dim": n_embd // n_head, "n_layer": 4}
    path = tinymodels.write(kind, folder, n_embd=n_embd, n_ff=n_ff, n_head=n_head, **tower)
    encoder = image_encoder(read_header(str(path), key=""))
    assert encoder is not None
    real = _said(binary, text, path, *(() if flash else ("-fa", "off")))
    planned = image_compute(encoder, encoder.patches[0], flash_attention=flash)
    assert planned >= real - ROUNDED, f"{kind} {n_embd} {n_ff} {n_head} {flash}: {real} of {planned}"
    return planned / real


@pytest.mark.parametrize(
    ("kind", "flash"),
    [
        ("qwen2vl-projector", True),
        ("qwen2.5vl-projector", True),
        ("qwen3vl-projector", True),
        ("gemma3-projector", True),
        ("pixtral-projector", True),
        ("pixtral-projector", False),
    ],
)
def test_an_encoder_takes_what_is_planned_and_not_more(
    kind: str, flash: bool, llama_server: Path, tmp_path: Path
) -> None:
    """One of each kind, wide enough that activations and not images decide."""
    assert _held(llama_server, tmp_path, kind, 256, 1024, 4, flash=flash) < 2


@pytest.mark.slow
def test_drawn_encoders_never_take_more_than_planned(llama_server: Path, tmp_path: Path) -> None:
    """Kinds, widths and flash attention drawn."""
    for seed in range(60):
        rng = random.Random(seed)  # noqa: S311 - draws shapes
        kind, n_head = rng.choice(tuple(TEXT)), rng.choice((2, 4, 8))
        n_embd = n_head * rng.choice((32, 64, 96))
        _held(
            llama_server, tmp_path, kind, n_embd, rng.choice((1, 2, 3, 4, 8)) * n_embd, n_head, flash=rng.random() < 0.8
        )
