"""Encoders: bert (embeddings), and the vision projectors of qwen2vl and qwen3vlmoe."""

from __future__ import annotations

from .blueprint import Blueprint, Shape, with_base

SHAPES = {
    "bert": Shape(n_vocab=128, n_ctx_train=512, n_head_kv=4, head_dim=16, tied=True),
    "qwen2vl-projector": Shape(n_vocab=0, n_head=2, n_head_kv=2, head_dim=32),
    "qwen3vl-projector": Shape(n_vocab=0, n_head=2, n_head_kv=2, head_dim=32, n_deepstack=1),
}
_CLS_POOLING = 2
_PATCH = {"qwen2vl-projector": 14, "qwen3vl-projector": 16}
_PATCHES = 8
"""Patches along each side of an image."""


def build(arch: str, s: Shape) -> Blueprint:
    """The blueprint of one encoder."""
    if arch == "bert":
        return _bert(s)
    return _qwen2vl(s, _PATCH[arch]) if arch == "qwen2vl-projector" else _qwen3vl(s, _PATCH[arch])


def _bert(s: Shape) -> Blueprint:
    """BERT with CLS pooling: learnt positions, biases everywhere, norms after each half."""
    b = with_base(Blueprint(architecture="bert"), s)
    b.put(attention__layer_norm_epsilon=1e-12, attention__causal=False, pooling_type=_CLS_POOLING)
    b.metadata["tokenizer.ggml.token_type_count"] = 2
    b.weight("token_embd.weight", s.n_embd, s.n_vocab, scale=1.0)
    b.plain("token_types.weight", s.n_embd, 2)
    b.plain("position_embd.weight", s.n_embd, s.n_ctx_train)
    _layer_norm(b, "token_embd_norm", s.n_embd)
    for _, at in b.blocks(s):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            _linear(b, f"{at}.{part}", s.n_embd, s.n_embd)
        _layer_norm(b, f"{at}.attn_output_norm", s.n_embd)
        _linear(b, f"{at}.ffn_up", s.n_embd, s.n_ff)
        _linear(b, f"{at}.ffn_down", s.n_ff, s.n_embd)
        _layer_norm(b, f"{at}.layer_output_norm", s.n_embd)
    return b


def _qwen2vl(s: Shape, patch: int) -> Blueprint:
    """A Qwen2-VL vision tower; n_embd is both its own width and that of the text model it feeds."""
    b = _tower("qwen2vl_merger", s, patch)
    b.put(use_silu=False, use_gelu=False)
    for _, at in b.blocks(s):
        for part in ("attn_q", "attn_k", "attn_v"):
            _linear(b, f"v.{at}.{part}", s.n_embd, s.n_embd)
    return b


def _qwen3vl(s: Shape, patch: int) -> Blueprint:
    """A Qwen3-VL vision tower: learnt positions, one matrix for Q, K and V, layers that feed the text model's.

    Sizes of its tensors: llama.cpp tools/mtmd/models/qwen3vl.cpp.
    """
    b = _tower("qwen3vl_merger", s, patch)
    b.put(use_gelu=True, vision__spatial_merge_size=2)
    b.put(vision__is_deepstack_layers=[il < s.n_deepstack for il in range(s.n_layer)])
    b.plain("v.patch_embd.bias", s.n_embd)
    b.plain("v.position_embd.weight", s.n_embd, _PATCHES**2)
    for il, at in b.blocks(s):
        _linear(b, f"v.{at}.attn_qkv", s.n_embd, 3 * s.n_embd)
        if il < s.n_deepstack:
            _layer_norm(b, f"v.deepstack.{il}.norm", 4 * s.n_embd)
            _linear(b, f"v.deepstack.{il}.fc1", 4 * s.n_embd, 4 * s.n_embd)
            _linear(b, f"v.deepstack.{il}.fc2", 4 * s.n_embd, s.n_embd)
    return b


def _tower(projector: str, s: Shape, patch: int) -> Blueprint:
    """What both towers have: the first convolutions, norms, feed-forward halves and the projection of four patches."""
    b = Blueprint(architecture="clip")
    b.put(has_vision_encoder=True, projector_type=projector)
    b.put(
        vision__image_size=patch * _PATCHES,
        vision__patch_size=patch,
        vision__embedding_length=s.n_embd,
        vision__feed_forward_length=s.n_ff,
        vision__projection_dim=s.n_embd,
        vision__block_count=s.n_layer,
        vision__attention__head_count=s.n_head,
        vision__attention__layer_norm_epsilon=1e-6,
        vision__image_mean=[0.5, 0.5, 0.5],
        vision__image_std=[0.5, 0.5, 0.5],
    )
    for frame in ("", ".1"):
        b.plain(f"v.patch_embd.weight{frame}", patch, patch, 3, s.n_embd)
    for _, at in b.blocks(s):
        _layer_norm(b, f"v.{at}.ln1", s.n_embd)
        _linear(b, f"v.{at}.attn_out", s.n_embd, s.n_embd)
        _layer_norm(b, f"v.{at}.ln2", s.n_embd)
        _linear(b, f"v.{at}.ffn_up", s.n_embd, s.n_ff)
        _linear(b, f"v.{at}.ffn_down", s.n_ff, s.n_embd)
    _layer_norm(b, "v.post_ln", s.n_embd)
    _linear(b, "mm.0", 4 * s.n_embd, 4 * s.n_embd)
    _linear(b, "mm.2", 4 * s.n_embd, s.n_embd)
    return b


def _linear(b: Blueprint, name: str, rows: int, columns: int) -> None:
    """A matrix with its bias."""
    b.weight(f"{name}.weight", rows, columns)
    b.plain(f"{name}.bias", columns)


def _layer_norm(b: Blueprint, name: str, size: int) -> None:
    """A layer norm with its bias."""
    b.norm(f"{name}.weight", size)
    b.plain(f"{name}.bias", size)
