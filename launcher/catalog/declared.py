"""Model files that are not at hand, made from the catalogue's declarations; declarations compared with headers. Pure.

Tensors come from an architecture and a quantization mix, as llama-quantize would write them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from launcher.catalog.ggml_types import tensor_bytes
from launcher.catalog.layouts import LAYOUTS, Layer, Part, layer_kind, layer_parts, model_parts, shared_width
from launcher.catalog.locate import split_paths
from launcher.catalog.mix import V_LIKE, Mix, Model, Place, category_of, find_mix, moves, tensor_type
from launcher.errors import Finding, Fix, fault, has_errors
from launcher.ir.architectures import (
    MAX_LAYERS,
    at_layer,
    complete,
    first_positive,
    is_recurrent,
    slides,
    traits,
    trunk,
)
from launcher.ir.catalog import FilePart, ModelFile, Tensor
from launcher.ir.config import ArchitectureConfig, ModelConfig
from launcher.sizes import gib

MAX_SIZE = 2**40
"""Larger than any width, count or vocabulary of a real model."""

_EVERY = ("n_layer", "n_embd", "n_vocab", "n_ctx_train")
_EXPERTS = ("n_expert", "n_expert_used", "n_ff_exp")


def missing_fields(architecture: ArchitectureConfig, key: str) -> tuple[Finding, ...]:
    """Errors for values that are absent, absurd or of the wrong length; `key` is the architecture's config key."""
    a = complete(architecture)
    problems = [*absurd_fields(architecture), *_lists(a)]
    needed = [*_EVERY, *traits(a.arch).needs]
    if traits(a.arch).is_mixture or a.n_expert:
        needed += _EXPERTS
    problems += [(name, f"{a.arch} needs {name}") for name in needed if not getattr(a, name)]
    if not first_positive(a.n_head):
        problems.append(("n_head", f"{a.arch} needs n_head"))
    if not traits(a.arch).is_mixture and not a.n_expert and not first_positive(a.n_ff):
        problems.append(("n_ff", f"{a.arch} needs n_ff"))
    if a.arch == "nemotron_h_moe" and not shared_width(a):
        problems.append(("n_ff_shexp", f"{a.arch} needs n_ff_shexp"))
    if "kv_lora_rank" in traits(a.arch).needs and a.key_length_mla and a.key_length_mla <= a.rope_dim:
        problems.append(("key_length_mla", f"key_length_mla {a.key_length_mla} must exceed rope_dim {a.rope_dim}"))
    return tuple(_finding(f"{key}.{name}".lstrip("."), message, a) for name, message in dict.fromkeys(problems))


def absurd_fields(a: ArchitectureConfig) -> list[tuple[str, str]]:
    """Fields with numbers that no model has, and what is wrong: negative, or enough to fill the planner's memory."""
    problems = []
    for name in a.__struct_fields__:
        value = getattr(a, name)
        if isinstance(value, int) and 0 <= value <= MAX_SIZE:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if name != "bos_token_id" and any(isinstance(n, int) and not 0 <= n <= MAX_SIZE for n in numbers):
            problems.append((name, f"{name} is {value}; it must be between 0 and {MAX_SIZE:,}"))
    if a.n_layer > MAX_LAYERS:
        problems.append(("n_layer", f"n_layer is {a.n_layer:,}; {MAX_LAYERS:,} is the most"))
    return problems


def _lists(a: ArchitectureConfig) -> list[tuple[str, str]]:
    """Per-layer lists of the wrong length, or one number where a list is needed."""
    problems = []
    for name in ("n_head", "n_head_kv", "n_ff", "swa_pattern"):
        value = getattr(a, name)
        if isinstance(value, tuple) and len(value) != a.n_layer:
            problems.append((name, f"{name} has {len(value)} elements for {a.n_layer} layers"))
    if a.indexer_types and len(a.indexer_types) != trunk(a):
        message = f"indexer_types has {len(a.indexer_types)} elements for {trunk(a)} layers"
        problems.append(("indexer_types", message))
    return problems + [
        (name, f"{a.arch} needs {name} as a list with one number a layer; 0 marks layers of another kind")
        for name in traits(a.arch).lists
        if isinstance(getattr(a, name), int)
    ]


def _finding(key: str, message: str, a: ArchitectureConfig) -> Finding:
    known = a.arch in LAYOUTS or traits(a.arch).is_encoder
    return fault(
        "catalog/incomplete-architecture",
        key,
        message,
        *(("take it from the model's config.json, or put the GGUF file in place",) if known else ()),
    )


_LAYERS_OF_70B = 80


def synthesise(
    architecture: ArchitectureConfig, mix: Mix, *, key: str = ""
) -> tuple[tuple[Tensor, ...], tuple[Finding, ...]]:
    """Every tensor that llama-quantize would write, in its order, and findings about doubtful ones.

    An unknown architecture gets an upper bound and `catalog/unknown-architecture`; one without required values gets no
    tensors and `catalog/incomplete-architecture` (an error). `key` is the architecture's.
    """
    findings = missing_fields(architecture, key)
    if has_errors(findings):
        return (), findings
    a = complete(architecture)
    kinds = [layer_kind(a, il) for il in range(a.n_layer)]
    parts = {kind: layer_parts(a, kind) for kind in dict.fromkeys(kinds)}
    globals_ = tuple(model_parts(a))
    model = _model(a, kinds, parts, tied=all(p.name != "output.weight" for p in globals_))
    tensors = [
        Tensor(name=name, type=kind, shape=shape, size_bytes=size)
        for name, shape, kind, size, _ in (_template(mix, model, part) for part in globals_)
    ]
    _add_layers(tensors, mix, model, kinds, parts)
    if a.arch not in LAYOUTS:
        findings += (_unknown(a, tensors, key),)
    return tuple(tensors), findings


def _model(a: ArchitectureConfig, kinds: list[Layer], parts: dict[Layer, tuple[Part, ...]], *, tied: bool) -> Model:
    """The facts that the quantizer's rules depend on. `LLM_TYPE_70B` is llama and qwen2 with 80 layers."""
    v_like = {kind: sum(category_of(p.name) in V_LIKE for p in found) for kind, found in parts.items()}
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


def _add_layers(
    tensors: list[Tensor], mix: Mix, model: Model, kinds: list[Layer], parts: dict[Layer, tuple[Part, ...]]
) -> None:
    """Append every layer's tensors. Types are chosen once a kind of layer, and anew only where the place counts."""
    templates = {kind: [_template(mix, model, p) for p in found] for kind, found in parts.items()}
    i_v = i_down = 0
    for il, kind in enumerate(kinds):
        for name, shape, usual, usual_size, category in templates[kind]:
            chosen, size = usual, usual_size
            if category:
                chosen = tensor_type(mix, model, name, shape, Place(il, i_v, i_down))
                size = usual_size if chosen == usual else tensor_bytes(chosen, shape)
                i_v += category in V_LIKE
                i_down += category == "ffn_down"
            tensors.append(Tensor(name=f"blk.{il}.{name}", type=chosen, shape=shape, size_bytes=size))


def _template(mix: Mix, model: Model, part: Part) -> tuple[str, tuple[int, ...], str, int, str]:
    """Name, shape, type and bytes of a part, and its category if its type depends on the layer, else nothing."""
    kind = tensor_type(mix, model, part.name, part.shape, Place())
    category = category_of(part.name) if moves(mix, part.name, part.shape) else ""
    return part.name, part.shape, kind, tensor_bytes(kind, part.shape), category


def _unknown(a: ArchitectureConfig, tensors: list[Tensor], key: str) -> Finding:
    total = sum(t.size_bytes for t in tensors)
    message = (
        f"the tensors of {a.arch!r} are not known; {gib(total)} is an upper bound for a transformer with "
        f"{a.n_layer} layers of {a.n_embd} and a vocabulary of {first_positive(a.n_vocab):,}"
    )
    notes = ("put the GGUF file in place to plan with its own header", f"known: {', '.join(sorted(LAYOUTS))}")
    return fault("catalog/unknown-architecture", f"{key}.arch".lstrip("."), message, *notes, severity="warning")


SIZE_TOLERANCE = 0.03
"""Share by which a published size may differ from the tensors' without a warning."""

_TOKEN_BYTES, _MERGE_BYTES, _INFO_BYTES, _KEYS_BYTES = 24, 20, 70, 16 * 1024
"""Usual bytes in a header of a token (text, type), a merge, a tensor info, and all else."""

_PEOPLE_KNOW = ("n_expert_used_min",)
"""Fields that are in no header."""

_NO_MEMORY = frozenset({"n_expert_used_min", "pooling", "tokenizer", "tokenizer_pre", "bos_token_id", "causal"})
_ONLY_IF_DECLARED = frozenset(
    {"n_merges", "n_token_types", "n_layer_kv", "n_ff_shexp", "n_expert_shared", "n_deepstack", "indexer_types"}
)
"""Fields that a declaration may leave out: a header that has more does not contradict it."""
_BY_LAYER = frozenset({"n_head", "n_head_kv", "n_ff", "swa_pattern"})
"""Fields compared layer by layer, and not at all when the number of layers differs."""


def declared_file(
    config: ModelConfig, model: str, quantization: str, mix: Mix, path: str
) -> tuple[ModelFile | None, tuple[Finding, ...]]:
    """A model file that is not at hand, with its findings; None when the architecture cannot be sized."""
    key = f"models.{model}"
    tensors, findings = synthesise(config.architecture, mix, key=f"{key}.architecture")
    if has_errors(findings):
        return None, findings
    a, entry = complete(config.architecture), config.files[quantization]
    total = sum(t.size_bytes for t in tensors)
    header = a.n_vocab * _TOKEN_BYTES + a.n_merges * _MERGE_BYTES + len(tensors) * _INFO_BYTES + _KEYS_BYTES
    estimate = total + (header if a.tokenizer != "none" else 0)
    if entry.bytes is not None and abs(entry.bytes - estimate) > SIZE_TOLERANCE * estimate and a.arch in LAYOUTS:
        findings += (_size_mismatch(f"{key}.files.{quantization}.bytes", entry.bytes, estimate, mix),)
    published = entry.bytes if entry.bytes is not None and entry.bytes >= total else estimate
    # parts of a file that is not at hand are of equal size; their number is in the name, as llama.cpp has it
    named = split_paths(path) or (path,)
    share, rest = divmod(published, len(named))
    parts = tuple(FilePart(path=p, size_bytes=share + (i < rest)) for i, p in enumerate(named))
    if entry.parts not in {1, len(parts)}:
        at = f"{key}.files.{quantization}.parts"
        findings += (_mismatch(at, "the number of parts", entry.parts, f"{len(parts)} by its name"),)
    file = ModelFile(
        model=model,
        quantization=quantization,
        source="declared",
        architecture=a,
        tensors=tensors,
        parts=parts,
        header_digest=hashlib.sha256(msgspec.json.encode((mix.name, a))).hexdigest(),
    )
    return file, findings


def _size_mismatch(key: str, declared: int, estimate: int, mix: Mix) -> Finding:
    message = (
        f"{declared / 1e9:.2f} GB ({gib(declared)}) is declared, but the declared architecture in {mix.name} "
        f"makes {estimate / 1e9:.2f} GB ({gib(estimate)})"
    )
    notes = ("GB is 1000³ bytes and GiB 1024³; or the architecture, or the mix, is another",)
    return fault("catalog/declared-mismatch", key, message, *notes, severity="warning")


def compare(config: ModelConfig, file: ModelFile, quantization: str, stated_mix: str, mix: str) -> tuple[Finding, ...]:
    """Warnings for each declared value that the header contradicts and that changes memory.

    `stated_mix` is the mix that the file names (may be empty), `mix` the one that the quantization stands for.
    """
    key = f"models.{file.model}"
    declared, actual = complete(config.architecture), file.architecture
    findings = [
        _mismatch(f"{key}.architecture.{name}", name, getattr(declared, name), getattr(actual, name))
        for name in declared.__struct_fields__
        if _differs(name, declared, actual)
    ]
    known = find_mix(mix)
    if stated_mix and known is not None and known.name != stated_mix:
        findings.append(_mismatch(f"{key}.files.{quantization}.path", "the quantization", known.name, stated_mix))
    size = config.files[quantization].bytes
    if size is not None and abs(size - file.file_bytes) > SIZE_TOLERANCE * file.file_bytes:
        found = f"{file.file_bytes:,} bytes"
        findings.append(_mismatch(f"{key}.files.{quantization}.bytes", "the size", f"{size:,} bytes", found))
    return tuple(findings)


def _mismatch(key: str, name: str, declared: Any, actual: Any) -> Finding:
    written = _written(actual)
    message = f"{name} is declared as {_written(declared)}, but the file has {written}; the file is right"
    fixes = (Fix(override=f"{key}={written}", effect="says what the file has"),) if ".architecture." in key else ()
    return fault("catalog/declared-mismatch", key, message, fixes=fixes, severity="warning")


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(_written(v) for v in value)}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _differs(name: str, declared: ArchitectureConfig, actual: ArchitectureConfig) -> bool:
    """Whether a field's values disagree in a way that changes memory."""
    mine, theirs = getattr(declared, name), getattr(actual, name)
    if name in _NO_MEMORY or mine == theirs or (name in _ONLY_IF_DECLARED and not mine):
        return False
    if name == "n_ff" and actual.n_expert and (not mine or not actual.n_layer_dense_lead):
        return False
    if name in {"rope_dim", "q_lora_rank"} and not actual.kv_lora_rank:
        return False
    if name in _BY_LAYER and declared.n_layer != actual.n_layer:
        return False
    return name not in _BY_LAYER or _by_layer(declared, name) != _by_layer(actual, name)


def _by_layer(a: ArchitectureConfig, name: str) -> list[int]:
    """A per-layer value written out; heads of recurrent layers are left out."""
    if name == "swa_pattern":
        return [slides(a, il) for il in range(a.n_layer)]
    value, heads = getattr(a, name), name != "n_ff"
    return [0 if heads and is_recurrent(a, il) else at_layer(value, il) for il in range(a.n_layer)]


def with_human_knowledge(file: ModelFile, declared: ArchitectureConfig) -> ModelFile:
    """The file's own architecture, with the fields that are in no header taken from the declaration."""
    known = {name: getattr(declared, name) for name in _PEOPLE_KNOW}
    return msgspec.structs.replace(file, architecture=msgspec.structs.replace(file.architecture, **known))
