"""The closed form against processes that were measured (MEMORY.md, "Measured processes")."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from launcher.ir.config import ArchitectureConfig, GpuConfig
from launcher.plan import estimate, settle
from launcher.plan.memory.process import LIBRARIES
from launcher.sizes import GIB, MIB

from .fleets import GEMMA3_270M, LLAMA_8B, QWEN3_30B, SMOLLM2, hardware, model_file, server, tensors

COMPUTE_OVER = 1.25
AMX = ("amx_int8", "avx512f", "avx2")
SMOLLM2_ROWS: list[tuple[dict[str, Any], float, float, float, float]] = [
    ({"n_ctx": 4096}, 90, 17.51, 207.9, 223.1),
    ({"n_ctx": 8192, "slots": None}, 180, 21.51, 299.2, 314.4),
    ({"n_ctx": 5000, "slots": 3}, 118.125, 15.29, 236.8, 252.0),
    ({"n_ctx": 8192, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 95.625, 20.42, 213.9, 229.1),
    ({"n_ctx": 8192, "n_ubatch": 2048}, 180, 86.05, 298.1, 327.3),
    ({"n_ctx": 4096, "flash_attention": "off"}, 90, 86.38, 208.0, 240.8),
    ({"n_ctx": 4096, "load_mode": "none"}, 90, 17.51, 237.1, 252.3),
    ({"n_ctx": 4096, "repack": False}, 90, 17.51, 112.4, 127.6),
]
"""Flags; KV and compute (as the server logged it) in MiB; anonymous memory measured at load and after a request."""


@pytest.mark.parametrize(("flags", "kv", "compute", "at_load", "after"), SMOLLM2_ROWS)
def test_smollm2_rows(flags: dict[str, Any], kv: float, compute: float, at_load: float, after: float) -> None:
    """KV exact; compute a close bound; what the process really took is never above the plan."""
    model = model_file(SMOLLM2, kind="q4_1", embedding="q8_0")
    settings = settle(server(**flags), model, hardware(features=AMX)).settings
    (ram,) = estimate(model, settings)
    assert ram.kv_bytes / MIB == kv
    assert compute <= ram.compute_bytes / MIB <= compute * COMPUTE_OVER
    uncomputed = ram.committed_bytes - ram.compute_bytes - LIBRARIES
    assert at_load <= uncomputed / MIB <= at_load * 1.1 + 1
    assert after <= (ram.peak_bytes - LIBRARIES) / MIB


def test_smollm2_weights_are_mapped_and_copied() -> None:
    """187.44 MiB with AMX (92.10 mapped), 124.16 without mmap, 92.10 without repacking."""
    model = model_file(SMOLLM2, kind="q4_1", embedding="q8_0")
    rows: dict[str, tuple[dict[str, Any], float]] = {
        "mmap": ({}, 187.44),
        "none": ({"load_mode": "none"}, 124.16),
        "plain": ({"repack": False}, 92.10),
    }
    for flags, mib in rows.values():
        (ram,) = estimate(model, settle(server(**flags), model, hardware(features=AMX)).settings)
        assert ram.model_bytes / MIB == pytest.approx(mib, abs=0.02)
        assert ram.file_bytes / MIB == pytest.approx(0 if flags.get("load_mode") else 92.10, abs=0.02)


@pytest.mark.parametrize(("swa_full", "kv", "compute"), [(False, 111, 50.77), (True, 576, 81.77)])
def test_gemma3_rows(swa_full: bool, kv: float, compute: float) -> None:
    """Sliding layers keep a window; with swa_full everything."""
    model = model_file(GEMMA3_270M)
    settings = settle(server(n_ctx=32768, swa_full=swa_full), model, hardware()).settings
    (ram,) = estimate(model, settings)
    assert ram.kv_bytes / MIB == kv
    assert compute <= ram.compute_bytes / MIB <= compute * COMPUTE_OVER


def on_device(arch: ArchitectureConfig, **flags: Any) -> tuple[tuple[float, float, float], tuple[float, float], float]:
    """(weights, KV, compute) of the stand-in GPU and of the host in MiB, and the host's copies of weights.

    The figures are those of a dry run, which counts tensors where a mapping has a range: hence no mmap here.
    """
    host = hardware(features=AMX)
    rpc = GpuConfig(backend="rpc", vram_bytes=80 * GIB, endpoint="127.0.0.1:50052")
    host = msgspec.structs.replace(host, gpus={"rpc0": rpc})
    model = model_file(arch, kind="q4_k", embedding="q6_k")
    settings = settle(server(n_ctx=8192, load_mode="none", devices=("rpc0",), **flags), model, host).settings
    ram, gpu = estimate(model, settings)
    plain = tensors(arch, "q4_k", embedding="q6_k")[0].size_bytes
    copies = ram.model_bytes - plain
    return (
        (gpu.model_bytes / MIB, gpu.kv_bytes / MIB, gpu.compute_bytes / MIB),
        (ram.kv_bytes / MIB, ram.compute_bytes / MIB),
        copies / MIB,
    )


@pytest.mark.parametrize(
    ("flags", "on_card", "on_host", "copies"),
    [
        ({"n_gpu_layers": 99}, (4155, 1024, 116), (0, 24), 0),
        ({"n_gpu_layers": 32}, (4038, 992, 108), (32, 124), 120),
        ({"n_gpu_layers": 16}, (2166, 480, 108), (544, 124), 2044),
        ({"n_gpu_layers": 99, "kv_offload": False}, (4155, 0, 108), (1024, 24), 0),
    ],
)
def test_llama_8b_on_a_stand_in_gpu(
    flags: dict[str, Any], on_card: tuple[int, int, int], on_host: tuple[int, int], copies: float
) -> None:
    """Layers, their KV and their copies land where the real scheduler put them; compute is never under."""
    gpu, host, copied = on_device(LLAMA_8B, **flags)
    assert gpu[0] == pytest.approx(on_card[0], abs=1.5)
    assert (gpu[1], host[0]) == (on_card[1], on_host[0])
    assert gpu[2] >= on_card[2]
    assert host[1] >= on_host[1]
    assert copied == pytest.approx(copies, abs=2)


@pytest.mark.parametrize(
    ("flags", "weights", "compute", "copies"),
    [
        ({}, 16330, 92, 0),
        ({"n_cpu_moe": 999}, 778, 56, 15552),
        ({"n_cpu_moe": 20}, 9850, 56, 6480),
    ],
)
def test_qwen3_30b_experts_on_the_host(flags: dict[str, Any], weights: float, compute: float, copies: float) -> None:
    """--cpu-moe and --n-cpu-moe move expert banks, which the CPU repacks; the KV stays with its layers."""
    gpu, _, copied = on_device(QWEN3_30B, n_gpu_layers=99, **flags)
    assert gpu[0] == pytest.approx(weights, abs=2)
    assert gpu[1] == 768
    assert gpu[2] >= compute
    assert copied == pytest.approx(copies, abs=2)
