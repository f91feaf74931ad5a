"""Placement run for real without a GPU: llama.cpp's RPC servers as devices, and each device's buffers as planned."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.catalog.files import describe
from launcher.engine.prove import stand_in_devices
from launcher.ir.config import GpuConfig, HardwareConfig, ServerConfig
from launcher.plan import estimate, settle
from launcher.sizes import GIB, MIB
from tests.tinymodels import write, write_parts
from tests.tinymodels.running import BARE, RunningServer

from .fleets import hardware, server

LINE = re.compile(r"\w+(?:\[([^\]]*)\])? +(model|KV|RS) buffer size = *([\d.]+) MiB")
"""An RPC buffer is named by its endpoint: every server calls its only device RPC0."""
ON_DEVICES = tuple(word for word in BARE if word not in ("--device", "none"))
LOGGED = 0.02
"""MiB to which two logged figures are exact."""

SPLITS: dict[str, dict[str, Any]] = {
    "all on one": {"devices": ("rpc0",), "n_gpu_layers": "all"},
    "some on one": {"devices": ("rpc0",), "n_gpu_layers": 11},
    "halves": {"n_gpu_layers": "all", "tensor_split": (1, 1)},
    "three to one": {"n_gpu_layers": "all", "tensor_split": (3, 1)},
    "the first has none": {"n_gpu_layers": "all", "tensor_split": (0, 1)},
    "some, uneven": {"n_gpu_layers": 20, "tensor_split": (16.5, 3.5)},
    "one layer on the second": {"n_gpu_layers": 30, "tensor_split": (28.5, 1.5)},
    "three devices": {"devices": ("rpc0", "rpc1", "rpc2"), "n_gpu_layers": "all", "tensor_split": (9.5, 13, 8.5)},
    "K/V stays": {"n_gpu_layers": "all", "tensor_split": (2, 1), "kv_offload": False},
}


def machine() -> HardwareConfig:
    """This CPU with three RPC devices."""
    cards = {f"rpc{i}": GpuConfig(backend="rpc", vram_bytes=GIB, endpoint=f"r{i}") for i in range(3)}
    return msgspec.structs.replace(hardware(features=("avx2",)), gpus=cards)


def measured(binary: Path, path: Path, config: ServerConfig) -> dict[str, dict[str, float]]:
    """MiB by device and kind, as the server logs them once it is ready."""
    flags = ["-c", str(config.n_ctx), "-np", str(config.slots), "-ngl", str(config.n_gpu_layers)]
    flags += ["--tensor-split", ",".join(f"{x:g}" for x in config.tensor_split)] if config.tensor_split else []
    flags += ["--n-cpu-moe", str(config.n_cpu_moe)] if config.n_cpu_moe else []
    flags += [] if config.kv_offload else ["--no-kv-offload"]
    flags += [] if config.repack else ["--no-repack"]
    names = ",".join(f"RPC{i}" for i in range(len(config.devices)))
    with stand_in_devices(binary, len(config.devices)) as endpoints:
        words = ["-m", path, *flags]
        words += ["--rpc", ",".join(endpoints), "--device", names] if endpoints else ["--device", "none"]
        with RunningServer(binary, *words, flags=(*ON_DEVICES, "-lv", "4")) as running:
            log = running.log()
    found: defaultdict[str, dict[str, float]] = defaultdict(lambda: {"model": 0.0, "KV": 0.0, "RS": 0.0})
    place = dict(zip(endpoints, config.devices, strict=True))
    for endpoint, kind, size in LINE.findall(log):
        found[place[endpoint] if endpoint else "ram"][kind] += float(size)
    return found


def compare(binary: Path, path: Path, config: ServerConfig) -> None:
    """Weights, K/V and recurrent state of every device and of the host, to the log's rounding."""
    model = describe(str(path))
    memory = estimate(model, settle(config, model, machine()).settings)
    real = measured(binary, path, config)
    assert set(real) - {"ram"} <= set(config.devices)
    for planned in memory:
        logged = real[planned.device]
        assert planned.model_bytes / MIB == pytest.approx(logged["model"], abs=LOGGED), planned.device
        assert planned.kv_bytes / MIB == pytest.approx(logged["KV"], abs=LOGGED), planned.device
        assert planned.recurrent_bytes / MIB == pytest.approx(logged["RS"], abs=LOGGED), planned.device


@pytest.mark.parametrize("split", SPLITS)
def test_layers_land_where_the_plan_says(llama_server: Path, tmp_path: Path, no_orphans: None, split: str) -> None:
    """A llama of 30 tiny layers over one to three devices."""
    config = server(**({"devices": ("rpc0", "rpc1"), "n_ctx": 1024} | SPLITS[split]))
    compare(llama_server, write("llama", tmp_path, n_layer=30), config)


@pytest.mark.parametrize("split", ["some, uneven", "three devices"])
def test_a_real_model_is_split_alike(llama_server: Path, smollm2: Path, no_orphans: None, split: str) -> None:
    """SmolLM2 has 30 layers, too: megabytes a layer, tied embeddings."""
    config = server(**({"devices": ("rpc0", "rpc1"), "n_ctx": 1024} | SPLITS[split]))
    compare(llama_server, smollm2, config)


@pytest.mark.parametrize("arch", ["qwen3moe", "granitehybrid", "gemma3"])
@pytest.mark.parametrize(
    "fields", [{"tensor_split": (1, 1)}, {"tensor_split": (3, 1), "n_cpu_moe": 1}], ids=["", "moe"]
)
def test_other_architectures_are_split_alike(
    llama_server: Path, tmp_path: Path, no_orphans: None, arch: str, fields: dict[str, Any]
) -> None:
    """Experts on the host, recurrent state with its layer, sliding windows."""
    config = server(**({"devices": ("rpc0", "rpc1"), "n_ctx": 2048, "n_gpu_layers": "all"} | fields))
    compare(llama_server, write(arch, tmp_path, n_layer=6) if arch == "qwen3moe" else write(arch, tmp_path), config)


@pytest.mark.parametrize("layers", [0, 3, 7, "all"])
def test_a_split_file_is_mapped_part_by_part(
    llama_server: Path, tmp_path: Path, no_orphans: None, layers: int | str
) -> None:
    """Of each part from the first to the last tensor that stays on the host, not across the parts between."""
    first, *_ = write_parts("llama", tmp_path, parts=4, n_layer=8)
    devices = ("rpc0",) if layers else ()
    config = server(devices=devices, n_ctx=512, n_gpu_layers=layers, repack=False)
    compare(llama_server, first, config)
