"""What is asked of the machine to fill in what a config leaves out: a model file's header, an engine's cards. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from launcher.ir.catalog import ImageEncoder, ModelFile


class HeaderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One model file, as read here or as a lock file kept it.

    `file.model` is the model's own name. `base_type`, `block` and `block_bytes` are the GGML type of most of its
    weights, `widths` those that a projector feeds; none where it says nothing, or is no projector. `modalities` and
    `encoder` are a projector's, see `ProjectorFile`.
    """

    file: ModelFile
    base_type: str
    block: int
    block_bytes: int
    widths: tuple[int, ...] = ()
    modalities: tuple[str, ...] = ()
    encoder: ImageEncoder | None = None

    @property
    def is_projector(self) -> bool:
        """Whether it is a multimodal projector (mmproj) and no model."""
        return self.file.architecture.arch == "clip"

    @property
    def is_draft(self) -> bool:
        """Whether it is nothing but a drafting head (EAGLE-3, DFlash), which runs beside its model alone."""
        return self.file.architecture.arch in DRAFT_ARCHITECTURES


DRAFT_ARCHITECTURES = frozenset({"eagle3", "dflash"})
"""llama.cpp's architectures that are drafting heads (src/llama-arch.cpp)."""

ReadHeader = Callable[[str, str], HeaderFacts]
"""A path and the config key that names it → what the file's header says. Raises CatalogError at that key."""


class HeaderLock(msgspec.Struct, frozen=True, kw_only=True):
    """The lock file beside a fleet file: model files by their path as the fleet file would write it."""

    schema: str
    files: dict[str, HeaderFacts]


LOCK_SCHEMA = "launch.lock/v1"


class SeenCard(NamedTuple):
    """A device that an engine lists: its name there, the card's, and its memory in bytes (0 = not said)."""

    name: str
    model: str
    total_bytes: int


SeeDevices = Callable[[Mapping[str, Any]], Sequence[SeenCard] | None]
"""An entry of `engines` → the devices that its binary lists here; None where it does not say."""
