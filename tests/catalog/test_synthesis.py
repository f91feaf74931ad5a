"""Tensors made from a declaration: the same as in real files, the sizes that were published, and what is doubtful."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.catalog.declared import synthesise
from launcher.catalog.files import describe
from launcher.catalog.ggml_types import tensor_bytes
from launcher.catalog.layouts import LAYOUTS
from launcher.catalog.mix import FILE_TYPES, MIXES, find_mix
from launcher.ir.catalog import Tensor
from launcher.ir.config import ArchitectureConfig
from tests import tinymodels

from .architectures import PUBLISHED, architecture_of


def made(architecture: ArchitectureConfig, mix: str) -> tuple[Tensor, ...]:
    """Tensors of an architecture that gives no findings."""
    found = find_mix(mix)
    assert found is not None
    tensors, findings = synthesise(architecture, found)
    assert findings == ()
    return tensors


def test_the_real_model_is_made_exactly(smollm2: Path) -> None:
    """Names, types, shapes and bytes of SmolLM2's Q4_1 file, which llama-quantize wrote."""
    file = describe(str(smollm2))
    assert file.quantization == "q4_1"
    tensors = made(file.architecture, file.quantization)
    assert {t.name: t for t in tensors} == {t.name: t for t in file.tensors}


_OPTIONAL = {"deepseek2": {"blk.1.exp_probs_b.bias", "blk.2.exp_probs_b.bias"}}
"""Tensors that llama.cpp loads where a file has them, and that no hyper-parameter announces."""


@pytest.mark.parametrize("arch", tinymodels.ARCHITECTURES)
@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_tiny_models_are_made_exactly(arch: str, quantization: str, tmp_path: Path) -> None:
    """Every architecture that the real server loads in the tests: same names, shapes and types."""
    file = describe(str(tinymodels.write(arch, tmp_path, quantization=quantization)))
    optional = _OPTIONAL.get(arch, set())
    tensors = made(file.architecture, quantization)
    assert {t.name: t for t in tensors} == {t.name: t for t in file.tensors if t.name not in optional}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Within half a percent of what was published (tensors alone; headers add up to 10 MB)."""
    _, mix, gigabytes = PUBLISHED[name]
    tensors = made(architecture_of(name), mix)
    assert sum(t.size_bytes for t in tensors) == pytest.approx(gigabytes * 1e9, rel=0.005)
    assert len({t.name for t in tensors}) == len(tensors)


def test_tensors_come_in_llama_quantizes_order() -> None:
    """The model's own by name, then the layers by number."""
    names = [t.name for t in made(architecture_of("Qwen2.5-7B f16"), "F16")]
    assert names[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]
    layers = [int(n.split(".")[1]) for n in names[3:]]
    assert layers == sorted(layers)


def test_an_unknown_architecture_is_bounded_and_said() -> None:
    """The estimate is at least that of the nearest known one, and a warning goes with it."""
    known = architecture_of("Qwen3-30B-A3B")
    mix = find_mix("Q8_0")
    assert mix is not None
    tensors, findings = synthesise(msgspec.structs.replace(known, arch="qwen9"), mix, key="models.m.architecture")
    assert [(f.code, f.severity, f.key) for f in findings] == [
        ("catalog/unknown-architecture", "warning", "models.m.architecture.arch")
    ]
    least = sum(t.size_bytes for t in made(known, "Q8_0"))
    assert least <= sum(t.size_bytes for t in tensors) < 1.05 * least


def _fields(name: str) -> dict[str, Any]:
    """Hyper-parameters of a published model, to spoil."""
    return dict(PUBLISHED[name][0])


_DENSE = "Qwen2.5-7B f16"
_HYBRID = {
    "arch": "granitehybrid",
    "n_layer": 2,
    "n_embd": 64,
    "n_head": 4,
    "n_head_kv": (0, 2),
    "n_ff": 128,
    "n_vocab": 99,
    "n_ctx_train": 99,
    "ssm_d_conv": 4,
    "ssm_d_inner": 128,
    "ssm_d_state": 16,
    "ssm_n_group": 1,
    "ssm_dt_rank": 4,
}


@pytest.mark.parametrize(
    ("fields", "field", "part"),
    [
        (_fields(_DENSE) | {"n_layer": 0}, "n_layer", "qwen2 needs n_layer"),
        (_fields(_DENSE) | {"n_layer": 10**9}, "n_layer", "4,096 is the most"),
        (_fields(_DENSE) | {"n_embd": -5}, "n_embd", "must be between"),
        (_fields(_DENSE) | {"n_vocab": 2**60}, "n_vocab", "must be between"),
        (_fields(_DENSE) | {"n_ff": 0}, "n_ff", "qwen2 needs n_ff"),
        (_fields(_DENSE) | {"n_head": 0}, "n_head", "qwen2 needs n_head"),
        (_fields(_DENSE) | {"n_head_kv": (4, 4)}, "n_head_kv", "2 elements for 28 layers"),
        (_fields("Qwen3-30B-A3B") | {"n_expert": 0}, "n_expert", "qwen3moe needs n_expert"),
        (_fields("Qwen3-30B-A3B") | {"n_ff_exp": 0}, "n_ff_exp", "qwen3moe needs n_ff_exp"),
        (_fields("Qwen3-Next-80B-A3B") | {"ssm_d_state": 0}, "ssm_d_state", "qwen3next needs ssm_d_state"),
        (_fields("DeepSeek-V2-Lite") | {"kv_lora_rank": 0}, "kv_lora_rank", "deepseek2 needs kv_lora_rank"),
        (_fields("DeepSeek-V2-Lite") | {"key_length_mla": 64}, "key_length_mla", "must exceed rope_dim"),
        (_fields("BGE-large") | {"n_token_types": 0}, "n_token_types", "bert needs n_token_types"),
        (_HYBRID | {"n_head_kv": 2}, "n_head_kv", "as a list"),
        (_HYBRID | {"arch": "nemotron_h"}, "n_ff", "as a list"),
        (_HYBRID | {"arch": "lfm2"}, "shortconv_l_cache", "lfm2 needs"),
    ],
)
def test_incomplete_declarations(fields: dict[str, Any], field: str, part: str) -> None:
    """What an architecture needs and does not have is an error at its field, and nothing is made."""
    mix = find_mix("Q4_K_M")
    assert mix is not None
    tensors, findings = synthesise(ArchitectureConfig(**fields), mix, key="models.m.architecture")
    assert tensors == ()
    found = {f.key: f for f in findings}
    assert part in found[f"models.m.architecture.{field}"].message
    assert {f.code for f in findings} == {"catalog/incomplete-architecture"}


_SMALL_NUMBERS = st.integers(0, 300)
WHOLE = {"int", "Positive", "NotNegative", "int | tuple[int, ...]", "int | tuple[bool, ...]"}
"""What fields are annotated with that may be whole numbers."""


@settings(max_examples=150, deadline=None)
@given(
    arch=st.sampled_from([*LAYOUTS, "never-heard-of"]),
    mix=st.sampled_from(sorted(MIXES)),
    fields=st.fixed_dictionaries(
        {
            name: _SMALL_NUMBERS
            for name in ArchitectureConfig.__struct_fields__
            if ArchitectureConfig.__annotations__[name] in WHOLE
        }
    ),
    lists=st.booleans(),
)
def test_any_declaration_gets_an_answer(arch: str, mix: str, fields: dict[str, Any], lists: bool) -> None:
    """Whatever numbers are declared: findings, or tensors whose bytes are those of type and shape."""
    fields |= {"n_layer": fields["n_layer"] % 6}
    if lists:
        layers = range(fields["n_layer"])
        fields |= {name: tuple(fields[name] * (il % 2) for il in layers) for name in ("n_head_kv", "n_ff")}
    chosen = find_mix(mix)
    assert chosen is not None
    tensors, findings = synthesise(ArchitectureConfig(arch=arch, **fields), chosen)
    assert tensors or findings
    assert all(t.size_bytes == tensor_bytes(t.type, t.shape) for t in tensors)


def test_file_types_are_numbered_as_in_llama_h() -> None:
    """`general.file_type` of the gguf package, where it has the same name."""
    import gguf

    theirs = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in gguf.LlamaFileType}
    shared = {k: v for k, v in theirs.items() if k in FILE_TYPES}
    assert shared == {k: FILE_TYPES[k] for k in shared}
    assert len(shared) > 30
    assert set(FILE_TYPES.values()) == set(MIXES)
