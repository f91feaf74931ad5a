"""Keys of an indexer: exact for the models of which a server was asked, by build."""

from __future__ import annotations

import pytest

from launcher.ir.architectures import complete
from launcher.ir.config import ArchitectureConfig
from launcher.plan import estimate, settle
from launcher.sizes import MIB

from .fleets import MLA, hardware, model_file, server, with_fields

DEEPSEEK = ArchitectureConfig(
    arch="deepseek32",
    n_layer=61,
    n_embd=7168,
    n_head=128,
    n_head_kv=1,
    key_length=576,
    value_length=512,
    n_ff=18432,
    n_vocab=129280,
    n_ctx_train=163840,
    n_expert=256,
    n_expert_used=8,
    n_ff_exp=2048,
    n_expert_shared=1,
    n_layer_dense_lead=3,
    q_lora_rank=1536,
    kv_lora_rank=512,
    rope_dim=64,
    key_length_mla=192,
    value_length_mla=128,
)


def kv(arch: ArchitectureConfig, n_ctx: int, build: int = 11434) -> float:
    """MiB of K/V of one slot in f16."""
    model = model_file(complete(arch))
    return estimate(model, settle(server(n_ctx=n_ctx), model, hardware(), build=build).settings)[0].kv_bytes / MIB


def test_f7_keys_of_an_indexer() -> None:
    """F7: 8,784 MiB of latent rows and 1,952 MiB of keys (dry run of b10068); a quantised type holds for both."""
    assert kv(DEEPSEEK, 131072) == 8784 + 1952
    model = model_file(complete(DEEPSEEK))
    config = server(n_ctx=131072, cache_type_k="q8_0", cache_type_v="q8_0")
    (ram,) = estimate(model, settle(config, model, hardware()).settings)
    assert ram.kv_bytes == 61 * 131072 * (576 + 128) // 32 * 34


@pytest.mark.parametrize(("build", "layers", "indexed"), [(10068, 6, 0), (10434, 5, 5), (11434, 5, 5), (0, 6, 6)])
def test_glm_by_build(build: int, layers: int, indexed: int) -> None:
    """glm-dsa with a layer for further tokens: old builds keep that one's K, and no keys (measured); 0 is the most."""
    glm = with_fields(DEEPSEEK, arch="glm-dsa", n_layer=6, n_layer_nextn=1, n_head=64, key_length_mla=256)
    assert kv(glm, 8192, build) == layers * 9 + indexed * 2


def test_layers_that_share_an_indexer_keep_no_key() -> None:
    """`indexer_types`, and without it what models trained with a million tokens do (GLM 5.2)."""
    glm = with_fields(DEEPSEEK, arch="glm-dsa", n_layer=8)
    every = kv(glm, 8192)
    assert every - kv(with_fields(glm, indexer_types=(True, False) * 4), 8192) == 4 * 2
    assert every - kv(with_fields(glm, n_ctx_train=1_048_576), 8192) == 4 * 2


def test_latent_attention_alone_has_no_keys() -> None:
    """The near miss: deepseek2."""
    assert kv(MLA, 8192) == 2 * 8192 * 64 * 2 / MIB
