"""Dense transformers: llama (and a draft for it), qwen2, qwen2vl, qwen3, granite, gemma3."""

from __future__ import annotations

from .blueprint import Blueprint, Shape, with_base
from .parts import attention, feed_forward

SHAPES = {
    "llama": Shape(),
    "draft": Shape(n_layer=1),
    # The loader of qwen2 takes n_embd / n_head for the width of a head, whatever the keys say.
    "qwen2": Shape(n_head=2, n_head_kv=1),
    "qwen2vl": Shape(n_head=2, n_head_kv=1),
    "qwen3": Shape(),
    "granite": Shape(),
    "gemma3": Shape(n_vocab=384, n_layer=6, n_head_kv=1, n_swa=512, tied=True),
}


def build(arch: str, s: Shape) -> Blueprint:
    """The blueprint of one dense model."""
    b = with_base(Blueprint(architecture="llama" if arch == "draft" else arch), s)
    b.vocabulary(s)
    if arch == "gemma3":
        return _gemma3(b, s)
    if arch == "granite":
        b.put(embedding_scale=12.0, residual_scale=0.22, attention__scale=0.0078125, logit_scale=1.0)
    if arch == "qwen2vl":
        b.put(rope__dimension_sections=[s.head_dim // 8, s.head_dim * 3 // 16, s.head_dim * 3 // 16, 0])
    for _, at in b.blocks(s):
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        attention(b, at, s, bias=arch in {"qwen2", "qwen2vl"}, head_norms=arch == "qwen3")
        b.norm(f"{at}.ffn_norm.weight", s.n_embd)
        feed_forward(b, at, s)
    return b


def _gemma3(b: Blueprint, s: Shape) -> Blueprint:
    """Gemma 3: sliding windows on five layers of six, norms on both sides of each half."""
    b.put(attention__sliding_window=s.n_swa)
    for _, at in b.blocks(s):
        b.norm(f"{at}.attn_norm.weight", s.n_embd)
        attention(b, at, s, head_norms=True)
        b.constant(f"{at}.post_attention_norm.weight", s.n_embd, value=0.05)
        b.norm(f"{at}.ffn_norm.weight", s.n_embd)
        feed_forward(b, at, s)
        b.constant(f"{at}.post_ffw_norm.weight", s.n_embd, value=0.05)
    return b
