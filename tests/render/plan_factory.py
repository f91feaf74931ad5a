"""Plans as values for the tests of this room: one plain CPU server, and fleets of any servers."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.ir.config import (
    ArchitectureConfig,
    CpuConfig,
    EngineConfig,
    FleetConfig,
    GpuConfig,
    HardwareConfig,
    ModelConfig,
    ModelFileConfig,
    ProfileConfig,
    ServerConfig,
    TierConfig,
)
from launcher.ir.plan import DeviceMemory, DevicePlan, FleetPlan, PlanTotals, ServerPlan

MIB = 1024**2

TIERS = {
    "hot": TierConfig(start="boot", oom_score_adjust=-500),
    "warm": TierConfig(start="demand", idle_timeout_s=300, expansion_threshold=4, oom_score_adjust=200),
    "cold": TierConfig(start="never"),
}


def server_plan(name: str = "frontdoor", **changes: Any) -> ServerPlan:
    """A small CPU server; any field may be changed."""
    fields: dict[str, Any] = {
        "name": name,
        "roles": (name,),
        "aliases": (),
        "tier": "hot",
        "engine": "default",
        "host": "127.0.0.1",
        "port": 8080,
        "model": "smollm2",
        "quantization": "q4_1",
        "model_path": "/models/smollm2-q4_1.gguf",
        "file_parts": ("/models/smollm2-q4_1.gguf",),
        "arch": "llama",
        "source": "declared",
        "slots": 2,
        "n_ctx": 2048,
        "n_ctx_per_slot": 1024,
        "n_ctx_train": 8192,
        "kv_unified": False,
        "n_batch": 2048,
        "n_ubatch": 512,
        "flash_attention": "auto",
        "cache_type_k": "f16",
        "cache_type_v": "f16",
        "swa_full": False,
        "context_checkpoints": 32,
        "cache_ram_mib": 256,
        "embedding": False,
        "pooling": None,
        "load_mode": "mmap",
        "repack": True,
        "projector_path": None,
        "expert_override": None,
        "devices": (),
        "n_gpu_layers": 0,
        "n_cpu_moe": 0,
        "tensor_split": (),
        "kv_offload": True,
        "threads": 2,
        "threads_batch": 2,
        "cpus": None,
        "numa": None,
        "draft": None,
        "draft_path": None,
        "ngram": None,
        "exclusive": None,
        "default": False,
        "after": (),
        "start_timeout_s": 60.0,
        "stall_timeout_s": 30.0,
        "request_timeout_s": 600.0,
        "stop_grace_s": 10.0,
        "fatal": True,
        "reasoning": "auto",
        "request_defaults": {},
        "extra_args": (),
        "env": {},
        "memory": (
            DeviceMemory(
                device="ram",
                model_bytes=187 * MIB,
                kv_bytes=45 * MIB,
                committed_bytes=208 * MIB,
                peak_bytes=240 * MIB,
                growth_bytes=256 * MIB,
                file_bytes=90 * MIB,
            ),
        ),
    }
    return ServerPlan(**{**fields, **changes})


def server_config(server: ServerPlan, **changes: Any) -> ServerConfig:
    """What might have been written to get `server`."""
    return ServerConfig(model=server.model, quantization=server.quantization, tier=server.tier, **changes)


def fleet_plan(*servers: ServerPlan, gpus: dict[str, GpuConfig] | None = None, **changes: Any) -> FleetPlan:
    """A plan of `servers`; keyword arguments change fields of its FleetConfig, or of the plan where it has them."""
    architecture = ArchitectureConfig(
        arch="llama", n_layer=30, n_embd=576, n_head=9, n_head_kv=3, n_vocab=49152, n_ctx_train=8192
    )
    model = ModelConfig(
        title="SmolLM2", source="test", architecture=architecture, files={"q4_1": ModelFileConfig(path="x.gguf")}
    )
    config: dict[str, Any] = {
        "hardware": HardwareConfig(
            name="epyc", cpu=CpuConfig(physical_cores=96, logical_cores=192), ram_bytes=1 << 40, gpus=gpus or {}
        ),
        "profile": ProfileConfig(name="hot_only"),
        "models": {"smollm2": model},
        "quantizations": {},
        "tiers": TIERS,
        "engines": {"default": EngineConfig(binary="llama-server", dialect="b10434")},
        "servers": {s.name: server_config(s) for s in servers},
    }
    plan_fields = set(FleetPlan.__struct_fields__)
    config.update({k: v for k, v in changes.items() if k not in plan_fields})
    plan: dict[str, Any] = {
        "deployment": "epyc-hot_only",
        "input_digest": "sha256:" + "0" * 64,
        "config": FleetConfig(**config),
        "tiers": TIERS,
        "devices": (
            DevicePlan(
                name="ram", kind="ram", capacity_bytes=1 << 40, budget_bytes=1 << 39, planned_bytes=1, peak_bytes=2
            ),
        ),
        "servers": servers,
        "services": (),
        "totals": PlanTotals(hot_ram_bytes=1, warm_ram_bytes=0, kv_bytes=0, threads=2),
        "findings": (),
    }
    plan.update({k: v for k, v in changes.items() if k in plan_fields})
    return msgspec.structs.replace(FleetPlan(**plan))
