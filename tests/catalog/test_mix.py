"""The quantizer's rules, one by one."""

from __future__ import annotations

import pytest

from launcher.catalog.declared import synthesise
from launcher.catalog.mix import MIXES, Model, Place, category_of, find_mix, tensor_type
from launcher.ir.config import ArchitectureConfig

_MODEL = Model(arch="llama", n_layer=32, n_attention_v=32, n_expert=0, n_gqa=4, tied=False, is_70b=False)
_MIXTRAL = Model(arch="llama", n_layer=32, n_attention_v=32, n_expert=8, n_gqa=4, tied=False, is_70b=False)
_TIED = Model(arch="gemma3", n_layer=32, n_attention_v=32, n_expert=0, n_gqa=2, tied=True, is_70b=False)
_BIG = Model(arch="llama", n_layer=80, n_attention_v=80, n_expert=0, n_gqa=8, tied=False, is_70b=True)


def chosen(mix: str, name: str, *, model: Model = _MODEL, shape: tuple[int, ...] = (4096, 4096), layer: int = 0) -> str:
    """The type of a tensor in layer `layer`, of which every layer has one."""
    found = find_mix(mix)
    assert found is not None
    return tensor_type(found, model, name, shape, Place(layer, layer, layer))


@pytest.mark.parametrize(
    ("mix", "name", "layer", "expected"),
    [
        ("Q4_K_M", "attn_q.weight", 0, "q4_K"),
        ("Q4_K_M", "attn_v.weight", 3, "q6_K"),
        ("Q4_K_M", "attn_v.weight", 4, "q4_K"),
        ("Q4_K_M", "attn_v.weight", 6, "q6_K"),
        ("Q4_K_M", "ffn_down.weight", 27, "q6_K"),
        ("Q4_K_M", "ffn_down.weight", 28, "q6_K"),
        ("Q4_K_M", "ffn_down.weight", 5, "q4_K"),
        ("Q4_K_S", "attn_v.weight", 3, "q5_K"),
        ("Q4_K_S", "attn_v.weight", 4, "q4_K"),
        ("Q4_K_S", "ffn_down.weight", 3, "q5_K"),
        ("Q4_K_S", "ffn_down.weight", 4, "q4_K"),
        ("Q5_K_M", "ffn_down.weight", 0, "q6_K"),
        ("Q5_K_M", "ffn_down.weight", 5, "q5_K"),
        ("Q5_K_S", "ffn_down.weight", 0, "q5_K"),
        ("Q3_K_M", "attn_v.weight", 1, "q5_K"),
        ("Q3_K_M", "attn_v.weight", 2, "q4_K"),
        ("Q3_K_M", "ffn_down.weight", 1, "q5_K"),
        ("Q3_K_M", "ffn_down.weight", 2, "q4_K"),
        ("Q3_K_M", "attn_output.weight", 0, "q4_K"),
        ("Q3_K_L", "ffn_down.weight", 9, "q5_K"),
        ("Q3_K_S", "attn_v.weight", 9, "q3_K"),
        ("Q2_K", "attn_v.weight", 9, "q4_K"),
        ("Q2_K", "ffn_down.weight", 9, "q3_K"),
        ("Q2_K", "ffn_up.weight", 9, "q2_K"),
        ("IQ4_XS", "attn_v.weight", 9, "q5_K"),
        ("IQ4_XS", "ffn_down.weight", 3, "q5_K"),
        ("IQ4_XS", "ffn_down.weight", 4, "iq4_xs"),
        ("IQ3_XS", "ffn_up.weight", 3, "iq3_s"),
        ("IQ3_XS", "ffn_up.weight", 4, "iq3_xxs"),
        ("IQ3_XS", "attn_k.weight", 4, "iq3_xxs"),
        ("IQ3_XXS", "attn_q.weight", 4, "iq2_s"),
        ("IQ3_M", "attn_output.weight", 4, "q4_K"),
        ("IQ2_XXS", "attn_v.weight", 4, "q4_K"),
        ("IQ2_XXS", "ffn_down.weight", 3, "q2_K"),
        ("IQ2_M", "attn_output.weight", 4, "iq3_s"),
        ("IQ1_S", "attn_output.weight", 4, "iq2_xxs"),
        ("Q8_0", "ffn_down.weight", 0, "q8_0"),
        ("Q6_K", "ffn_down.weight", 0, "q6_K"),
        ("F16", "ffn_down.weight", 0, "f16"),
        ("BF16", "token_embd.weight", 0, "bf16"),
    ],
)
def test_rules_by_layer(mix: str, name: str, layer: int, expected: str) -> None:
    """A dense model of 32 layers with 4 query heads a K/V head."""
    assert chosen(mix, name, layer=layer) == expected


@pytest.mark.parametrize(
    ("mix", "model", "name", "expected"),
    [
        ("Q4_K_M", _MODEL, "output.weight", "q6_K"),
        ("Q4_K_M", _MODEL, "token_embd.weight", "q4_K"),
        ("Q4_K_M", _TIED, "token_embd.weight", "q6_K"),
        ("Q4_1", _TIED, "token_embd.weight", "q6_K"),
        ("Q8_0", _MODEL, "output.weight", "q8_0"),
        ("IQ2_XXS", _MODEL, "output.weight", "q5_K"),
        ("IQ2_XXS", _MODEL, "token_embd.weight", "q2_K"),
        ("IQ3_XXS", _MODEL, "token_embd.weight", "iq3_s"),
        ("TQ1_0", _MODEL, "token_embd.weight", "q4_K"),
        ("MXFP4_MOE", _MODEL, "output.weight", "q8_0"),
        ("MXFP4", _MODEL, "attn_q.weight", "q8_0"),
        ("Q4_K_M", _MIXTRAL, "attn_v.weight", "q8_0"),
        ("Q4_K_M", _MIXTRAL, "attn_k.weight", "q8_0"),
        ("Q4_K_M", _MIXTRAL, "attn_output.weight", "q5_K"),
        ("Q3_K_S", _BIG, "attn_v.weight", "q5_K"),
        ("Q2_K", _TIED, "attn_v.weight", "q3_K"),
    ],
)
def test_rules_by_model(mix: str, model: Model, name: str, expected: str) -> None:
    """Output and embedding, eight experts, the 70B's V, and models without grouped heads."""
    assert chosen(mix, name, model=model, layer=20) == expected


@pytest.mark.parametrize(
    ("mix", "row", "expected"),
    [
        ("Q4_K_S", 2880, "q5_0"),
        ("Q5_K_S", 2880, "q5_1"),
        ("Q6_K", 2880, "q8_0"),
        ("Q3_K_S", 2880, "q4_0"),
        ("IQ4_XS", 2880, "iq4_nl"),
        ("Q4_K_S", 36, "f16"),
        ("Q8_0", 36, "f16"),
    ],
)
def test_rows_that_are_no_multiple_fall_back(mix: str, row: int, expected: str) -> None:
    """Rows that are no multiple of 256 take blocks of 32, and f16 where those do not fit either."""
    assert chosen(mix, "attn_q.weight", shape=(row, 64)) == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attn_norm.weight", (4096,)),
        ("ffn_gate_inp.weight", (4096, 128)),
        ("ssm_conv1d.weight", (4, 8192)),
        ("ssm_norm.weight", (1024, 8)),
        ("ssm_a", (1, 128)),
        ("ffn_down_exps.bias", (4096, 32)),
        ("shortconv.conv.weight", (3, 1024)),
        ("position_embd.weight", (1024, 512)),
        ("token_types.weight", (1024, 2)),
    ],
)
@pytest.mark.parametrize("mix", ["Q4_K_M", "MXFP4", "F16", "Q8_0"])
def test_small_tensors_stay_whole(name: str, shape: tuple[int, ...], mix: str) -> None:
    """Vectors, norms, routers, convolutions and biases are f32 under every mix."""
    assert chosen(mix, name, shape=shape) == "f32"


def test_experts_alone_are_mxfp4() -> None:
    """In the files of gpt-oss."""
    assert chosen("MXFP4", "ffn_down_exps.weight", shape=(2880, 2880, 32)) == "mxfp4"


def test_names_of_mixes() -> None:
    """Any case; the short forms of llama-quantize; nothing for what it does not know."""
    assert find_mix("q4_k_m") is MIXES["Q4_K_M"]
    assert find_mix("mxfp4") is MIXES["MXFP4_MOE"]
    assert find_mix("Q5_K") is MIXES["Q5_K_M"]
    assert find_mix("UD-Q4_K_XL") is None


@pytest.mark.parametrize("n_expert", [0, 8, 16])
@pytest.mark.parametrize("mix", MIXES)
def test_layers_taken_from_a_template_have_the_types_of_the_rules(mix: str, n_expert: int) -> None:
    """A mix whose layers differ is known to: each tensor has the type that the rules give it at its place."""
    experts = {"n_expert": n_expert, "n_expert_used": 2, "n_ff_exp": 512} if n_expert else {}
    sizes = {"n_layer": 32, "n_embd": 512, "n_head": 4, "n_head_kv": 1, "n_ff": 512, "n_vocab": 99, "n_ctx_train": 9}
    architecture = ArchitectureConfig(arch="llama", **sizes, **experts)
    model = Model(arch="llama", n_layer=32, n_attention_v=32, n_expert=n_expert, n_gqa=4, tied=False, is_70b=False)
    tensors, _ = synthesise(architecture, MIXES[mix])
    counts = {"attention_v": 0, "ffn_down": 0}
    seen = 0
    for tensor in tensors:
        if not tensor.name.startswith("blk."):
            continue
        _, number, stem = tensor.name.split(".", 2)
        place = Place(int(number), counts["attention_v"], counts["ffn_down"])
        assert tensor.type == tensor_type(MIXES[mix], model, stem, tensor.shape, place), tensor.name
        seen += 1
        if category_of(stem) in counts:
            counts[category_of(stem)] += 1
    assert seen >= 9 * 32
