"""The groups `model` and `quantization`. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.config.values import ByteSize, Positive


class ArchitectureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Public hyper-parameters of a model, by llama.cpp's names; enough to size it with no file at hand.

    Per-layer values may be lists. Zero or absent means that the architecture does not have it.
    """

    arch: str
    """GGUF `general.architecture`: qwen2, qwen3moe, granitehybrid …"""
    n_layer: Positive
    n_embd: Positive
    n_head: int | tuple[int, ...]
    n_head_kv: int | tuple[int, ...]
    n_vocab: Positive
    n_ctx_train: int
    n_ff: int | tuple[int, ...] = 0
    key_length: int = 0
    """Head size of K; 0 means n_embd / n_head."""
    value_length: int = 0
    tied_embeddings: bool = False
    attention_bias: bool = False
    """Q, K and V carry biases (qwen2)."""
    qk_norm: bool = False
    causal: bool = True
    pooling: str | None = None
    # experts
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_exp: int = 0
    n_expert_shared: int = 0
    n_ff_shexp: int = 0
    n_layer_dense_lead: int = 0
    n_layer_nextn: int = 0
    """Layers at the end that predict further tokens (MTP); counted in n_layer, loaded for draft-mtp only."""
    n_embd_latent: int = 0
    """Width of the experts' input when it is not n_embd (nemotron_h_moe `moe_latent_size`)."""
    n_expert_used_min: int = 0
    """Fewest experts with coherent output, as found by people who ran it; 0 = unknown."""
    # sliding window
    n_swa: int = 0
    swa_pattern: int | tuple[bool, ...] = 0
    """p: layer il slides iff il % p < p-1; or one flag a layer."""
    key_length_swa: int = 0
    value_length_swa: int = 0
    # multi-head latent attention
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_dim: int = 0
    key_length_mla: int = 0
    value_length_mla: int = 0
    # sparse attention: an indexer beside it chooses which tokens are attended to
    indexer_n_head: int = 0
    indexer_key_length: int = 0
    """Width of the key that the indexer keeps of each token, in layers with an indexer of their own."""
    indexer_top_k: int = 0
    indexer_types: tuple[bool, ...] = ()
    """One flag a layer: it has an indexer of its own, and does not take over another's choice. Empty: all have."""
    # recurrent layers
    ssm_d_conv: int = 0
    ssm_d_inner: int = 0
    ssm_d_state: int = 0
    ssm_n_group: int = 0
    ssm_dt_rank: int = 0
    full_attention_interval: int = 0
    shortconv_l_cache: int = 0
    """Length of the short convolution of lfm2; its recurrent layers keep l_cache - 1 positions of n_embd."""
    n_layer_kv: int = 0
    """Layers that own KV when later layers share it (gemma3n); 0 = all."""
    n_embd_per_layer: int = 0
    n_deepstack: int = 0
    """Layers that get features of the image beside the embeddings (qwen3vl): every token's row is so much longer."""
    n_token_types: int = 0
    n_merges: int = 0
    """BPE merges of the tokenizer; sizes the vocabulary's host memory."""
    tokenizer: str = "gpt2"
    """GGUF `tokenizer.ggml.model`: gpt2 (byte-level BPE), llama (SPM), bert (WordPiece)."""
    tokenizer_pre: str = ""
    bos_token_id: int | None = None


class ModelFileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GGUF of a model. `bytes` is the published size, if known; split files name part 1."""

    path: str
    bytes: ByteSize | None = None
    parts: Positive = 1
    repo: str | None = None
    """ORG/REPO on Hugging Face that has a file of this name: `launch pull` brings it to `path`."""


class ProjectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A multimodal projector (mmproj) GGUF."""

    path: str
    bytes: ByteSize | None = None
    compute_bytes: ByteSize = 0
    """Worst-case compute buffer of the image encoder, when measured."""
    repo: str | None = None
    """As of a model's file."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: what it is, where its hyper-parameters were read, and its files by quantization."""

    title: str
    source: str
    """Where the hyper-parameters were read (a public config.json, a model card)."""
    architecture: ArchitectureConfig
    files: dict[str, ModelFileConfig]
    projector: ProjectorConfig | None = None
    domains: tuple[str, ...] = ()
    """What it is good at, for routing (`coding_architecture`, `reasoning`)."""
    notes: tuple[str, ...] = ()


class QuantizationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A quantization mix: which GGML type each kind of tensor gets.

    `mix` names llama.cpp's file type whose per-tensor rules apply (`Q4_K_M`); `default_type` is the type of
    ordinary 2-D weights under it. `block` and `block_bytes` are that type's exact GGML block sizes.
    """

    mix: str
    default_type: str
    block: Positive
    block_bytes: Positive
    description: str = ""
