"""Encoders: bert (embeddings), and vision projectors by what their files call them."""

from __future__ import annotations

from .blueprint import Blueprint, Shape, with_base

SHAPES = {
    "bert": Shape(n_vocab=128, n_ctx_train=512, n_head_kv=4, head_dim=16, tied=True),
    "qwen2vl-projector": Shape(n_vocab=0, n_head=2, n_head_kv=2, head_dim=32),
    "qwen2.5vl-projector": Shape(n_vocab=0, n_head=2, n_head_kv=2, head_dim=32),
    "qwen3vl-projector": Shape(n_vocab=0, n_head=2, n_head_kv=2, head_dim=32, n_deepstack=1),
    "gemma3-projector": Shape(n_vocab=0, n_head=2, n_head_kv=2, head_dim=32),
    "pixtral-projector": Shape(n_vocab=0, n_head=2, n_head_kv=2, head_dim=32),
}
_CLS_POOLING = 2
_WINDOWED = 2
"""Of so many layers one attends to the whole image (qwen2.5vl)."""
_PATCHES = 8
"""Patches along each side of an image."""


def build(arch: str, s: Shape) -> Blueprint:
    """The blueprint of one encoder."""
    if arch == "bert":
        return _bert(s)
    return {
        "qwen2vl-projector": _qwen2vl,
        "qwen2.5vl-projector": _qwen25vl,
        "qwen3vl-projector": _qwen3vl,
        "gemma3-projector": _gemma3,
        "pixtral-projector": _pixtral,
    }[arch](s)


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


def _qwen2vl(s: Shape) -> Blueprint:
    """A Qwen2-VL vision tower; n_embd is both its own width and that of the text model it feeds."""
    b = _merging("qwen2vl_merger", s, 14)
    b.put(use_silu=False, use_gelu=False)
    for _, at in b.blocks(s):
        _separate(b, at, s)
        _plain_ffn(b, at, s)
    return b


def _qwen25vl(s: Shape) -> Blueprint:
    """As Qwen2-VL with gates, and windows in all but every second layer."""
    b = _merging("qwen2.5vl_merger", s, 14)
    b.put(use_silu=True, vision__n_wa_pattern=_WINDOWED)
    for _, at in b.blocks(s):
        _separate(b, at, s)
        _plain_ffn(b, at, s)
        _linear(b, f"v.{at}.ffn_gate", s.n_embd, s.n_ff)
    return b


def _qwen3vl(s: Shape) -> Blueprint:
    """A Qwen3-VL vision tower: learnt positions, one matrix for Q, K and V, layers that feed the text model's.

    Sizes of its tensors: llama.cpp tools/mtmd/models/qwen3vl.cpp.
    """
    b = _merging("qwen3vl_merger", s, 16)
    b.put(use_gelu=True, vision__spatial_merge_size=2)
    b.put(vision__is_deepstack_layers=[il < s.n_deepstack for il in range(s.n_layer)])
    b.plain("v.patch_embd.bias", s.n_embd)
    b.plain("v.position_embd.weight", s.n_embd, _PATCHES**2)
    for il, at in b.blocks(s):
        _linear(b, f"v.{at}.attn_qkv", s.n_embd, 3 * s.n_embd)
        _plain_ffn(b, at, s)
        if il < s.n_deepstack:
            _layer_norm(b, f"v.deepstack.{il}.norm", 4 * s.n_embd)
            _linear(b, f"v.deepstack.{il}.fc1", 4 * s.n_embd, 4 * s.n_embd)
            _linear(b, f"v.deepstack.{il}.fc2", 4 * s.n_embd, s.n_embd)
    return b


def _gemma3(s: Shape) -> Blueprint:
    """SigLIP of one size of image, pooled (tools/mtmd/models/siglip.cpp)."""
    b = _tower("gemma3", s, 14)
    b.put(use_gelu=True)
    b.plain("v.patch_embd.bias", s.n_embd)
    b.plain("v.position_embd.weight", s.n_embd, _PATCHES**2)
    for _, at in b.blocks(s):
        _separate(b, at, s)
        _plain_ffn(b, at, s)
    b.plain("mm.input_projection.weight", s.n_embd, s.n_embd)
    b.norm("mm.soft_emb_norm.weight", s.n_embd)
    return b


def _pixtral(s: Shape) -> Blueprint:
    """Pixtral: rotated positions, gates, a token at the end of each row (tools/mtmd/models/pixtral.cpp)."""
    b = _tower("pixtral", s, 16)
    b.put(use_silu=True)
    for _, at in b.blocks(s):
        _separate(b, at, s)
        _plain_ffn(b, at, s)
        _linear(b, f"v.{at}.ffn_gate", s.n_embd, s.n_ff)
    for number in (1, 2):
        _linear(b, f"mm.{number}", s.n_embd, s.n_embd)
    b.plain("v.token_embd.img_break", s.n_embd)
    return b


def _merging(projector: str, s: Shape, patch: int) -> Blueprint:
    """A tower with a second convolution, for a second frame, and the projection of four patches."""
    b = _tower(projector, s, patch)
    b.plain("v.patch_embd.weight.1", patch, patch, 3, s.n_embd)
    _linear(b, "mm.0", 4 * s.n_embd, 4 * s.n_embd)
    _linear(b, "mm.2", 4 * s.n_embd, s.n_embd)
    return b


def _separate(b: Blueprint, at: str, s: Shape) -> None:
    """Matrices of their own for Q, K and V."""
    for part in ("attn_q", "attn_k", "attn_v"):
        _linear(b, f"v.{at}.{part}", s.n_embd, s.n_embd)


def _plain_ffn(b: Blueprint, at: str, s: Shape) -> None:
    """A feed-forward up and down."""
    _linear(b, f"v.{at}.ffn_up", s.n_embd, s.n_ff)
    _linear(b, f"v.{at}.ffn_down", s.n_ff, s.n_embd)


def _tower(projector: str, s: Shape, patch: int) -> Blueprint:
    """What all towers have: the first convolution, norms, the matrix behind attention."""
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
    b.plain("v.patch_embd.weight", patch, patch, 3, s.n_embd)
    for _, at in b.blocks(s):
        _layer_norm(b, f"v.{at}.ln1", s.n_embd)
        _linear(b, f"v.{at}.attn_out", s.n_embd, s.n_embd)
        _layer_norm(b, f"v.{at}.ln2", s.n_embd)
    _layer_norm(b, "v.post_ln", s.n_embd)
    return b


def _linear(b: Blueprint, name: str, rows: int, columns: int) -> None:
    """A matrix with its bias."""
    b.weight(f"{name}.weight", rows, columns)
    b.plain(f"{name}.bias", columns)


def _layer_norm(b: Blueprint, name: str, size: int) -> None:
    """A layer norm with its bias."""
    b.norm(f"{name}.weight", size)
    b.plain(f"{name}.bias", size)
