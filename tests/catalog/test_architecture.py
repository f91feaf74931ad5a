"""From headers to architectures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from launcher.catalog.architecture import architecture_from_headers
from launcher.catalog.files import describe
from launcher.catalog.gguf import BadHeader, parse_header
from launcher.catalog.layouts import LAYOUTS
from launcher.ir.architectures import ARCHITECTURES, complete, is_recurrent
from launcher.ir.config import ArchitectureConfig
from tests import tinymodels

from . import rawgguf as raw


def architecture(content: bytes) -> ArchitectureConfig:
    """The architecture of a file in memory."""
    return architecture_from_headers((parse_header(io.BytesIO(content), len(content)),))


def test_the_real_model(smollm2: Path) -> None:
    """SmolLM2's public hyper-parameters."""
    assert describe(str(smollm2)).architecture == ArchitectureConfig(
        arch="llama",
        n_layer=30,
        n_embd=576,
        n_head=9,
        n_head_kv=3,
        n_vocab=49152,
        n_ctx_train=8192,
        n_ff=1536,
        key_length=64,
        value_length=64,
        rope_dim=64,
        tied_embeddings=True,
        tokenizer="gpt2",
        tokenizer_pre="smollm",
        bos_token_id=1,
        n_merges=48900,
    )


_FACTS: dict[str, dict[str, Any]] = {
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
    "qwen3moe": {"qk_norm": True},
    "gemma3": {"tied_embeddings": True, "swa_pattern": 6},
    "gpt-oss": {"attention_bias": True, "swa_pattern": 2, "tied_embeddings": False},
    "bert": {"causal": False, "pooling": "cls", "tokenizer": "bert", "n_token_types": 2, "tied_embeddings": False},
    "qwen3next": {"full_attention_interval": 4},
}


@pytest.mark.parametrize("arch", tinymodels.ARCHITECTURES)
def test_every_architecture(arch: str, tmp_path: Path) -> None:
    """Sizes equal those that the file was written from; what only some have is found where it is."""
    shape = tinymodels.shape_of(arch)
    found = describe(str(tinymodels.write(arch, tmp_path))).architecture
    assert found.n_layer - found.n_layer_nextn == shape.n_layer
    assert (found.n_embd, found.n_ctx_train) == (shape.n_embd, shape.n_ctx_train)
    assert found.n_vocab == shape.n_vocab
    assert found.n_expert == shape.n_expert
    assert found.n_expert_used == shape.n_expert_used
    assert (found.ssm_d_conv, found.ssm_d_inner, found.ssm_d_state) == (shape.d_conv, shape.d_inner, shape.d_state)
    assert (found.q_lora_rank, found.kv_lora_rank) == (shape.n_lora_q, shape.n_lora_kv)
    assert found.n_swa == shape.n_swa
    for name, value in _FACTS.get(arch, {}).items():
        assert getattr(found, name) == value, name


@pytest.mark.parametrize("arch", ["granitehybrid", "nemotron_h", "nemotron_h_moe", "qwen3next"])
def test_recurrent_layers_are_those_with_state(arch: str, tmp_path: Path) -> None:
    """A layer is recurrent exactly where the file has a convolution."""
    file = describe(str(tinymodels.write(arch, tmp_path)))
    with_state = {int(t.name.split(".")[1]) for t in file.tensors if t.name.endswith("ssm_conv1d.weight")}
    assert {il for il in range(file.architecture.n_layer) if is_recurrent(file.architecture, il)} == with_state


def test_a_projector_is_described(tmp_path: Path) -> None:
    """A projector has an encoder's shape, no vocabulary and no context."""
    found = describe(str(tinymodels.write("qwen2vl-projector", tmp_path))).architecture
    assert found.arch == "clip"
    assert found.n_layer > 0
    assert (found.n_vocab, found.n_ctx_train) == (1, 0)  # a config has no architecture without a token


def test_absent_keys_take_llama_cpp_defaults() -> None:
    """Without head_count_kv every head has its own K; head sizes are n_embd / n_head."""
    found = architecture(raw.small(drop="llama.attention.head_count_kv"))
    assert (found.n_head, found.n_head_kv) == (4, 4)
    assert (found.key_length, found.value_length) == (16, 16)
    assert found.tied_embeddings
    assert found.causal


def test_per_layer_lists() -> None:
    """Lists stay lists, equal elements become one number, a wrong length is refused."""
    kinds = {n: k for n, k, _ in raw.LLAMA_KEYS} | {"llama.attention.head_count_kv": raw.ARRAY}
    for values, expected in (([2, 0], (2, 0)), ([2, 2], 2)):
        keys = [(n, kinds[n], v) for n, _, v in raw.LLAMA_KEYS if n != "llama.attention.head_count_kv"]
        keys.append(("llama.attention.head_count_kv", raw.ARRAY, (raw.I32, values)))
        assert architecture(raw.with_data(raw.header(keys, raw.LLAMA_INFOS), raw.LLAMA_DATA)).n_head_kv == expected
    keys = [*raw.LLAMA_KEYS, ("llama.attention.sliding_window_pattern", raw.ARRAY, (raw.BOOL, [True]))]
    with pytest.raises(BadHeader, match="1 elements for 2 layers"):
        architecture(raw.with_data(raw.header(keys, raw.LLAMA_INFOS), raw.LLAMA_DATA))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (raw.small(drop="general.architecture"), "general.architecture is None"),
        (raw.small(replace={"general.architecture": ""}), "must name an architecture"),
        (raw.small(drop="llama.block_count"), "llama.block_count is absent"),
        (raw.small(replace={"llama.block_count": 1_000_000}), "4,096 is the most"),
        (raw.small(drop="llama.context_length", extra=[("llama.context_length", raw.F32, 1.5)]), "is 1.5"),
        (raw.small(extra=[("llama.expert_count", raw.I32, -1)]), "is -1"),
        (raw.small(extra=[("llama.expert_count", raw.STRING, "8")]), "is '8'"),
    ],
)
def test_impossible_metadata(content: bytes, part: str) -> None:
    """Keys that are absent, of another type or absurd are named."""
    with pytest.raises(BadHeader) as caught:
        architecture(content)
    assert caught.value.code == "catalog/corrupt-header"
    assert part in caught.value.message


def test_windows_that_llama_cpp_ignores_are_dropped() -> None:
    """Phi-3's window is not used; gemma3's gets its period; gemma2 slides even where nothing says so."""
    base = ArchitectureConfig(
        arch="phi3", n_layer=4, n_embd=64, n_head=4, n_head_kv=4, n_vocab=9, n_ctx_train=9, n_swa=2047
    )
    assert complete(base).n_swa == 0

    def changed(**fields: Any) -> ArchitectureConfig:
        return complete(ArchitectureConfig(**{n: getattr(base, n) for n in base.__struct_fields__} | fields))

    assert (changed(arch="gemma3").n_swa, changed(arch="gemma3").swa_pattern) == (2047, 6)
    assert changed(arch="gemma2", n_swa=0).n_swa == 4096
    assert changed(arch="new", swa_pattern=3).n_swa == 2047
    assert changed(arch="gemma3n").n_layer_kv == 4


def test_every_compared_architecture_has_its_tensors() -> None:
    """The row that says so, and the layout, are there or missing together."""
    assert {name for name, known in ARCHITECTURES.items() if known.compared} == set(LAYOUTS)
