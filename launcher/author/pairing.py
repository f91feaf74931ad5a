"""Turn model files into possible servers: names, projectors and drafts beside their models. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container, Sequence
from difflib import SequenceMatcher
from itertools import chain, count

import msgspec

from launcher.ir.catalog import HeaderFacts

_QUANTIZATION = re.compile(
    r"[-_.](?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|F16|F32|FP16|MXFP4(?:_MOE)?|NVFP4)$", re.IGNORECASE
)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_WORDLESS = re.compile(r"[^A-Za-z0-9]+")
_DRAFT = re.compile(r"(?:^|[^a-z])(?:draft|eagle3?|dflash)(?:[^a-z]|$)", re.IGNORECASE)
_SEES = re.compile(
    r"(?:^|[^a-z])(?:vl|vision|llava|gemma-?3|gemma-?4|pixtral|minicpm-?v|internvl|smolvlm|omni)", re.IGNORECASE
)
SIMILAR = 0.6
"""Similarity of names (0 to 1) that a draft must have with its model, and a projector in a folder with several
models."""


class ModelOnDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A model file: its path, its name there, its header data; `place`: the program that the folder belongs to."""

    path: str
    name: str
    facts: HeaderFacts
    projector: str | None = None
    """The projector that the store itself keeps with the model (Ollama)."""
    place: str = ""


class ServerCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A server that could be. `kind` by the header: what answers, makes vectors, or orders texts."""

    name: str
    kind: str
    path: str
    facts: HeaderFacts
    projector: str | None = None
    projector_facts: HeaderFacts | None = None
    draft: str | None = None
    others: tuple[str, ...] = ()
    """Other files of the same model, in other quantizations."""


def slug(name: str) -> str:
    """A server's name from a file's: `Qwen3-8B-Q8_0.gguf` → `qwen3-8b`, `gemma-3-4b-it-Q4_K_M` → `gemma-3-4b-it`."""
    stem = _PART.sub("", name.removesuffix(".gguf"))
    stem = _QUANTIZATION.sub("", stem)
    return _WORDLESS.sub("-", stem).strip("-").lower() or "model"


def kind_of(facts: HeaderFacts) -> str:
    """`chat`, `embed` or `rerank`, by architecture and pooling."""
    architecture = facts.file.architecture
    if architecture.pooling == "rank":
        return "rerank"
    pooled = architecture.pooling not in {None, "none"}
    return "embed" if pooled or not architecture.causal else "chat"


def candidates(files: Sequence[ModelOnDisk]) -> tuple[ServerCandidate, ...]:
    """One candidate per model, sorted by name; of several quantizations the largest file.

    A projector goes to the models in its folder of the width that it feeds, by name if there are several; a draft to
    the model in its folder that has the same vocabulary.
    """
    drafts = {f.path: draft for f in files if (draft := _draft(f, files))}
    speculate = set(drafts.values())  # for another model alone, no servers of their own
    models = [f for f in files if not f.facts.is_projector and not f.facts.is_draft and f.path not in speculate]
    best: dict[tuple[object, ...], list[ModelOnDisk]] = {}
    for file in models:
        best.setdefault(_model_of(file), []).append(file)
    found, taken = [], set[str]()
    for group in best.values():
        group.sort(key=lambda f: (-f.facts.file.file_bytes, f.path))
        file = group[0]
        name = free_name(slug(file.name), taken)
        taken.add(name)
        beside = _projector(file, files)
        projector = next((f for f in files if f.path == beside), None)
        found.append(
            ServerCandidate(
                name=name,
                kind=kind_of(file.facts),
                path=file.path,
                facts=file.facts,
                projector=projector.path if projector else file.projector,
                projector_facts=projector.facts if projector else None,
                draft=drafts.get(file.path),
                others=tuple(other.path for other in group[1:]),
            )
        )
    return tuple(sorted(found, key=lambda c: c.name))


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, or with the first number that is free: `model`, `model-2`, `model-3`."""
    return next(n for n in chain((name,), (f"{name}-{at}" for at in count(2))) if n not in taken)


def _model_of(file: ModelOnDisk) -> tuple[object, ...]:
    """What all quantizations of a model share. A name is not enough: half of all folders have a `model.gguf`."""
    architecture = file.facts.file.architecture
    shape = (architecture.arch, architecture.n_layer, architecture.n_embd, architecture.n_vocab)
    plain = _QUANTIZATION.sub("", _PART.sub("", file.name.removesuffix(".gguf"))).casefold()
    return (plain, kind_of(file.facts), shape, slug(file.facts.file.model))


def _folder(file: ModelOnDisk) -> str:
    return posixpath.dirname(file.path)


def _alike(model: ModelOnDisk, beside: ModelOnDisk) -> float:
    """Similarity of the two names (0 to 1), without `mmproj` and `draft`."""
    mine, other = (slug(f.name).replace("mmproj", "").replace("draft", "").strip("-") for f in (model, beside))
    return float(SequenceMatcher(None, mine, other, autojunk=False).ratio())


def _projector(model: ModelOnDisk, files: Sequence[ModelOnDisk]) -> str | None:
    """The projector of a model: in its folder, of its width, and not more like another model by name; None: none."""
    width, folder = model.facts.file.architecture.n_embd, _folder(model)
    projectors = [f for f in files if f.facts.is_projector and _folder(f) == folder]
    fitting = [f for f in projectors if not f.facts.widths or width in f.facts.widths]
    if not fitting or kind_of(model.facts) != "chat":
        return None
    best = max(fitting, key=lambda f: (_alike(model, f), f.facts.file.file_bytes))
    rivals = [
        f
        for f in files
        if not f.facts.is_projector
        and _folder(f) == folder
        and slug(f.name) != slug(model.name)
        and kind_of(f.facts) == "chat"
        and (not best.facts.widths or f.facts.file.architecture.n_embd in best.facts.widths)
    ]
    if not rivals:
        return best.path
    score = _score(model, best)
    return best.path if score >= SIMILAR and all(score > _score(rival, best) for rival in rivals) else None


def _score(model: ModelOnDisk, projector: ModelOnDisk) -> float:
    """Similarity of the names; if the projector's says nothing, 1 for a model whose name tells that it sees, else 0."""
    named = len(slug(projector.name).replace("mmproj", "").replace("model", "").strip("-")) > 2
    return _alike(model, projector) if named else float(bool(_SEES.search(model.name)))


def _draft(model: ModelOnDisk, files: Sequence[ModelOnDisk]) -> str | None:
    """The draft of a model: named as one, smaller, of the same vocabulary, in the same folder; None: none."""
    mine = model.facts.file
    if _DRAFT.search(model.name) or model.facts.is_projector:
        return None
    fitting = [
        f
        for f in files
        if _folder(f) == _folder(model)
        and _DRAFT.search(f.name)
        and not f.facts.is_draft
        and f.facts.file.architecture.n_vocab == mine.architecture.n_vocab
        and f.facts.file.architecture.tokenizer_pre == mine.architecture.tokenizer_pre
        and f.facts.file.file_bytes < mine.file_bytes
        and _alike(model, f) >= SIMILAR
    ]
    return max(fitting, key=lambda f: _alike(model, f)).path if fitting else None
