"""The tensors of a model file that is not at hand, from its architecture and its quantization mix. Pure.

In: `ArchitectureConfig`, `Mix`, the config key they were written under. Out: tensors and findings.
"""

from __future__ import annotations

from launcher.catalog.blocks import Layer, Part
from launcher.catalog.file_types import Mix
from launcher.catalog.ggml_types import tensor_bytes
from launcher.catalog.layouts import LAYOUTS, layer_kind, layer_parts, model_parts
from launcher.catalog.mix import (
    Model,
    Place,
    category_of,
    depends_on_place,
    is_quantizable,
    is_v_like,
    tensor_type,
)
from launcher.catalog.requirements import missing_fields
from launcher.catalog.traits import complete, first_positive
from launcher.errors import Finding, has_errors
from launcher.ir.catalog import Tensor
from launcher.ir.config import ArchitectureConfig
from launcher.sizes import gib

_LAYERS_OF_70B = 80


def synthesise(
    architecture: ArchitectureConfig, mix: Mix, *, key: str = ""
) -> tuple[tuple[Tensor, ...], tuple[Finding, ...]]:
    """Every tensor that llama-quantize would write, in its order, and what is doubtful about them.

    An architecture that is not known gets an upper bound and `catalog/unknown-architecture`; one that lacks what its
    kind needs gets no tensors and `catalog/incomplete-architecture` (an error). `key` is the architecture's.
    """
    findings = missing_fields(architecture, key)
    if has_errors(findings):
        return (), findings
    a = complete(architecture)
    kinds = [layer_kind(a, il) for il in range(a.n_layer)]
    parts = {kind: layer_parts(a, kind) for kind in dict.fromkeys(kinds)}
    globals_ = tuple(model_parts(a))
    model = _model(a, kinds, parts, tied=all(p.name != "output.weight" for p in globals_))
    tensors = [_tensor(mix, model, p, Place()) for p in globals_]
    _add_layers(tensors, mix, model, kinds, parts)
    if a.arch not in LAYOUTS:
        findings += (_unknown(a, tensors, key),)
    return tuple(tensors), findings


def _model(a: ArchitectureConfig, kinds: list[Layer], parts: dict[Layer, tuple[Part, ...]], *, tied: bool) -> Model:
    """What the quantizer's rules ask. `LLM_TYPE_70B` is llama and qwen2 with 80 layers."""
    v_like = {kind: sum(is_v_like(p.name) for p in found) for kind, found in parts.items()}
    heads, heads_kv = (v if isinstance(v, int) else v[0] for v in (a.n_head, a.n_head_kv))
    return Model(
        arch=a.arch,
        n_layer=a.n_layer,
        n_attention_v=sum(v_like[kind] for kind in kinds),
        n_expert=a.n_expert,
        n_gqa=heads // heads_kv if heads_kv else 0,
        tied=tied,
        is_70b=a.arch in {"llama", "qwen2", "qwen2vl"} and a.n_layer == _LAYERS_OF_70B and heads != heads_kv,
    )


def _tensor(mix: Mix, model: Model, part: Part, place: Place) -> Tensor:
    """One tensor under the rules."""
    kind = tensor_type(mix, model, part.name, part.shape, place)
    return Tensor(name=part.name, type=kind, shape=part.shape, size_bytes=tensor_bytes(kind, part.shape))


def _add_layers(
    tensors: list[Tensor], mix: Mix, model: Model, kinds: list[Layer], parts: dict[Layer, tuple[Part, ...]]
) -> None:
    """Append every layer's tensors. Types are chosen once a kind of layer, and anew only where the place counts."""
    templates = {kind: [_template(mix, model, p) for p in found] for kind, found in parts.items()}
    i_v = i_down = 0
    for il, kind in enumerate(kinds):
        prefix = f"blk.{il}."
        for name, shape, chosen, size, category in templates[kind]:
            if not category:
                tensors.append(Tensor(name=prefix + name, type=chosen, shape=shape, size_bytes=size))
                continue
            placed = tensor_type(mix, model, name, shape, Place(il, i_v, i_down))
            size_here = size if placed == chosen else tensor_bytes(placed, shape)
            tensors.append(Tensor(name=prefix + name, type=placed, shape=shape, size_bytes=size_here))
            if category == "ffn_down":
                i_down += 1
            elif category.startswith("attention"):
                i_v += 1


def _template(mix: Mix, model: Model, part: Part) -> tuple[str, tuple[int, ...], str, int, str]:
    """Name, shape, type and bytes of a part, and its category if its type depends on the layer, else nothing."""
    first = _tensor(mix, model, part, Place())
    moves = mix.quantizes and is_quantizable(part.name, part.shape) and depends_on_place(mix, part.name)
    return part.name, part.shape, first.type, first.size_bytes, category_of(part.name) if moves else ""


def _unknown(a: ArchitectureConfig, tensors: list[Tensor], key: str) -> Finding:
    """The warning that goes with a generic estimate."""
    total = sum(t.size_bytes for t in tensors)
    return Finding(
        code="catalog/unknown-architecture",
        severity="warning",
        key=f"{key}.arch".lstrip("."),
        message=(
            f"the tensors of {a.arch!r} are not known; {gib(total)} is an upper bound for a transformer with "
            f"{a.n_layer} layers of {a.n_embd} and a vocabulary of {first_positive(a.n_vocab):,}"
        ),
        notes=("put the GGUF file in place to plan with its own header", f"known: {', '.join(sorted(LAYOUTS))}"),
    )
