"""Plans as values for the tests of this room: one plain CPU server, and fleets of any servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.errors import Finding
from launcher.ir.catalog import FilePart, ModelFile, ProjectorFile
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
from launcher.ir.dialect import Dialect
from launcher.ir.plan import DeviceMemory, DevicePlan, FleetPlan, PlanTotals, ServerPlan, Settings
from launcher.render.command import placement_prefix, server_words

MIB = 1024**2

TIERS = {
    "hot": TierConfig(start="boot", oom_score_adjust=-500),
    "warm": TierConfig(start="demand", idle_timeout_s=300, expansion_threshold=4, oom_score_adjust=200),
    "cold": TierConfig(start="never"),
}


ARCHITECTURE = ArchitectureConfig(
    arch="llama", n_layer=30, n_embd=576, n_head=9, n_head_kv=3, n_vocab=49152, n_ctx_train=8192
)
WRITTEN: dict[str, Any] = {
    "model": "smollm2",
    "quantization": "q4_1",
    "tier": "hot",
    "stall_timeout_s": 30.0,
    "request_timeout_s": 600.0,
    "fatal": True,
}
SETTLED: dict[str, Any] = {
    "slots": 2,
    "n_ctx": 2048,
    "n_ctx_seq": 1024,
    "n_ctx_per_slot": 1024,
    "kv_unified": False,
    "n_batch": 2048,
    "n_ubatch": 512,
    "causal": True,
    "embedding": False,
    "flash_attention": True,
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "swa_full": False,
    "context_checkpoints": 32,
    "cache_ram_mib": 256,
    "load_mode": "mmap",
    "repack": True,
    "n_expert_used": 0,
    "devices": (),
    "n_gpu_layers": 0,
    "n_cpu_moe": 0,
    "tensor_split": (),
    "kv_offload": True,
    "host_buffer": False,
    "cpu_features": frozenset(),
    "threads": 2,
    "threads_batch": 2,
    "draft_n_max": 0,
    "ngram": None,
}
MEMORY = DeviceMemory(
    device="ram",
    model_bytes=187 * MIB,
    kv_bytes=45 * MIB,
    committed_bytes=208 * MIB,
    peak_bytes=240 * MIB,
    growth_bytes=256 * MIB,
    file_bytes=90 * MIB,
)


def model_file(model: str, quantization: str, path: str, arch: str = "llama") -> ModelFile:
    """A file of `model` at `path`, as if declared."""
    return ModelFile(
        model=model,
        quantization=quantization,
        source="declared",
        architecture=msgspec.structs.replace(ARCHITECTURE, arch=arch),
        tensors=(),
        parts=(FilePart(path=path, size_bytes=0),),
    )


def server_plan(
    name: str = "frontdoor",
    *,
    model_path: str = "/models/smollm2-q4_1.gguf",
    arch: str = "llama",
    draft_path: str | None = None,
    projector_path: str | None = None,
    **changes: Any,
) -> ServerPlan:
    """A small CPU server; any field of its config, its settings and its plan may be changed by its name."""
    of_plan = set(ServerPlan.__struct_fields__) - {"model", "draft", "projector"}
    of_config, of_settings = set(ServerConfig.__struct_fields__), set(Settings.__struct_fields__)
    assert changes.keys() <= of_plan | of_config | of_settings
    written = {**WRITTEN, "roles": (name,), **{k: v for k, v in changes.items() if k in of_config}}
    settled = {**SETTLED, **{k: v for k, v in changes.items() if k in of_settings - {"pooling"}}}
    config, tier = ServerConfig(**written), TIERS[written["tier"]]
    planned = {
        "port": 8080,
        "default": config.default,
        "after": config.after,
        "start_timeout_s": 60.0,
        "memory": (MEMORY,),
        "tier": config.tier,
        "starts": tier.start,
        "initial": tier.start == "boot",
    }
    return ServerPlan(
        name=name,
        config=config,
        settings=Settings(**settled),
        model=model_file(config.model, config.quantization, model_path, arch),
        draft=model_file("a", "b", draft_path) if draft_path else None,
        projector=ProjectorFile(
            model=config.model, path=projector_path, tensor_bytes=0, compute_bytes=0, source="declared"
        )
        if projector_path
        else None,
        **{**planned, **{k: v for k, v in changes.items() if k in of_plan}},
    )


def fleet_plan(*servers: ServerPlan, gpus: dict[str, GpuConfig] | None = None, **changes: Any) -> FleetPlan:
    """A plan of `servers`; keyword arguments change fields of its FleetConfig, or of the plan where it has them."""
    model = ModelConfig(
        title="SmolLM2", source="test", architecture=ARCHITECTURE, files={"q4_1": ModelFileConfig(path="x.gguf")}
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
        "servers": {s.name: s.config for s in servers},
    }
    plan_fields = set(FleetPlan.__struct_fields__)
    config.update({k: v for k, v in changes.items() if k not in plan_fields})
    plan: dict[str, Any] = {
        "deployment": "epyc-hot_only",
        "input_digest": "sha256:" + "0" * 64,
        "config": FleetConfig(**config),
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
    whole = {s.name: s.config for s in plan["services"]}
    plan["config"] = msgspec.structs.replace(plan["config"], services=plan["config"].services or whole)
    return msgspec.structs.replace(FleetPlan(**plan))


def render_argv(
    server: ServerPlan, dialect: Dialect, binary: str, gpus: Mapping[str, GpuConfig] | None = None
) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """The command line of one server, its prefix included, and what `dialect` refuses of it."""
    words, findings = server_words(server, dialect, binary, gpus or {})
    return (*placement_prefix(server), *words), findings
