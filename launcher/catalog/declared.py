"""Model files from what the catalogue declares, and declarations held against the file's own header. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from launcher.catalog.file_types import Mix, find_mix
from launcher.catalog.layouts import LAYOUTS
from launcher.catalog.locate import split_paths
from launcher.catalog.synthesis import synthesise
from launcher.catalog.traits import complete, is_recurrent
from launcher.errors import Finding, Fix, has_errors
from launcher.ir.catalog import FilePart, ModelFile
from launcher.ir.config import ArchitectureConfig, ModelConfig
from launcher.sizes import gib

SIZE_TOLERANCE = 0.03
"""Share by which a published size may differ from the tensors' before it is said."""

_TOKEN_BYTES, _MERGE_BYTES, _INFO_BYTES, _KEYS_BYTES = 24, 20, 70, 16 * 1024
"""Usual bytes in a header of a token (text, type), a merge, a tensor info, and all else."""

_PEOPLE_KNOW = ("n_expert_used_min",)
"""Fields that no header has."""

_NO_MEMORY = frozenset({"n_expert_used_min", "pooling", "tokenizer", "tokenizer_pre", "bos_token_id", "causal"})
_ONLY_IF_DECLARED = frozenset(
    {"n_merges", "n_token_types", "n_layer_kv", "n_ff_shexp", "n_expert_shared", "n_deepstack", "indexer_types"}
)
"""Fields that a declaration may leave out: a header that has more is no disagreement."""
_BY_LAYER = frozenset({"n_head", "n_head_kv", "n_ff", "swa_pattern"})
"""Fields compared layer by layer, and not at all when the number of layers differs."""


def declared_file(
    config: ModelConfig, model: str, quantization: str, mix: Mix, path: str
) -> tuple[ModelFile | None, tuple[Finding, ...]]:
    """A model file that is not at hand, with its findings; None when the architecture cannot be sized."""
    key = f"models.{model}"
    architecture = complete(config.architecture)
    tensors, findings = synthesise(config.architecture, mix, key=f"{key}.architecture")
    if has_errors(findings):
        return None, findings
    a, entry = architecture, config.files[quantization]
    total = sum(t.size_bytes for t in tensors)
    header = a.n_vocab * _TOKEN_BYTES + a.n_merges * _MERGE_BYTES + len(tensors) * _INFO_BYTES + _KEYS_BYTES
    estimate = total + (header if a.tokenizer != "none" else 0)
    if entry.bytes is not None and abs(entry.bytes - estimate) > SIZE_TOLERANCE * estimate and a.arch in LAYOUTS:
        findings += (_size_mismatch(f"{key}.files.{quantization}.bytes", entry.bytes, estimate, mix),)
    published = entry.bytes if entry.bytes is not None and entry.bytes >= total else estimate
    parts = _parts(path, published)
    if entry.parts not in {1, len(parts)}:
        at = f"{key}.files.{quantization}.parts"
        findings += (_mismatch(at, "the number of parts", entry.parts, f"{len(parts)} by its name"),)
    file = ModelFile(
        model=model,
        quantization=quantization,
        source="declared",
        architecture=architecture,
        tensors=tensors,
        parts=parts,
        header_digest=hashlib.sha256(msgspec.json.encode((mix.name, architecture))).hexdigest(),
    )
    return file, findings


def _parts(path: str, size_bytes: int) -> tuple[FilePart, ...]:
    """The parts of a file that is not at hand, of equal size; their number is in the name, as llama.cpp has it."""
    named = split_paths(path) or (path,)
    share, rest = divmod(size_bytes, len(named))
    return tuple(FilePart(path=p, size_bytes=share + (i < rest)) for i, p in enumerate(named))


def _size_mismatch(key: str, declared: int, estimate: int, mix: Mix) -> Finding:
    """A published size that the tensors do not add up to."""
    return Finding(
        code="catalog/declared-mismatch",
        severity="warning",
        key=key,
        message=(
            f"{declared / 1e9:.2f} GB ({gib(declared)}) is declared, but the declared architecture in {mix.name} "
            f"makes {estimate / 1e9:.2f} GB ({gib(estimate)})"
        ),
        notes=("GB is 1000³ bytes and GiB 1024³; or the architecture, or the mix, is another",),
    )


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
    """One disagreement."""
    written = _written(actual)
    return Finding(
        code="catalog/declared-mismatch",
        severity="warning",
        key=key,
        message=f"{name} is declared as {_written(declared)}, but the file has {written}; the file is right",
        fixes=(Fix(override=f"{key}={written}", effect="says what the file has"),) if ".architecture." in key else (),
    )


def _written(value: Any) -> str:
    """A value as YAML and overrides write it."""
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
    if name == "swa_pattern":
        return _sliding(declared) != _sliding(actual)
    if name in _BY_LAYER:
        return _by_layer(declared, name) != _by_layer(actual, name)
    return True


def _by_layer(a: ArchitectureConfig, name: str) -> tuple[int, ...]:
    """A per-layer value written out; heads of recurrent layers do not count."""
    value = getattr(a, name)
    written = value if isinstance(value, tuple) else (value,) * a.n_layer
    if name == "n_ff":
        return written
    return tuple(0 if is_recurrent(a, il) else n for il, n in enumerate(written))


def _sliding(a: ArchitectureConfig) -> tuple[bool, ...]:
    """Which layers slide, written out."""
    if not a.n_swa:
        return (False,) * a.n_layer
    if isinstance(a.swa_pattern, tuple):
        return a.swa_pattern
    return tuple(il % a.swa_pattern < a.swa_pattern - 1 if a.swa_pattern else True for il in range(a.n_layer))


def with_human_knowledge(file: ModelFile, declared: ArchitectureConfig) -> ModelFile:
    """The file's own architecture with what only people know carried over from the declaration."""
    known = {name: getattr(declared, name) for name in _PEOPLE_KNOW}
    return msgspec.structs.replace(file, architecture=msgspec.structs.replace(file.architecture, **known))
