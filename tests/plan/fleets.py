"""Small fleets and models for plan tests, built as values: no file, no config language."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.ir.catalog import Catalog, FilePart, ModelFile, ProjectorFile, Tensor
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
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.plan import apply_waivers, plan_fleet
from launcher.sizes import GIB

BLOCK = {"q4_k": (144, 256), "q6_k": (210, 256), "q8_0": (34, 32), "q4_1": (20, 32), "f16": (2, 1), "f32": (4, 1)}

SMOLLM2 = ArchitectureConfig(
    arch="llama",
    n_layer=30,
    n_embd=576,
    n_head=9,
    n_head_kv=3,
    n_vocab=49152,
    n_ctx_train=8192,
    n_ff=1536,
    tied_embeddings=True,
    n_merges=48900,
)
GEMMA3_270M = ArchitectureConfig(
    arch="gemma3",
    n_layer=18,
    n_embd=640,
    n_head=4,
    n_head_kv=1,
    n_vocab=262144,
    n_ctx_train=32768,
    n_ff=2048,
    key_length=256,
    value_length=256,
    n_swa=512,
    tokenizer="llama",
)
LLAMA_8B = ArchitectureConfig(
    arch="llama",
    n_layer=32,
    n_embd=4096,
    n_head=32,
    n_head_kv=8,
    n_vocab=128256,
    n_ctx_train=131072,
    n_ff=14336,
)
QWEN3_30B = ArchitectureConfig(
    arch="qwen3moe",
    n_layer=48,
    n_embd=2048,
    n_head=32,
    n_head_kv=4,
    n_vocab=151936,
    n_ctx_train=262144,
    n_ff=6144,
    key_length=128,
    value_length=128,
    n_expert=128,
    n_expert_used=8,
    n_ff_exp=768,
    n_expert_used_min=4,
)
TINY = ArchitectureConfig(
    arch="llama", n_layer=2, n_embd=64, n_head=4, n_head_kv=2, n_vocab=320, n_ctx_train=8192, n_ff=128
)
HYBRID = ArchitectureConfig(
    arch="granitehybrid",
    n_layer=4,
    n_embd=64,
    n_head=4,
    n_head_kv=(0, 0, 2, 0),
    n_vocab=320,
    n_ctx_train=8192,
    n_ff=128,
    ssm_d_conv=4,
    ssm_d_inner=128,
    ssm_d_state=16,
    ssm_n_group=1,
    ssm_dt_rank=8,
)
MLA = ArchitectureConfig(
    arch="deepseek2",
    n_layer=2,
    n_embd=64,
    n_head=4,
    n_head_kv=1,
    n_vocab=320,
    n_ctx_train=8192,
    n_ff=128,
    key_length=64,
    value_length=32,
    kv_lora_rank=32,
    rope_dim=32,
    key_length_mla=32,
    value_length_mla=32,
)


def tensor(name: str, kind: str, *shape: int) -> Tensor:
    """A tensor of GGML type `kind`; its size by the type's blocks."""
    size, block = BLOCK[kind]
    n = 1
    for dim in shape:
        n *= dim
    return Tensor(name=name, type=kind, shape=shape, size_bytes=n * size // block)


def tensors(arch: ArchitectureConfig, kind: str = "q4_k", *, embedding: str = "q6_k") -> tuple[Tensor, ...]:
    """The matrices of a llama-like model, dense or of experts, with its norms."""
    head = arch.key_length or arch.n_embd // (arch.n_head if isinstance(arch.n_head, int) else arch.n_head[0])
    q = head * (arch.n_head if isinstance(arch.n_head, int) else max(arch.n_head))
    kv = head * (arch.n_head_kv if isinstance(arch.n_head_kv, int) else max(arch.n_head_kv))
    n_ff = arch.n_ff if isinstance(arch.n_ff, int) else max(arch.n_ff)
    found = [tensor("token_embd.weight", embedding, arch.n_embd, arch.n_vocab)]
    for il in range(arch.n_layer):
        block = f"blk.{il}."
        found += [
            tensor(f"{block}attn_norm.weight", "f32", arch.n_embd),
            tensor(f"{block}attn_q.weight", kind, arch.n_embd, q),
            tensor(f"{block}attn_k.weight", kind, arch.n_embd, kv),
            tensor(f"{block}attn_v.weight", kind, arch.n_embd, kv),
            tensor(f"{block}attn_output.weight", kind, q, arch.n_embd),
            tensor(f"{block}ffn_norm.weight", "f32", arch.n_embd),
        ]
        if arch.n_expert:
            found += [
                tensor(f"{block}ffn_gate_inp.weight", "f32", arch.n_embd, arch.n_expert),
                tensor(f"{block}ffn_gate_exps.weight", kind, arch.n_embd, arch.n_ff_exp, arch.n_expert),
                tensor(f"{block}ffn_up_exps.weight", kind, arch.n_embd, arch.n_ff_exp, arch.n_expert),
                tensor(f"{block}ffn_down_exps.weight", kind, arch.n_ff_exp, arch.n_embd, arch.n_expert),
            ]
        else:
            found += [
                tensor(f"{block}ffn_gate.weight", kind, arch.n_embd, n_ff),
                tensor(f"{block}ffn_up.weight", kind, arch.n_embd, n_ff),
                tensor(f"{block}ffn_down.weight", kind, n_ff, arch.n_embd),
            ]
    found.append(tensor("output_norm.weight", "f32", arch.n_embd))
    if not arch.tied_embeddings:
        found.append(tensor("output.weight", embedding, arch.n_embd, arch.n_vocab))
    return tuple(found)


def model_file(
    arch: ArchitectureConfig = TINY,
    *,
    name: str = "tiny",
    quantization: str = "q8_0",
    kind: str = "q8_0",
    embedding: str = "q8_0",
    path: str | None = None,
) -> ModelFile:
    """A model whose file holds exactly its tensors."""
    made = tensors(arch, kind, embedding=embedding)
    return ModelFile(
        model=name,
        quantization=quantization,
        source="declared",
        architecture=arch,
        tensors=made,
        parts=(
            FilePart(path=path or f"/models/{name}-{quantization}.gguf", size_bytes=sum(t.size_bytes for t in made)),
        ),
    )


def server(**fields: Any) -> ServerConfig:
    """A server of the tiny model on a small context without a prompt cache."""
    given = {"model": "tiny", "quantization": "q8_0", "tier": "hot", "slots": 1, "n_ctx": 512, "cache_ram_mib": 0}
    return ServerConfig(**(given | {"threads": 1} | fields))


def hardware(*, gpus: dict[str, int] | None = None, features: tuple[str, ...] = (), **fields: Any) -> HardwareConfig:
    """A host of 8 cores and 64 GiB; `gpus` are bytes of VRAM by name (names start with their backend)."""
    cards = {
        n: GpuConfig(backend=n.rstrip("0123456789"), vram_bytes=size, process_bytes=0)
        for n, size in (gpus or {}).items()
    }  # type: ignore[arg-type] # the names in these tests are backends
    cpu = fields.pop("cpu", CpuConfig(physical_cores=8, logical_cores=16, features=features))
    return HardwareConfig(**({"name": "host", "cpu": cpu, "ram_bytes": 64 * GIB, "gpus": cards} | fields))


def fleet(servers: dict[str, ServerConfig], **fields: Any) -> FleetConfig:
    """A fleet of `servers` on ports from 9001, in tiers hot, warm and cold."""
    given: dict[str, Any] = {
        "hardware": hardware(),
        "profile": ProfileConfig(name="test"),
        "models": {},
        "quantizations": {},
        "tiers": {
            "hot": TierConfig(start="boot"),
            "warm": TierConfig(start="demand"),
            "cold": TierConfig(start="never"),
        },
        "engines": {"default": EngineConfig(binary="llama-server", dialect="b10434")},
        "ports": {name: 9001 + i for i, name in enumerate(servers)},
        "servers": servers,
    }
    return FleetConfig(**(given | fields))


def catalog(*models: ModelFile, projectors: dict[str, ProjectorFile] | None = None) -> Catalog:
    """A catalogue of `models`; the tiny model when none is given."""
    found = models or (model_file(),)
    return Catalog(files={f"{m.model}@{m.quantization}": m for m in found}, projectors=projectors or {})


def planned(servers: dict[str, ServerConfig], *models: ModelFile, **fields: Any) -> FleetPlan:
    """The plan of such a fleet, its waivers applied as the compiler does."""
    projectors = fields.pop("projectors", None)
    plan = plan_fleet(
        fleet(servers, **fields), catalog(*models, projectors=projectors), deployment="test", input_digest="sha256:0"
    )
    return msgspec.structs.replace(plan, findings=apply_waivers(plan.config, plan.findings))


def only(plan: FleetPlan, name: str) -> ServerPlan:
    """The server of that name."""
    return next(s for s in plan.servers if s.name == name)


def codes(plan: FleetPlan) -> list[str]:
    """`severity code` of every finding, in order."""
    return [f"{f.severity} {f.code}" for f in plan.findings]


def declared(name: str, arch: ArchitectureConfig, files: dict[str, int]) -> ModelConfig:
    """A model entry with files of those sizes by quantization."""
    entries = {q: ModelFileConfig(path=f"{name}-{q}.gguf", bytes=size) for q, size in files.items()}
    return ModelConfig(title=name, source="test", architecture=arch, files=entries)


def with_fields(architecture: ArchitectureConfig, /, **fields: Any) -> ArchitectureConfig:
    """`architecture` with other numbers."""
    return msgspec.structs.replace(architecture, **fields)
