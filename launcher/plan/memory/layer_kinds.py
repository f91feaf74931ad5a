"""Which layers attend, slide or recur, and how wide their heads are. Pure."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from launcher.ir.config import ArchitectureConfig

SWA_PERIOD = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4}
"""Layer il slides iff il % p < p - 1, where the file has no pattern of its own (llama-model.cpp load_hparams)."""
NO_CACHE = frozenset(
    {
        *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert"),
        *("eurobert", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1"),
    }
)
"""Encoders and diffusion models, without any memory (llama-model.cpp create_memory)."""
EMBEDS_ONLY = NO_CACHE - {"dream", "llada", "llada-moe", "rnd1"}
"""Encoders, which make embeddings and nothing else."""
NEMOTRON = frozenset({"nemotron_h", "nemotron_h_moe"})
GEMMA3N_KV_LAYERS = 20


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """Indices of layers by what they keep: full attention, sliding attention, recurrent state.

    A layer may keep nothing (a feed-forward layer of nemotron_h), or both (falcon-h1). `n_layer` counts those for
    further tokens too, as `--n-gpu-layers` does.
    """

    n_layer: int
    full: tuple[int, ...]
    sliding: tuple[int, ...]
    recurrent: tuple[int, ...]


def at(value: int | tuple[int, ...], layer: int) -> int:
    """A per-layer hyper-parameter at `layer` (a plain number holds for all)."""
    if isinstance(value, int):
        return value
    return value[layer] if layer < len(value) else 0


def widest(value: int | tuple[int, ...]) -> int:
    """The largest of a per-layer hyper-parameter."""
    return value if isinstance(value, int) else max(value, default=0)


def is_mla(arch: ArchitectureConfig) -> bool:
    """Whether K and V are compressed into one latent row (deepseek2 with key_length_mla)."""
    return arch.key_length_mla > 0


def trunk(arch: ArchitectureConfig) -> int:
    """Layers without those at the end that only predict further tokens (MTP)."""
    return max(0, arch.n_layer - arch.n_layer_nextn)


@lru_cache(maxsize=1 << 16)
def split_name(tensor: str) -> tuple[int, str]:
    """Layer index and the rest of a tensor named `blk.N.…`; -1 and the whole name of others."""
    block, _, rest = tensor.partition(".")
    index, _, stem = rest.partition(".")
    return (int(index), stem) if block == "blk" and index.isdecimal() else (-1, tensor)


@lru_cache(maxsize=1024)
def layers(arch: ArchitectureConfig, *, nextn_kv: bool = False) -> Layers:
    """The kinds of `arch`'s layers; `nextn_kv`: those for further tokens keep K/V in the model's own context.

    Source: llama-model.cpp create_memory and load_hparams (set_swa_pattern).
    """
    recurrent = frozenset(il for il in range(trunk(arch)) if _recurs(arch, il))
    last = arch.n_layer if nextn_kv else trunk(arch)
    owners = arch.n_layer_kv or (GEMMA3N_KV_LAYERS if arch.arch == "gemma3n" else arch.n_layer)
    attending = [il for il in range(min(last, owners)) if _attends(arch, il, recurs=il in recurrent)]
    sliding = frozenset(il for il in attending if slides(arch, il))
    return Layers(
        n_layer=arch.n_layer,
        full=tuple(il for il in attending if il not in sliding),
        sliding=tuple(il for il in attending if il in sliding),
        recurrent=tuple(sorted(recurrent)),
    )


def nextn_layers(arch: ArchitectureConfig) -> Layers:
    """The layers of the context that drafts further tokens (`draft-mtp`): each keeps K and V of the whole context."""
    return Layers(n_layer=arch.n_layer, full=tuple(range(trunk(arch), arch.n_layer)), sliding=(), recurrent=())


def slides(arch: ArchitectureConfig, layer: int) -> bool:
    """Whether `layer` sees only the last n_swa tokens."""
    if not arch.n_swa:
        return False
    if isinstance(arch.swa_pattern, tuple):
        return layer < len(arch.swa_pattern) and arch.swa_pattern[layer]
    period = arch.swa_pattern or SWA_PERIOD.get(arch.arch, 0)
    return period > 0 and layer % period < period - 1


def _recurs(arch: ArchitectureConfig, layer: int) -> bool:
    """Whether `layer` keeps a recurrent state."""
    if arch.shortconv_l_cache:
        return at(arch.n_head_kv, layer) == 0
    if not arch.ssm_d_inner:
        return False
    if arch.full_attention_interval:
        return (layer + 1) % arch.full_attention_interval != 0
    if arch.arch in NEMOTRON:
        return at(arch.n_head_kv, layer) == 0 and at(arch.n_ff, layer) == 0
    return _both(arch) or at(arch.n_head_kv, layer) == 0


def _both(arch: ArchitectureConfig) -> bool:
    """Whether each layer keeps a recurrent state beside keys and values: as in falcon-h1, or nothing says which."""
    return isinstance(arch.n_head_kv, int) and not arch.full_attention_interval


def _attends(arch: ArchitectureConfig, layer: int, *, recurs: bool) -> bool:
    """Whether `layer` keeps keys and values."""
    if arch.arch in NO_CACHE:
        return False
    if arch.arch in NEMOTRON:
        return at(arch.n_head_kv, layer) != 0 and at(arch.n_ff, layer) == 0
    if recurs and not _both(arch):
        return False
    return at(arch.n_head_kv, layer) != 0


def key_length(arch: ArchitectureConfig, *, sliding: bool = False) -> int:
    """Width of one K head (MLA: the whole latent row, kv_lora + rope)."""
    if sliding and arch.key_length_swa:
        return arch.key_length_swa
    if is_mla(arch):
        return arch.kv_lora_rank + arch.rope_dim if arch.kv_lora_rank and arch.rope_dim else arch.key_length
    return arch.key_length or arch.n_embd // max(1, widest(arch.n_head))


def value_length(arch: ArchitectureConfig, *, sliding: bool = False) -> int:
    """Width of one V head."""
    if sliding and arch.value_length_swa:
        return arch.value_length_swa
    return arch.value_length or arch.n_embd // max(1, widest(arch.n_head))
