"""`python -m launcher.cli.reference docs/config.md`: writes the reference of every config field, from the types.

The text above the marker stays. Types, defaults and explanations are those of `launcher.ir.config`; flags are those of
`launcher.render.spellings`, by the recorded builds that know them.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.fields import explanations
from launcher.engine import recorded, recorded_names
from launcher.ir.config import FleetConfig
from launcher.render import TABLE

MARKER = "<!-- everything below is written by `python -m launcher.cli.reference docs/config.md` -->"

UNITS = {"_bytes": "bytes", "_s": "seconds", "_mib": "MiB", "_days": "days"}
"""Suffix of a field's name → unit."""
TOKENS = frozenset({"n_ctx", "n_ctx_per_slot", "n_batch", "n_ubatch", "n_ctx_train", "n_keep", "block_tokens", "n_swa"})

MEMORY: dict[str, str] = {
    "GpuConfig.vram_bytes": "the card's size",
    "GpuConfig.memory": "`shared`: what is on it counts in RAM, too",
    "GpuConfig.process_bytes": "held by each process that uses the card",
    "GpuConfig.target_max": "share of the card that a plan may use",
    "HardwareConfig.ram_bytes": "the budget, less what is reserved",
    "HardwareConfig.ram_reserve_bytes": "never planned",
    "HardwareConfig.memlock_bytes": "limit of locked pages",
    "ModelFileConfig.bytes": "the file, where it is not at hand",
    "ProjectorConfig.bytes": "the projector's tensors, where they are not at hand",
    "ProjectorConfig.compute_bytes": "the image encoder's buffer",
    "ServiceConfig.ram_bytes": "counted as it is",
    "LoraConfig.bytes": "the adapter's tensors, where they are not at hand",
    "DraftConfig.kind": "mtp: the layers' weights and K/V; the trained kinds keep n_max states a slot to go back to",
    "DraftConfig.model": "a second model with K/V, compute and vocabulary",
    "DraftConfig.n_max": "rows of logits; states to go back to",
    "DraftConfig.cache_type_k": "the draft's K/V",
    "DraftConfig.cache_type_v": "the draft's K/V",
    "DraftConfig.devices": "where the draft is",
    "DraftConfig.n_gpu_layers": "where the draft is",
    "NgramConfig.kind": "mod: 16 MiB of tables; rows of logits",
    "NgramConfig.n_max": "rows of logits",
    "ServerConfig.model": "weights, vocabulary",
    "ServerConfig.quantization": "weights",
    "ServerConfig.slots": "recurrent states, output, checkpoints; with n_ctx_per_slot K/V",
    "ServerConfig.n_ctx": "K/V, compute",
    "ServerConfig.n_ctx_per_slot": "K/V, compute",
    "ServerConfig.kv_unified": "one K/V for all slots; sliding windows count every slot",
    "ServerConfig.n_batch": "output of embedders; least of it and n_ubatch in compute",
    "ServerConfig.n_ubatch": "compute, sliding windows",
    "ServerConfig.flash_attention": "off: the scores of every head in compute",
    "ServerConfig.cache_type_k": "K",
    "ServerConfig.cache_type_v": "V",
    "ServerConfig.swa_full": "K/V of sliding layers as of the others",
    "ServerConfig.context_checkpoints": "host memory, of sliding and recurrent models",
    "ServerConfig.cache_ram_mib": "host memory that may grow",
    "ServerConfig.embedding": "output; no prompt cache, no checkpoints",
    "ServerConfig.pooling": "makes it an embedder",
    "ServerConfig.load_mode": "mapped (shared, reclaimable), locked, or a copy of its own",
    "ServerConfig.repack": "copies of weights for the CPU",
    "ServerConfig.lora": "the adapters' tensors, two products in compute",
    "ServerConfig.projector": "the projector, 150 MiB for each image at once",
    "ServerConfig.projector_device": "where the projector is",
    "ServerConfig.experts_used": "compute",
    "ServerConfig.devices": "where layers are; a process's context on each",
    "ServerConfig.n_gpu_layers": "where layers are",
    "ServerConfig.n_cpu_moe": "experts on the host",
    "ServerConfig.n_cpu_ffn": "feed-forwards on the host",
    "ServerConfig.tensor_placement": "where matching tensors are",
    "ServerConfig.split_mode": "how devices divide weights and K/V",
    "ServerConfig.main_gpu": "who has what is not divided",
    "ServerConfig.tensor_split": "how devices divide layers",
    "ServerConfig.fill": "chosen until the devices are full",
    "ServerConfig.kv_offload": "K/V on the host",
    "ServerConfig.draft": "a draft's own, see there",
    "ServerConfig.ngram": "see there",
    "ServerConfig.exclusive": "of a group the largest counts",
    "ServerConfig.numa": "on which node",
    "ServerConfig.tier": "whether and when it counts",
    "EngineConfig.cpu_features": "copies of weights for the CPU",
    "EngineConfig.cache_types": "K and V in these types",
    "CacheTypeConfig.block": "values a block",
    "CacheTypeConfig.block_bytes": "bytes a block",
    "EngineConfig.dialect": "what builds differ in (`launcher/plan/builds.py`)",
    "WarmPoolConfig.ram_bytes": "files kept in RAM beside the worst set",
}
"""Field → what it changes in memory; any other field changes nothing."""


def reached(kind: Any, path: str, seen: dict[type, str]) -> None:
    """Add every struct that `kind` leads to → the dotted path of its first place, to `seen`."""
    for inner in typing.get_args(kind):
        reached(inner, f"{path}.NAME" if typing.get_origin(kind) is dict else path, seen)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
        seen[kind] = path
        for field in msgspec.structs.fields(kind):
            reached(field.type, f"{path}.{field.name}".lstrip("."), seen)


def spelled_type(kind: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return spelled_type(inner[0])
    if origin is typing.Literal:
        return ", ".join(str(value) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spelled_type(one) for one in inner if one is not type(None))
    if origin is tuple:
        return f"list of {spelled_type(inner[0])}"
    if origin is dict:
        return f"map to {spelled_type(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}.get(
        getattr(kind, "__name__", ""), "anything"
    )


def spelled_default(field: msgspec.structs.FieldInfo) -> str:
    """The default of a field in words."""
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "must be written"
    if value is None:
        return "absent"
    if value == "":
        return "empty"
    if isinstance(value, msgspec.Struct) or value in ((), {}):
        return "none" if value in ((), {}) else "as there"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def flags_of(kind: type, field: str) -> str:
    """The flags that a field becomes, with the builds that know only some of them."""
    keys = {"ServerConfig": field, "DraftConfig": f"draft.{field}", "NgramConfig": f"ngram.{field}"}
    wanted = keys.get(kind.__name__)
    flags = dict.fromkeys(f for m in TABLE if m.key == wanted and wanted for f in m.owns if f.startswith("--"))
    builds = {build: recorded(build).index() for build in recorded_names()}
    shown = []
    for flag in flags:
        knows = [b for b, index in builds.items() if flag in index and not index[flag].removed]
        if knows:
            shown.append(f"`{flag}`" + ("" if len(knows) == len(builds) else f" ({', '.join(knows)})"))
    return ", ".join(shown)


def unit_of(field: str) -> str:
    """The unit of a number, by its name; "" if it has none."""
    if field in TOKENS:
        return "tokens"
    return next((unit for ending, unit in UNITS.items() if field.endswith(ending)), "bytes" if field == "bytes" else "")


def reference() -> str:
    """Every group and field as Markdown."""
    docs = explanations()
    seen: dict[type, str] = {}
    reached(FleetConfig, "", seen)
    return "\n\n".join("\n".join(section(kind, path, docs)) for kind, path in seen.items()) + "\n"


def section(kind: type, path: str, docs: Mapping[str, str]) -> Iterator[str]:
    """The lines of one type: its path, its meaning, a row per field."""
    yield f"### {kind.__name__}"
    yield ""
    yield f"`{path}`: {docs[kind.__name__]}" if path else docs[kind.__name__]
    yield ""
    yield "| field | type | default | flag | memory | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for field in msgspec.structs.fields(kind):
        name = f"{kind.__name__}.{field.name}"
        unit = unit_of(field.name)
        cells = (
            f"`{field.name}`",
            spelled_type(field.type) + (f", {unit}" if unit else ""),
            spelled_default(field),
            flags_of(kind, field.name),
            MEMORY.get(name, ""),
            docs.get(name, "").replace("|", "\\|"),
        )
        yield f"| {' | '.join(cells)} |".replace("  ", " ")


def page(before: str) -> str:
    """The whole page: the text above the marker, and the reference."""
    head = before.partition(MARKER)[0].rstrip()
    return f"{head}\n\n{MARKER}\n\n## Every field\n\n{reference()}"


if __name__ == "__main__":
    at = Path(sys.argv[1])
    at.write_text(page(at.read_text(encoding="utf-8")), encoding="utf-8")
