"""Models and servers drawn at random: dimensions, contexts, slots and flags that no formula was made for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from launcher.catalog.declared import synthesise
from launcher.catalog.files import describe
from launcher.catalog.mix import MIXES
from launcher.catalog.sparse import write_sparse
from launcher.ir.architectures import complete
from launcher.ir.catalog import FilePart, ModelFile
from launcher.ir.config import ArchitectureConfig, ServerConfig
from tests.tinymodels.full_size import SHAPES, write_full_size

from .fleets import server

ATTENTION_ONLY = ("llama", "mistral3", "qwen2", "qwen3", "granite", "olmo2", "phi3", "qwen2vl", "qwen3vl")
SLIDING = ("gemma2", "gemma3", "gpt-oss")
EXPERTS = ("qwen2moe", "qwen3moe", "qwen3vlmoe", "granitemoe", "glm4moe", "gpt-oss", "lfm2moe")
LATENT = ("deepseek2", "deepseek32", "glm-dsa")
FURTHER = frozenset({"qwen35", "qwen35moe", "glm4moe", "deepseek32", "glm-dsa"})
"""May have a layer for further tokens."""
DELTA_NETS = ("qwen3next", "qwen35", "qwen35moe")
MAMBA = ("granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1")
ENCODERS = ("bert", "gemma-embedding")
ARCHITECTURES = tuple(
    sorted(
        {*ATTENTION_ONLY, *SLIDING, *EXPERTS, *LATENT, *DELTA_NETS, *MAMBA, *ENCODERS, "gemma", "lfm2", "llama-experts"}
    )
)
"""`llama-experts` is a llama of experts (Mixtral)."""
EMBEDS_ONLY = frozenset(ENCODERS)
SQUARE = frozenset(
    {
        *("qwen2", "qwen2vl", "qwen2moe", "bert", "phi3", "granite"),
        *("granitemoe", "gpt-oss", "gemma", "olmo2", "lfm2", "lfm2moe"),
    }
)
"""As wide as all query heads together."""
MANY_SLOTS, EXPERTS_ON_HOST, KV_ON_HOST, WITH_FURTHER = 0.4, 0.4, 0.15, 0.5
"""Share of draws."""
FULL_SIZE = tuple(sorted(SHAPES))
UNTIED = frozenset({"gpt-oss", "qwen2moe", "olmo2"})
TIED = frozenset({"gemma", "gemma2", "gemma3", *ENCODERS})


def architecture(rng: random.Random, name: str) -> ArchitectureConfig:
    """Sizes within what llama.cpp loads; small enough that a header is written in milliseconds."""
    head = rng.choice([32, 64, 80, 96, 128])
    kv = 1 if name in LATENT else rng.choice([1, 2, 4])
    n_head = kv * rng.choice([1, 2, 3, 4, 8])
    width = rng.randrange(2, 24) * 64
    square = name in SQUARE
    fields: dict[str, Any] = {
        "arch": name.removesuffix("-experts"),
        "n_layer": rng.randrange(3, 10),
        "n_embd": head * n_head if square else width,
        "n_head": n_head,
        "n_head_kv": n_head if name in ENCODERS else kv,
        "n_vocab": rng.randrange(300, 60_000),
        "n_ctx_train": 1 << rng.randrange(12, 17),
        "n_ff": rng.randrange(1, 60) * 64,
        "key_length": head,
        "value_length": head,
        "tied_embeddings": name in TIED or (name not in UNTIED and rng.random() < 0.3),
        "attention_bias": name in {"qwen2", "qwen2vl", "qwen2moe"} or (name == "glm4moe" and rng.random() < 0.5),
    }
    fields |= _experts(rng, name, fields) | _recurrent(rng, name, fields)
    if name.startswith("qwen3vl"):
        fields["n_deepstack"] = rng.choice([0, 1, 2])
    if name in SLIDING:
        fields["n_swa"] = rng.choice([128, 512, 1024])
    if name in FURTHER and rng.random() < WITH_FURTHER:
        fields |= {"n_layer": fields["n_layer"] + 1, "n_layer_nextn": 1}
    if name in LATENT:
        lora, rope, own = 32 * rng.randrange(2, 17), rng.choice([16, 32, 64]), rng.choice([32, 64, 128])
        fields |= {"kv_lora_rank": lora, "rope_dim": rope, "key_length": lora + rope, "value_length": lora}
        fields |= {"key_length_mla": own + rope, "value_length_mla": own, "q_lora_rank": rng.choice([192, 512])}
    if name in LATENT[1:]:
        fields |= {"indexer_n_head": rng.choice([16, 32, 64]), "indexer_key_length": 128, "indexer_top_k": 256}
        fields |= {"n_head": rng.choice([16, 32, 64]), "n_embd": 256 * rng.randrange(2, 9)}
        fields |= {"rope_dim": 64, "key_length": lora + 64, "key_length_mla": own + 64}
        if name == "glm-dsa" and rng.random() < WITH_FURTHER:
            fields["indexer_types"] = tuple(
                il % 3 == 0 for il in range(fields["n_layer"] - fields.get("n_layer_nextn", 0))
            )
    if name in ENCODERS:
        fields |= {"causal": False, "n_ctx_train": 2048, "pooling": rng.choice(["none", "mean", "cls", None])}
        fields |= {"n_token_types": 2} if name == "bert" else {"n_swa": 512}
    return ArchitectureConfig(**fields)


def _experts(rng: random.Random, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Experts, where the architecture has them; a hybrid may do without."""
    always = name in EXPERTS or name in LATENT or name in {"qwen35moe", "qwen3next", "nemotron_h_moe", "llama-experts"}
    if not always and not (name == "granitehybrid" and rng.random() < 0.5):
        return {}
    count = rng.choice([4, 8, 16, 40])
    found = {"n_expert": count, "n_expert_used": rng.randrange(1, min(count, 9)), "n_ff_exp": rng.randrange(1, 20) * 32}
    if name in {"llama-experts", "granitemoe"}:
        found["n_ff_exp"] = fields["n_ff"]
    if name in {"qwen2moe", "granitehybrid", "nemotron_h_moe", *DELTA_NETS}:
        found["n_ff_shexp"] = rng.randrange(1, 20) * 32
    if name in {*LATENT, "glm4moe"}:
        found |= {"n_expert_shared": rng.choice([1, 2]), "n_layer_dense_lead": 1}
    if name == "lfm2moe":
        found["n_layer_dense_lead"] = 1
    return found


def _recurrent(rng: random.Random, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Recurrent layers among the others."""
    n, kv = fields["n_layer"], fields["n_head_kv"]
    if name in {"lfm2", "lfm2moe"}:
        attends = {rng.randrange(n), rng.randrange(n)}
        heads_kv = tuple(kv if i in attends else 0 for i in range(n))
        return {"shortconv_l_cache": rng.choice([3, 4]), "n_head_kv": heads_kv}
    if name in DELTA_NETS:
        state, groups = rng.choice([64, 128]), rng.choice([2, 4])
        rank = groups * rng.choice([1, 2, 4])
        sizes = {"ssm_d_state": state, "ssm_n_group": groups, "ssm_dt_rank": rank, "ssm_d_inner": state * rank}
        return {**sizes, "ssm_d_conv": 4, "full_attention_interval": rng.choice([2, 4]), "rope_dim": 32}
    if name not in MAMBA:
        return {}
    heads = fields["n_embd"] * 2 // 64
    found: dict[str, Any] = {"ssm_d_conv": 4, "ssm_d_inner": heads * 64, "ssm_dt_rank": heads, "ssm_n_group": 1}
    found |= {"ssm_d_state": rng.choice([16, 64, 128])}
    if name == "falcon-h1":
        return found
    kinds = [rng.choice("mmaf") for _ in range(n - 1)] + ["a"]
    kinds[:2] = "mf"
    found["n_head_kv"] = tuple(kv if kind == "a" else 0 for kind in kinds)
    if name.startswith("nemotron"):
        found["n_ff"] = tuple(fields["n_ff"] if kind == "f" else 0 for kind in kinds)
    return found


def model(arch: ArchitectureConfig, folder: Path, name: str = "drawn") -> tuple[ModelFile, Path]:
    """A model of these sizes, and its sparse file."""
    tensors, findings = synthesise(arch, MIXES["Q4_K_M"])
    assert tensors, findings
    size = sum(t.size_bytes for t in tensors)
    path = folder / f"{name}.gguf"
    file = ModelFile(
        model=name,
        quantization="q4_k_m",
        source="declared",
        architecture=complete(arch),
        tensors=tensors,
        parts=(FilePart(path=str(path), size_bytes=size),),
    )
    write_sparse(file, path)
    return file, path


def config(rng: random.Random, arch: ArchitectureConfig) -> ServerConfig:
    """A server of such a model."""
    # this server aborts on a mean over sequences of unequal length
    slots = rng.choice([1, 1, 2, 3, 4, 7, 16, None] if arch.causal else [1, 2, 4])
    fields: dict[str, Any] = {
        "n_ctx": rng.randrange(512, 70_000),
        "slots": slots,
        "n_ubatch": rng.choice([32, 64, 128, 256, 512, 512, 768, 1024, 2048]),
        "n_batch": rng.choice([256, 2048, 2048, 4096]),
        "kv_unified": True if slots is None or rng.random() < 0.2 else None,
        "swa_full": rng.random() < 0.1,
        "repack": False,
    }
    fields["n_ubatch"] = min(fields["n_ubatch"], fields["n_batch"])
    if not arch.causal:
        return server(**fields | {"embedding": True, "n_ctx": min(fields["n_ctx"], 4096)})
    fields["embedding"] = rng.random() < 0.05
    if rng.random() < 0.35:
        return server(**fields, flash_attention="off")
    blocks = arch.key_length % 32 == 0
    k, v = (rng.choice(["f16", "bf16", "q8_0", "q4_0", "q5_1"] if blocks else ["f16", "bf16"]) for _ in range(2))
    return server(**fields, cache_type_k=k, cache_type_v=k if arch.kv_lora_rank else v)


def drawing(seed: int, folder: Path) -> tuple[ModelFile, Path, ServerConfig]:
    """A small model and a server; the architectures take turns."""
    rng = random.Random(seed)  # noqa: S311 - the same draws again
    arch = architecture(rng, ARCHITECTURES[seed % len(ARCHITECTURES)])
    drawn, path = model(arch, folder, f"drawn-{seed}")
    return drawn, path, config(rng, arch)


def full_size(seed: int, folder: Path) -> tuple[ModelFile, Path, ServerConfig]:
    """A well-known model, which take turns, and a server that is drawn; hybrids often with 16 slots."""
    name = FULL_SIZE[seed % len(FULL_SIZE)]
    rng = random.Random(7 * seed + 1)  # noqa: S311 - the same draws again
    (own := folder / f"full-{seed}").mkdir()
    path = write_full_size(name, own)
    known = describe(str(path))
    drawn = config(rng, known.architecture)
    if known.architecture.ssm_d_inner and rng.random() < MANY_SLOTS:
        drawn = msgspec.structs.replace(drawn, slots=16, kv_unified=None)
    return known, path, drawn


def placed(seed: int, drawn: ServerConfig, arch: ArchitectureConfig) -> ServerConfig:
    """The same server on one or two RPC devices: all layers or some, experts or K/V on the host now and then."""
    rng = random.Random(seed + 99)  # noqa: S311 - the same draws again
    fields: dict[str, Any] = {
        "devices": ("rpc0", "rpc1")[: rng.choice([1, 1, 1, 2])],
        "n_gpu_layers": rng.choice(["all", "all", "all", rng.randrange(1, arch.n_layer + 1)]),
    }
    if arch.n_expert and rng.random() < EXPERTS_ON_HOST:
        fields["n_cpu_moe"] = rng.randrange(1, arch.n_layer + 1)
    fields["kv_offload"] = rng.random() >= KV_ON_HOST
    return msgspec.structs.replace(drawn, **fields)
