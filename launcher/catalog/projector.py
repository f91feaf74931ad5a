"""The properties of a multimodal projector from its header: modalities, widths, dimensions of its encoder. Pure."""

from __future__ import annotations

from typing import NamedTuple

from launcher.catalog.gguf import Header
from launcher.ir.catalog import ImageEncoder


def modalities(header: Header) -> tuple[str, ...]:
    """The modalities that a projector accepts: those that it has an encoder for."""
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
"""Kinds whose buffers were compared with servers (tests/plan/test_pictures.py). Source: mtmd/clip.cpp load_hparams."""


def image_encoder(header: Header) -> ImageEncoder | None:
    """The dimensions of an image encoder; None for a kind that was not compared, and for files with audio, too."""
    sizes = SIZES.get(str(header.values.get("clip.projector_type")))
    if sizes is None or modalities(header) != ("image",):
        return None

    def number(key: str) -> int:
        """A whole number of the encoder, 0 where the header has none."""
        value = header.values.get(f"clip.vision.{key}")
        return value if type(value) is int else 0

    patch_size, merge = number("patch_size"), number(sizes.merge_key) or sizes.merge
    n_embd, n_head, n_ff = map(number, ("embedding_length", "attention.head_count", "feed_forward_length"))
    tensors = {t.name: t for t in header.tensors}
    kernel = tensors.get("v.patch_embd.weight")
    if kernel is None or min(patch_size, n_embd, n_head, n_ff) <= 0 or not (sizes.most or number("image_size")):
        return None
    side = number("image_size") // patch_size
    patches = (sizes.warm_side**2 * merge**2, sizes.most * merge**2) if sizes.most else (side**2, side**2)
    return ImageEncoder(
        n_embd=n_embd,
        n_ff=n_ff,
        n_head=n_head,
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


def projected_widths(header: Header) -> tuple[int, ...]:
    """Widths that a projector's output has, by what its header says; empty when it says nothing."""
    keys = ("clip.vision.projection_dim", "clip.audio.projection_dim", "clip.projection_dim")
    found = (header.values.get(key) for key in keys)
    return tuple(dict.fromkeys(v for v in found if type(v) is int and v > 0))
