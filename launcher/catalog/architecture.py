"""From a GGUF header to an architecture; of one that is not known, a bound of what its keys say. Pure.

Key names: llama.cpp src/llama-arch.cpp `LLM_KV_NAMES`; their meaning: src/llama-model.cpp `load_hparams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from launcher.catalog.gguf import BadHeader, Header
from launcher.catalog.layouts import LAYOUTS
from launcher.ir.architectures import MAX_LAYERS, complete, traits
from launcher.ir.config import ArchitectureConfig

_CONVOLUTION = 4
"""Length of the convolution before linear attention, where the file gives none."""


def widened(architecture: ArchitectureConfig, values: Mapping[str, Any]) -> ArchitectureConfig:
    """`architecture` with states of linear attention, keys of an indexer, and a residual stream of several rows.

    A bound: each is counted in every layer that may have it. Source: llama.cpp b11434, src/llama-hparams.cpp
    (`n_embd_r`, `n_embd_s`), src/llama-kv-cache-dsa.cpp (the indexer's keys), src/models (hyper-connections).
    `values`: the header's. Linear attention keeps a square of a head's width for each head; an indexer keeps one more
    key a token, here in every head.
    """
    a = architecture

    def size(key: str) -> int:
        value = values.get(f"{a.arch}.{key}", 0)
        numbers = value if isinstance(value, tuple) else (value,)
        return max((n for n in numbers if isinstance(n, int)), default=0)

    changes: dict[str, int] = {}
    linear = a.full_attention_interval or f"{a.arch}.attention.recurrent_layers" in values
    state = size("kda.head_dim") or (a.key_length if linear else 0)
    if state and not a.ssm_d_inner:
        heads = a.n_head if isinstance(a.n_head, int) else max(a.n_head, default=0)
        changes |= {"ssm_d_state": state, "ssm_d_inner": state * heads, "ssm_n_group": heads}
        changes["ssm_d_conv"] = a.ssm_d_conv or _CONVOLUTION
    indexer = size("attention.indexer.key_length")
    if indexer:
        changes |= {"key_length": a.key_length + indexer, "indexer_key_length": 0}
        changes |= {"kv_lora_rank": a.kv_lora_rank + indexer} if a.kv_lora_rank else {}
    streams = max(size("hyper_connection.count"), size("altup.num_inputs"), traits(a.arch).streams)
    if streams > 1:
        changes["n_deepstack"] = max(a.n_deepstack, streams - 1)
    return msgspec.structs.replace(a, **changes) if changes else a


POOLING = ("none", "mean", "cls", "last", "rank")
"""llama.h `enum llama_pooling_type`."""

SCALAR_KEYS = {
    "n_expert": "expert_count",
    "n_expert_shared": "expert_shared_count",
    "n_ff_shexp": "expert_shared_feed_forward_length",
    "n_layer_dense_lead": "leading_dense_block_count",
    "n_layer_nextn": "nextn_predict_layers",
    "n_embd_latent": "moe_latent_size",
    "key_length": "attention.key_length",
    "value_length": "attention.value_length",
    "n_swa": "attention.sliding_window",
    "n_deepstack": "n_deepstack_layers",
    "key_length_swa": "attention.key_length_swa",
    "value_length_swa": "attention.value_length_swa",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "key_length_mla": "attention.key_length_mla",
    "value_length_mla": "attention.value_length_mla",
    "indexer_n_head": "attention.indexer.head_count",
    "indexer_key_length": "attention.indexer.key_length",
    "indexer_top_k": "attention.indexer.top_k",
    "rope_dim": "rope.dimension_count",
    "ssm_d_conv": "ssm.conv_kernel",
    "ssm_d_inner": "ssm.inner_size",
    "ssm_d_state": "ssm.state_size",
    "ssm_n_group": "ssm.group_count",
    "ssm_dt_rank": "ssm.time_step_rank",
    "full_attention_interval": "full_attention_interval",
    "shortconv_l_cache": "shortconv.l_cache",
    "n_embd_per_layer": "embedding_length_per_layer_input",
}
"""Optional whole numbers, by the field they fill; 0 when absent."""

_VISION_KEYS = {"n_layer": "block_count", "n_embd": "embedding_length", "n_ff": "feed_forward_length"}


def architecture_from_headers(headers: tuple[Header, ...]) -> ArchitectureConfig:
    """The architecture that headers describe, with llama.cpp's defaults filled in (`traits.complete`).

    Of a split model the first part has the metadata, and each its tensors. Raises BadHeader (`catalog/corrupt-header`)
    when a key that every model has is absent, or a value has the wrong type or length.
    """
    keys = _Keys(headers[0].values)
    if keys.arch == "clip":
        return _projector(keys)
    shapes = {t.name: t.shape for header in headers for t in header.tensors}
    n_layer = keys.number("block_count")
    if n_layer > MAX_LAYERS:
        raise _wrong(f"{keys.arch}.block_count is {n_layer:,}; {MAX_LAYERS:,} is the most")
    fields: dict[str, Any] = {field: keys.optional(key) for field, key in SCALAR_KEYS.items()}
    heads = keys.per_layer("attention.head_count", n_layer, default=0)
    fields |= {
        "arch": keys.arch,
        "n_layer": n_layer,
        "n_embd": keys.number("embedding_length"),
        "n_ctx_train": keys.number("context_length"),
        "n_head": heads,
        "n_head_kv": keys.per_layer("attention.head_count_kv", n_layer, default=heads),
        "n_ff": keys.per_layer("feed_forward_length", n_layer, default=0),
        "n_vocab": _n_vocab(headers[0], keys, shapes),
        "n_ff_exp": keys.optional("expert_feed_forward_length"),
        "n_expert_used": keys.optional("expert_used_count"),
        "swa_pattern": keys.pattern("attention.sliding_window_pattern", n_layer),
        "indexer_types": keys.flags("attention.indexer.types"),
        "n_layer_kv": _n_layer_kv(keys, n_layer),
        "tied_embeddings": "output.weight" not in shapes and not traits(keys.arch).is_encoder,
        "attention_bias": any(n.endswith((".attn_q.bias", ".attn_qkv.bias")) for n in shapes),
        "qk_norm": any(n.endswith(".attn_q_norm.weight") for n in shapes),
        "causal": keys.flag("attention.causal", default=True),
        "pooling": dict(enumerate(POOLING)).get(keys.optional("pooling_type", absent=-1)),
    }
    found = complete(ArchitectureConfig(**fields, **_tokenizer(headers[0], keys)))
    return found if found.arch in LAYOUTS else widened(found, headers[0].values)


class _Keys:
    """Typed reads of a header's values; `{arch}.` is put in front of a key."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        arch = values.get("general.architecture")
        if not isinstance(arch, str) or not arch:
            raise _wrong(f"general.architecture is {arch!r}; it must name an architecture")
        self.arch, self._values = arch, values

    def raw(self, key: str) -> Any:
        """The value of a key with its whole name."""
        return self._values.get(key)

    def number(self, key: str) -> int:
        """A whole number that must be there."""
        name = f"{self.arch}.{key}"
        if name not in self._values:
            raise _wrong(f"the key {name} is absent")
        return _whole(self._values[name], name)

    def optional(self, key: str, *, absent: int = 0) -> int:
        """A whole number, or `absent`. A per-layer list counts as its largest."""
        name = f"{self.arch}.{key}"
        value = self._values.get(name, absent)
        numbers = value if isinstance(value, tuple) else (value,)
        return absent if value == absent else max((_whole(v, name) for v in numbers), default=absent)

    def per_layer(self, key: str, n_layer: int, *, default: int | tuple[int, ...]) -> int | tuple[int, ...]:
        """A whole number for all layers, or one a layer. A list of equal ones is one number."""
        name = f"{self.arch}.{key}"
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, tuple):
            return _whole(value, name)
        if len(value) != n_layer:
            raise _wrong(f"{name} has {len(value)} elements for {n_layer} layers")
        numbers = tuple(_whole(v, name) for v in value)
        return numbers[0] if len(set(numbers)) == 1 else numbers

    def pattern(self, key: str, n_layer: int) -> int | tuple[bool, ...]:
        """Which layers slide: a period, or one flag a layer; 0 when absent."""
        name = f"{self.arch}.{key}"
        value = self._values.get(name, 0)
        if not isinstance(value, tuple):
            return _whole(value, name)
        if len(value) < n_layer:
            raise _wrong(f"{name} has {len(value)} elements for {n_layer} layers")
        return tuple(bool(v) for v in value[:n_layer])

    def flags(self, key: str) -> tuple[bool, ...]:
        """One flag a layer, or none where the file has no list."""
        value = self._values.get(f"{self.arch}.{key}", ())
        return tuple(bool(v) for v in value) if isinstance(value, tuple) else ()

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean, or `default`."""
        return bool(self._values.get(f"{self.arch}.{key}", default))


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(f"{name} is {value!r}; it must be a whole number")
    return value


def _wrong(message: str) -> BadHeader:
    return BadHeader("catalog/corrupt-header", message, "convert the model again, or fetch it anew")


def _n_vocab(header: Header, keys: _Keys, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Size of the vocabulary: the tokens listed, else `vocab_size`, else the rows of the token embedding."""
    listed = header.lengths.get("tokenizer.ggml.tokens", 0) or keys.optional("vocab_size")
    shape = shapes.get("token_embd.weight", ())
    return listed or (shape[1] if len(shape) > 1 else 0)


def _n_layer_kv(keys: _Keys, n_layer: int) -> int:
    """Layers that own KV, where the last ones share it; 0 = all."""
    shared = keys.optional("attention.shared_kv_layers")
    return max(n_layer - shared, 0) if shared else 0


def _tokenizer(header: Header, keys: _Keys) -> dict[str, Any]:
    bos = keys.raw("tokenizer.ggml.bos_token_id")
    model, pre = keys.raw("tokenizer.ggml.model"), keys.raw("tokenizer.ggml.pre")
    types = keys.raw("tokenizer.ggml.token_type_count")
    return {
        "tokenizer": model if isinstance(model, str) else "none",
        "tokenizer_pre": pre if isinstance(pre, str) else "",
        "bos_token_id": bos if type(bos) is int else None,
        "n_merges": header.lengths.get("tokenizer.ggml.merges", 0),
        "n_token_types": types if type(types) is int and types > 0 else 0,
    }


def _projector(keys: _Keys) -> ArchitectureConfig:
    """A multimodal projector: the shape of its vision (or audio) encoder; no vocabulary, no context."""
    kind = "vision" if keys.raw("clip.vision.block_count") is not None else "audio"
    sizes: dict[str, Any] = {field: keys.optional(f"{kind}.{key}") for field, key in _VISION_KEYS.items()}
    heads = keys.optional(f"{kind}.attention.head_count")
    return ArchitectureConfig(
        arch="clip", n_head=heads, n_head_kv=heads, n_vocab=1, n_ctx_train=0, causal=False, tokenizer="none", **sizes
    )
