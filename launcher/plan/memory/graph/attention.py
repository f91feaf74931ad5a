"""Attention as llama-graph.cpp builds it: with a cache or without, flash or plain, latent (MLA). Pure."""

from __future__ import annotations

from launcher.plan.memory.graph.batch import Build, Cache, NotSimulatedError
from launcher.plan.memory.graph.values import Value

QUANTISED = frozenset({"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
ROTATION = 64
"""K and V heads of a multiple of this width are rotated before they are quantised (llama-kv-cache.cpp attn_rot_k)."""


class Heads:
    """One layer's heads: their number, and widths of K and V."""

    __slots__ = ("k", "kv", "n", "sinks", "sliding", "soft_cap", "v", "v_b")

    def __init__(self, n: int, kv: int, k: int, v: int, *, sliding: bool = False) -> None:
        """`n` query heads of width `k`, `kv` K/V heads."""
        self.n, self.kv, self.k, self.v, self.sliding = n, kv, k, v, sliding
        self.soft_cap = False
        self.v_b = 0


def rotate(b: Build, value: Value, name: str, width: int) -> Value:
    """`value` times a rotation of `width`, through a two-dimensional view."""
    g = b.graph
    rows = value.size // 4 // width
    flat = g.new((width, rows), value) if is_slice(value) else g.view(value, width, rows)
    turned = g.new((width, rows), b.shared(name, width, width, kind="f32"), flat)
    return g.view(turned, *value.shape)


def is_slice(value: Value) -> bool:
    """Whether a view shows only a part of its value, as of Q, K and V together: it is copied to be reshaped."""
    return value.root is not None and value.root.size != value.size


def rotation_width(head: int) -> int:
    """The largest power of two from 64 that divides a K head."""
    width = ROTATION
    while head % (2 * width) == 0:
        width *= 2
    return width


def attend(b: Build, heads: Heads, q: Value, k: Value, v: Value | None) -> Value:
    """Store K and V, attend, and bring heads side by side: (n·v, tokens) (build_attn, build_attn_mha).

    `v` None: latent attention, whose V are the first columns of K.
    """
    batch, g = b.batch, b.graph
    cache = batch.sliding if heads.sliding else batch.full
    if cache is None:
        raise NotSimulatedError("attention without a cache")
    tag = "swa" if heads.sliding else "kv"
    turn_k = v is not None and batch.k_kind in QUANTISED and heads.k % ROTATION == 0
    turn_v = v is not None and batch.v_kind in QUANTISED and heads.v % ROTATION == 0
    if turn_k:
        q, k = (rotate(b, x, f"{tag}.k_rot", rotation_width(heads.k)) for x in (q, k))
    if turn_v and v is not None:
        v = rotate(b, v, f"{tag}.v_rot", ROTATION)
    for value in (q, k, v) if batch.sliding else (q, v, k):
        if value is not None:
            g.expand(value)
    g.store(g.view(k, k.size // 4 // batch.tokens, batch.tokens), b.shared(f"{tag}.k_ids", batch.tokens, kind="i64"))
    if v is not None:
        _store_v(b, cache, tag, v)
    out = _flash(b, heads, cache, tag, q) if batch.flash_attention else _scores(b, heads, cache, tag, q)
    g.expand(out)
    if turn_v:
        out = rotate(b, out, f"{tag}.v_rot", ROTATION)
    return out


def _store_v(b: Build, cache: Cache, tag: str, v: Value) -> None:
    """Write V: rows with flash attention, else transposed, each value by an index of its own."""
    g, tokens = b.graph, b.batch.tokens
    width = v.size // 4 // tokens
    if b.batch.flash_attention:
        g.store(g.view(v, width, tokens), b.shared(f"{tag}.v_ids", tokens, kind="i64"))
        return
    ids = b.shared(f"{tag}.v_ids", cache.v_width * tokens, kind="i64")
    rows = g.new((width, tokens), v) if is_slice(v) else g.view(v, width, tokens)
    g.store(g.view(rows, 1, width * tokens), ids)


def mask(b: Build, cache: Cache, tag: str) -> Value:
    """What each token may see, a row of cells a token."""
    batch = b.batch
    shape = (cache.cells, batch.tokens // batch.streams, 1, batch.streams)
    return b.shared(f"{tag}.mask", *shape, kind="f16" if batch.flash_attention else "f32")


def _queries(b: Build, heads: Heads, q: Value) -> Value:
    """Queries by stream: (k, tokens of a stream, heads, streams)."""
    streams = b.batch.streams
    each = b.batch.tokens // streams
    return b.graph.view(b.graph.view(q, heads.k, heads.n, each, streams), heads.k, each, heads.n, streams)


def _flash(b: Build, heads: Heads, cache: Cache, tag: str, q: Value) -> Value:
    """FLASH_ATTN_EXT on the cache; latent attention decompresses its result."""
    g, tokens, streams = b.graph, b.batch.tokens, b.batch.streams
    each = tokens // streams
    out = g.new((heads.v, heads.n, each, streams), _queries(b, heads, q), mask(b, cache, tag))
    if not heads.v_b:
        return g.view(out, heads.v * heads.n, tokens)
    wide = g.matmul(heads.v_b, g.view(out, heads.v, each, heads.n, streams))
    joined = g.new((heads.v_b, heads.n, each, streams), g.view(wide, heads.v_b, heads.n, each, streams))
    return g.view(joined, heads.v_b * heads.n, tokens)


def _scores(b: Build, heads: Heads, cache: Cache, tag: str, q: Value) -> Value:
    """Scores, soft-max and their product with V, each a value of its own."""
    g, tokens, streams = b.graph, b.batch.tokens, b.batch.streams
    each = tokens // streams
    sources = []
    if heads.v_b:  # V is cut out of K, and made contiguous
        sources = [g.new((cache.cells, heads.v, 1, streams), kind="f16")]
    kq = g.new((cache.cells, each, heads.n, streams), _queries(b, heads, q))
    if heads.soft_cap:
        kq = g.over(g.over(g.over(kq)))
    kqv = g.new((heads.v, each, heads.n, streams), *sources, g.over(kq, mask(b, cache, tag)))
    width = heads.v
    if heads.v_b:
        kqv, width = g.matmul(heads.v_b, kqv), heads.v_b
    return g.new((width * heads.n, tokens), g.view(kqv, width, heads.n, each, streams))


def attend_within(b: Build, heads: Heads, q: Value, k: Value, v: Value) -> Value:
    """Attention within the batch, without a cache (encoders): (n·v, tokens)."""
    g, tokens = b.graph, b.batch.tokens
    for value in (q, k, v):
        g.expand(value)
    flash = b.batch.flash_attention
    seen = b.shared("swa.within" if heads.sliding else "within", tokens, tokens, kind="f16" if flash else "f32")
    queries = g.view(g.view(q, *q.shape), heads.k, tokens, heads.n)
    keys = g.view(k, heads.k, tokens, heads.kv)
    if flash:
        k16, v16 = (g.new(x.shape, x, kind="f16") for x in (keys, g.view(v, heads.v, tokens, heads.kv)))
        return g.view(g.new((heads.v, heads.n, tokens), queries, k16, v16, seen), heads.v * heads.n, tokens)
    turned = g.view(g.view(v, heads.v, tokens, heads.kv), tokens, heads.v, heads.kv)
    across = g.new(turned.shape, turned)
    kq = g.new((tokens, tokens, heads.n), keys, queries)
    kqv = g.new((heads.v, tokens, heads.n), across, g.over(kq, seen))
    return g.new((heads.v * heads.n, tokens), g.view(kqv, heads.v, heads.n, tokens))
