"""Shapes of well-known models, for sparse files: `write_sparse(arch, directory, quantization=…, **shape)`."""

from __future__ import annotations

from pathlib import Path

from . import write_sparse

SHAPES: dict[str, tuple[str, str, dict[str, int]]] = {
    "llama-3.1-8b": (
        "llama",
        "q4_k",
        {"n_layer": 32, "n_embd": 4096, "n_head": 32, "n_head_kv": 8, "head_dim": 128, "n_ff": 14336}
        | {"n_vocab": 128256, "n_ctx_train": 131072},
    ),
    "qwen2.5-coder-32b": (
        "qwen2",
        "q4_k",
        {"n_layer": 64, "n_embd": 5120, "n_head": 40, "n_head_kv": 8, "head_dim": 128, "n_ff": 27648}
        | {"n_vocab": 152064, "n_ctx_train": 32768},
    ),
    "qwen3-30b-a3b": (
        "qwen3moe",
        "q4_k",
        {"n_layer": 48, "n_embd": 2048, "n_head": 32, "n_head_kv": 4, "head_dim": 128, "n_ff": 6144}
        | {"n_expert": 128, "n_expert_used": 8, "n_ff_exp": 768, "n_vocab": 151936, "n_ctx_train": 262144},
    ),
    "qwen3-235b-a22b": (
        "qwen3moe",
        "q4_k",
        {"n_layer": 94, "n_embd": 4096, "n_head": 64, "n_head_kv": 4, "head_dim": 128, "n_ff": 12288}
        | {"n_expert": 128, "n_expert_used": 8, "n_ff_exp": 1536, "n_vocab": 151936, "n_ctx_train": 262144},
    ),
    "qwen3-coder-480b-a35b": (
        "qwen3moe",
        "q4_k",
        {"n_layer": 62, "n_embd": 6144, "n_head": 96, "n_head_kv": 8, "head_dim": 128, "n_ff": 8192}
        | {"n_expert": 160, "n_expert_used": 8, "n_ff_exp": 2560, "n_vocab": 151936, "n_ctx_train": 262144},
    ),
    "qwen3-next-80b-a3b": (
        "qwen3next",
        "q4_k",
        {"n_layer": 48, "n_embd": 2048, "n_head": 16, "n_head_kv": 2, "head_dim": 256, "n_ff": 5120}
        | {"n_expert": 512, "n_expert_used": 10, "n_ff_exp": 512, "n_ff_shexp": 512, "attention_interval": 4}
        | {"d_conv": 4, "d_inner": 4096, "d_state": 128, "dt_rank": 32, "n_group": 16}
        | {"n_vocab": 151936, "n_ctx_train": 262144},
    ),
    "gpt-oss-20b": (
        "gpt-oss",
        "mxfp4",
        {"n_layer": 24, "n_embd": 2880, "n_head": 64, "n_head_kv": 8, "head_dim": 64, "n_ff": 2880}
        | {"n_expert": 32, "n_expert_used": 4, "n_ff_exp": 2880, "n_swa": 128}
        | {"n_vocab": 201088, "n_ctx_train": 131072},
    ),
    "gemma-3-27b": (
        "gemma3",
        "q4_0",
        {"n_layer": 62, "n_embd": 5376, "n_head": 32, "n_head_kv": 16, "head_dim": 128, "n_ff": 21504}
        | {"n_swa": 1024, "n_vocab": 262208, "n_ctx_train": 131072},
    ),
    "deepseek-v2-lite": (
        "deepseek2",
        "q4_k",
        {"n_layer": 27, "n_embd": 2048, "n_head": 16, "n_head_kv": 16, "n_ff": 10944, "n_dense_lead": 1}
        | {"n_expert": 64, "n_expert_used": 6, "n_ff_exp": 1408, "n_ff_shexp": 2816}
        | {"n_lora_q": 0, "n_lora_kv": 512, "n_rot": 64, "head_dim_mla": 192, "head_dim_v_mla": 128}
        | {"n_vocab": 102400, "n_ctx_train": 163840},
    ),
    "granite-4.0-h-small": (
        "granitehybrid",
        "q4_k",
        {"n_layer": 40, "n_embd": 4096, "n_head": 32, "n_head_kv": 8, "head_dim": 128, "attention_interval": 10}
        | {"n_expert": 72, "n_expert_used": 10, "n_ff_exp": 768, "n_ff_shexp": 1536}
        | {"d_conv": 4, "d_inner": 8192, "d_state": 128, "dt_rank": 128, "n_group": 1}
        | {"n_vocab": 100352, "n_ctx_train": 131072},
    ),
    "nemotron-h-8b": (
        "nemotron_h",
        "q4_k",
        {"n_layer": 52, "n_embd": 4096, "n_head": 32, "n_head_kv": 8, "head_dim": 128, "attention_interval": 13}
        | {"n_ff": 21504, "d_conv": 4, "d_inner": 8192, "d_state": 128, "dt_rank": 128, "n_group": 8}
        | {"n_vocab": 131072, "n_ctx_train": 8192},
    ),
    "bge-large-en-v1.5": (
        "bert",
        "f16",
        {"n_layer": 24, "n_embd": 1024, "n_head": 16, "n_head_kv": 16, "head_dim": 64, "n_ff": 4096}
        | {"n_vocab": 30522, "n_ctx_train": 512},
    ),
}
"""Name → (architecture, quantization of every matrix, shape). One type throughout: sizes are near real files only."""


def write_full_size(name: str, directory: Path, **overrides: int) -> Path:
    """The sparse file of a model named in `SHAPES`."""
    arch, quantization, shape = SHAPES[name]
    return write_sparse(arch, directory, quantization=quantization, **(shape | overrides))
