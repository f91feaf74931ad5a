"""Files beside a model, multimodal projectors and LoRA adapters: read where at hand, else as declared. I/O: headers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from launcher.catalog.locate import resolve_path
from launcher.errors import CatalogError, Finding, fault
from launcher.ir.catalog import AdapterFile, HeaderFacts, ImageEncoder, ProjectorFile
from launcher.ir.config import LoraConfig, ModelConfig, ProjectorConfig

if TYPE_CHECKING:
    from launcher.catalog.gguf import Header

_NOTHING_KEPT: Mapping[str, HeaderFacts] = MappingProxyType({})


def projector_file(
    config: ModelConfig, model: str, model_dir: str, n_embd: int, kept: Mapping[str, HeaderFacts] = _NOTHING_KEPT
) -> tuple[ProjectorFile | None, tuple[Finding, ...]]:
    """The projector of a model of width `n_embd`, with its findings; None when it cannot be sized.

    Absent files count as `kept` has them, or with their declared size; without one: `catalog/projector-size-unknown`.
    """
    entry, key = config.projector, f"models.{model}.projector"
    if entry is None:
        return None, ()
    try:
        path = resolve_path(entry.path, model_dir, key=f"{key}.path")
        if os.path.lexists(path):
            return _read(entry, model, path, n_embd)
    except CatalogError as error:
        return None, error.findings
    if entry.bytes is None:
        message = f"the projector of {model} is not at {path!r} and declares no size"
        notes = (f"is the path right? {key}.path", f"to plan where the file is not, write its size: {key}.bytes=…")
        return None, (fault("catalog/projector-size-unknown", key, message, *notes),)
    facts = kept.get(path)
    takes, encoder = (facts.modalities, facts.encoder) if facts else ((), None)
    return _file(entry, model, path, tensor_bytes=entry.bytes, takes=takes, encoder=encoder), ()


def _file(
    entry: ProjectorConfig,
    model: str,
    path: str,
    *,
    tensor_bytes: int,
    takes: tuple[str, ...] = (),
    encoder: ImageEncoder | None = None,
    source: Literal["gguf", "declared"] = "declared",
) -> ProjectorFile:
    return ProjectorFile(
        model=model,
        path=path,
        tensor_bytes=tensor_bytes,
        compute_bytes=entry.compute_bytes,
        source=source,
        modalities=takes or ("image",),
        encoder=encoder,
    )


def modalities(header: Header) -> tuple[str, ...]:
    """What a projector takes: it has an encoder for it."""
    kinds = {"image": "vision", "audio": "audio"}
    return tuple(kind for kind, encoder in kinds.items() if f"clip.{encoder}.block_count" in header.values)


class Sizes(NamedTuple):
    """Sizes of image of one kind of projector: tokens along the side of the one that warms up, and the most tokens.

    `merge`: patches along each side of a token where `merge_key` is not in the file. No tokens: one size, the header's.
    """

    merge: int
    merge_key: str
    warm_side: int = 0
    most: int = 0


SIZES = {
    "qwen2vl_merger": Sizes(2, "spatial_merge_size", 46, 4096),
    "qwen2.5vl_merger": Sizes(2, "spatial_merge_size", 46, 4096),
    "qwen3vl_merger": Sizes(2, "spatial_merge_size", 46, 4096),
    "pixtral": Sizes(1, "spatial_merge_size", 16, 1024),
    "gemma3": Sizes(4, "projector.scale_factor"),
}
"""Kinds whose buffers were held against servers (tests/plan/test_pictures.py). Source: mtmd/clip.cpp load_hparams."""


def image_encoder(header: Header) -> ImageEncoder | None:
    """The measures of an image encoder; None of a kind that was not compared, and of files that hear as well."""
    sizes = SIZES.get(str(header.values.get("clip.projector_type")))
    if sizes is None or modalities(header) != ("image",):
        return None

    def number(key: str) -> int:
        """A whole number of the encoder, 0 where the header has none."""
        value = header.values.get(f"clip.vision.{key}")
        return value if type(value) is int else 0

    patch_size, merge = number("patch_size"), number(sizes.merge_key) or sizes.merge
    tensors = {t.name: t for t in header.tensors}
    kernel = tensors.get("v.patch_embd.weight")
    needed = (patch_size, number("embedding_length"), number("attention.head_count"), number("feed_forward_length"))
    if kernel is None or min(needed) <= 0 or not (sizes.most or number("image_size")):
        return None
    side = number("image_size") // patch_size
    patches = (sizes.warm_side**2 * merge**2, sizes.most * merge**2) if sizes.most else (side**2, side**2)
    return ImageEncoder(
        n_embd=number("embedding_length"),
        n_ff=number("feed_forward_length"),
        n_head=number("attention.head_count"),
        n_embd_out=max(projected_widths(header), default=0),
        patch_size=patch_size,
        merge=merge,
        kernel_bytes=2 if kernel.type.lower() == "f16" else 4,
        fused=any(".attn_qkv." in name for name in tensors),
        gated=any(".ffn_gate." in name for name in tensors),
        windowed=number("n_wa_pattern") > 0,
        n_deepstack=sum(name.startswith("v.deepstack.") and name.endswith(".fc2.weight") for name in tensors),
        turned="mm.input_projection.weight" in tensors,
        patches=patches,
    )


def _read(
    entry: ProjectorConfig, model: str, path: str, n_embd: int
) -> tuple[ProjectorFile | None, tuple[Finding, ...]]:
    """A projector at hand: it must be one, and fit the model's width."""
    from launcher.catalog.files import read_header  # noqa: PLC0415 - only a file at hand is read

    key = f"models.{model}.projector.path"
    header = read_header(path, key=key)
    arch = header.values.get("general.architecture")
    if arch != "clip":
        message = f"{path!r} is a model of architecture {arch!r}, not a multimodal projector"
        return None, (fault("catalog/projector-mismatch", key, message),)
    widths = projected_widths(header)
    findings: tuple[Finding, ...] = ()
    if widths and n_embd not in widths:
        message = f"{path!r} projects to {'/'.join(map(str, widths))} dimensions, but {model} has {n_embd}"
        findings = (fault("catalog/projector-mismatch", key, message, "llama-server refuses this pair"),)
    size = sum(t.size_bytes for t in header.tensors)
    takes, encoder = modalities(header), image_encoder(header)
    file = _file(entry, model, path, tensor_bytes=size, takes=takes, encoder=encoder, source="gguf")
    return file, findings


def projected_widths(header: Header) -> tuple[int, ...]:
    """Widths that a projector's output has, by what its header says; empty when it says nothing."""
    keys = ("clip.vision.projection_dim", "clip.audio.projection_dim", "clip.projection_dim")
    found = (header.values.get(key) for key in keys)
    return tuple(dict.fromkeys(v for v in found if type(v) is int and v > 0))


def adapter_file(entry: LoraConfig, model_dir: str, key: str) -> tuple[AdapterFile | None, tuple[Finding, ...]]:
    """The adapter at `entry`, with its findings; None when it cannot be sized.

    Findings: `catalog/adapter-size-unknown`, `catalog/not-an-adapter`, and those of headers.
    """
    try:
        path = resolve_path(entry.path, model_dir, key=f"{key}.path")
        if not os.path.lexists(path):
            if entry.bytes is not None:
                return AdapterFile(path=path, tensor_bytes=entry.bytes), ()
            message = f"the adapter is not at {path!r} and declares no size"
            return None, (fault("catalog/adapter-size-unknown", key, message, f"write its size: {key}.bytes=…"),)
        from launcher.catalog.files import read_header  # noqa: PLC0415 - as above

        header = read_header(path, key=f"{key}.path")
    except CatalogError as error:
        return None, error.findings
    if header.values.get("general.type") != "adapter":
        message = f"{path!r} is no LoRA adapter: its general.type is {header.values.get('general.type')!r}"
        return None, (fault("catalog/not-an-adapter", f"{key}.path", message),)
    return AdapterFile(path=path, tensor_bytes=sum(t.size_bytes for t in header.tensors)), ()
