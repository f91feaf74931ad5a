"""Hyper-parameters give the published parameter counts, and files have the sizes that follow."""

from __future__ import annotations

import pytest

from launcher.catalog.files import describe

PUBLISHED = {
    "bge_large_en_v1_5": 334.1e6,  # 335M with the pooler, which the GGUF leaves out
    "gpt_oss_20b": 20.91e9,
    "granite_4_0_h_small": 32.21e9,
    "granite_4_0_micro": 3.40e9,
    "mythomax_l2_13b": 13.02e9,
    "nemotron_3_nano_30b_a3b": 31.58e9,
    "qwen2_5_0_5b": 494e6,
    "qwen2_5_7b": 7.62e9,
    "qwen2_5_coder_0_5b": 494e6,
    "qwen2_5_coder_1_5b": 1.54e9,
    "qwen2_5_coder_32b": 32.76e9,
    "qwen2_5_vl_7b": 7.62e9,  # the text half
    "qwen3_0_6b": 596e6,
    "qwen3_235b_a22b": 235.09e9,
    "qwen3_coder_30b_a3b": 30.53e9,
    "qwen3_coder_480b_a35b": 480.15e9,
    "qwen3_coder_draft_0_75b": 752e6,
    "qwen3_next_80b_a3b": 79.67e9,
    "qwen3_vl_30b_a3b": 30.53e9,  # the text half
    "smollm2_135m": 134.5e6,
}
BITS = {"f16": 16, "q8_0": 8.5, "q5_k_m": 5.7, "q4_k_m": 4.85, "q4_1": 5.0, "q3_k_m": 3.9, "mxfp4": 4.6}
UNEVEN = {"nemotron_3_nano_30b_a3b", "qwen2_5_coder_0_5b", "qwen2_5_0_5b", "smollm2_135m"}
"""Rows are no multiple of 256, or the output matrix weighs much: more bits than the mix is known for."""

UNGATED = {"nemotron_h_moe", "bert"}


@pytest.fixture
def models(fleet):
    """The whole catalogue."""
    return fleet("profile=dev", "hardware=dev").models


def at(value, layer):
    """A per-layer value."""
    return value[layer] if isinstance(value, tuple) else value


def parameters(a):
    """Parameters of the weight matrices (norms and biases are below a thousandth of them)."""
    total = a.n_vocab * a.n_embd * (1 if a.tied_embeddings or a.arch == "bert" else 2)
    if a.arch == "bert":
        total += (a.n_ctx_train + a.n_token_types) * a.n_embd
    return total + sum(mixer(a, il) + feed_forward(a, il) for il in range(a.n_layer))


def mixer(a, il):
    """Attention or recurrent matrices of a layer."""
    interval, kv = a.full_attention_interval, at(a.n_head_kv, il)
    if interval and (il + 1) % interval:  # gated delta net: q, k, v, gate, two gates a head, output
        keys = 2 * a.ssm_n_group * a.ssm_d_state
        return a.n_embd * (keys + 3 * a.ssm_d_inner + 2 * a.ssm_dt_rank) + 4 * (keys + a.ssm_d_inner)
    if a.ssm_d_inner and not interval and not kv:
        if a.arch == "nemotron_h_moe" and at(a.n_ff, il):
            return 0
        groups = 2 * a.ssm_n_group * a.ssm_d_state
        return a.n_embd * (3 * a.ssm_d_inner + groups + a.ssm_dt_rank) + a.ssm_d_conv * (a.ssm_d_inner + groups)
    heads = at(a.n_head, il)
    key = a.key_length or a.n_embd // heads
    query = heads * key * (2 if interval else 1)  # qwen3next gates its queries
    return a.n_embd * (query + 2 * kv * key + heads * key)


def feed_forward(a, il):
    """Feed-forward matrices of a layer."""
    matrices = 2 if a.arch in UNGATED else 3
    if a.arch == "nemotron_h_moe" and not at(a.n_ff, il):
        return 0
    if a.n_expert:
        return a.n_embd * (matrices * (a.n_expert * a.n_ff_exp + a.n_ff_shexp) + a.n_expert)
    return matrices * a.n_embd * at(a.n_ff, il)


def test_every_model_has_a_published_count(models):
    """The table is complete."""
    assert set(models) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(models, name):
    """Within 2 % of what the publisher says."""
    assert parameters(models[name].architecture) == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_file_sizes_follow_from_the_parameters(models, name):
    """A published size is parameters times the bits of its quantization, within reason."""
    for quantization, file in models[name].files.items():
        if file.bytes is not None:
            expected = PUBLISHED[name] * BITS[quantization] / 8
            assert file.bytes == pytest.approx(expected, rel=0.35 if name in UNEVEN else 0.06), quantization


def test_split_files_name_their_first_part(models):
    """235B has 4 parts, 480B 8, and every split file says so in its name."""
    assert models["qwen3_235b_a22b"].files["q4_k_m"].parts == 4
    assert models["qwen3_coder_480b_a35b"].files["q4_k_m"].parts == 8
    for model in models.values():
        for file in model.files.values():
            assert file.path.endswith(f"-00001-of-{file.parts:05}.gguf") is (file.parts > 1)


def test_experts_that_keep_a_model_coherent(fleet):
    """No server goes below what its operators found, and only these two are known."""
    config = fleet("profile=full", "hardware=epyc")
    known = {n: m.architecture.n_expert_used_min for n, m in config.models.items() if m.architecture.n_expert_used_min}
    assert known == {"qwen3_235b_a22b": 4, "qwen3_coder_480b_a35b": 3}
    for server in config.servers.values():
        if server.experts_used is not None:
            a = config.models[server.model].architecture
            assert a.n_expert_used_min <= server.experts_used <= a.n_expert_used


def test_drafts_speak_their_targets_language(fleet):
    """Same tokenizer and BOS, vocabularies within llama.cpp's 128 tokens; none for recurrent or vision models."""
    config = fleet("profile=full", "hardware=epyc")
    for name, server in config.servers.items():
        target = config.models[server.model]
        if target.architecture.ssm_d_inner or target.projector is not None:
            assert server.draft is None, name
            assert server.ngram is None, name
        if server.draft is not None:
            draft = config.models[server.draft.model].architecture
            assert (draft.tokenizer, draft.tokenizer_pre) == (target.architecture.tokenizer, "qwen2")
            assert draft.bos_token_id == target.architecture.bos_token_id
            assert abs(draft.n_vocab - target.architecture.n_vocab) <= 128


def test_quantizations_have_ggmls_block_sizes(fleet):
    """Weights and bytes of a block of the default type (ggml-common.h)."""
    blocks = {
        "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q6_K": (256, 210), "q5_K": (256, 176),
        "q5_0": (32, 22), "q5_1": (32, 24), "q4_K": (256, 144), "q4_0": (32, 18), "q4_1": (32, 20),
        "q3_K": (256, 110), "q2_K": (256, 84), "iq4_xs": (256, 136), "iq4_nl": (32, 18), "mxfp4": (32, 17),
    }  # fmt: skip
    quantizations = fleet("profile=dev", "hardware=dev").quantizations.values()
    assert {q.default_type: (q.block, q.block_bytes) for q in quantizations} == blocks


def test_the_packaged_model_is_what_its_header_says(models, smollm2):
    """SmolLM2's entry agrees with the file in the wheel."""
    entry, file = models["smollm2_135m"], describe(str(smollm2))
    declared = entry.architecture
    for name in ("arch", "n_layer", "n_embd", "n_head", "n_head_kv", "n_ff", "n_vocab", "n_ctx_train", "n_merges"):
        assert getattr(declared, name) == getattr(file.architecture, name), name
    for name in ("tied_embeddings", "tokenizer", "tokenizer_pre", "bos_token_id"):
        assert getattr(declared, name) == getattr(file.architecture, name), name
    assert entry.files["q4_1"].bytes == file.file_bytes
