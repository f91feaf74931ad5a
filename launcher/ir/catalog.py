"""The models, as GGUF headers or the catalogue describe them, and the readers that a config may ask. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from launcher.ir.config import ArchitectureConfig


class Tensor(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One tensor: GGUF name, GGML type (`q4_K`, `f32`), shape in GGML order (ne0 is the row), bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int


class FilePart(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a (split) GGUF. `inode` is (st_dev, st_ino) where the file is at hand, for sharing.

    `tensors`: how many of the model's tensors, in order, it holds; 0 where that is not known.
    """

    path: str
    size_bytes: int
    inode: tuple[int, int] | None = None
    tensors: int = 0


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model in one quantization: everything that a plan needs to know of it.

    `source` is `gguf` when the header was read, `declared` when it was made from the catalogue; `measured` is reserved
    for a proof by the server itself. `parts` are absolute or model_dir-relative paths in load order.
    """

    model: str
    quantization: str
    source: Literal["gguf", "declared", "measured"]
    architecture: ArchitectureConfig
    tensors: tuple[Tensor, ...]
    parts: tuple[FilePart, ...]
    header_digest: str = ""

    @property
    def path(self) -> str:
        """The file passed to `--model`: part 1."""
        return self.parts[0].path

    @property
    def entry(self) -> str:
        """`MODEL@QUANTIZATION`: its key in the catalogue and name in requests."""
        return f"{self.model}@{self.quantization}"

    @property
    def n_params(self) -> int:
        """Number of elements of all tensors, as llama-server counts a model's parameters."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(p.size_bytes for p in self.parts)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.size_bytes for t in self.tensors)


class ImageEncoder(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions of a projector's image encoder that decide the memory for computing an image.

    `fused`: one matrix for Q, K and V; `gated`: feed-forwards have gates; `windowed`: some layers see windows only.
    `merge`: patches along each side that make one token. `patches`: of the image with which a server warms up, and of
    the largest one it encodes at once.
    """

    n_embd: int
    n_ff: int
    n_head: int
    n_embd_out: int
    patch_size: int
    merge: int
    kernel_bytes: int
    """Bytes per value of the first convolution's kernel."""
    fused: bool
    gated: bool
    windowed: bool
    n_deepstack: int
    turned: bool
    """The matrix behind the encoder is transposed again for each image."""
    patches: tuple[int, int]


class ProjectorFile(msgspec.Struct, frozen=True, kw_only=True):
    """A multimodal projector. `compute_bytes` 0: not declared; `encoder`: what it is computed from, if known."""

    model: str
    path: str
    tensor_bytes: int
    compute_bytes: int
    source: Literal["gguf", "declared"]
    modalities: tuple[str, ...] = ("image",)
    """Modalities that it accepts, from its header; images are assumed without one."""
    encoder: ImageEncoder | None = None


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter: its path, and the size of its tensors."""

    path: str
    tensor_bytes: int


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One model file of the config as stored on a disk, with all parts, whether it is there or not."""

    path: str
    key: str
    bytes: int
    here: bool
    used: bool


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """Every model file that the fleet uses, keyed `model@quantization`; projectors keyed by model."""

    files: dict[str, ModelFile]
    projectors: dict[str, ProjectorFile] = {}
    adapters: dict[str, AdapterFile] = {}
    """Keyed by the path as written."""
    vault: tuple[StoredFile, ...] = ()
    """Every file of the fleet's models that the config names, if the size of their disk is stated."""

    def get(self, model: str, quantization: str) -> ModelFile | None:
        """The file of `model` in `quantization`, if the catalogue has it."""
        return self.files.get(f"{model}@{quantization}")


class HeaderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One model file, as read here or from a lock file.

    `file.model` is the model's own name. `base_type`, `block` and `block_bytes` are the GGML type of most of its
    weights, `widths` those that a projector feeds; none where the header says nothing, or it is no projector.
    `modalities` and `encoder` are a projector's, see `ProjectorFile`.
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
        """Whether it is a multimodal projector (mmproj), not a model."""
        return self.file.architecture.arch == "clip"

    @property
    def is_draft(self) -> bool:
        """Whether it is a drafting head only (EAGLE-3, DFlash), which cannot run without its model."""
        return self.file.architecture.arch in DRAFT_ARCHITECTURES


DRAFT_ARCHITECTURES = frozenset({"eagle3", "dflash"})
"""llama.cpp's architectures that are drafting heads (src/llama-arch.cpp)."""

ReadHeader = Callable[[str, str], HeaderFacts]
"""A path and its config key → the facts in the file's header. Raises CatalogError at that key."""


class HeaderLock(msgspec.Struct, frozen=True, kw_only=True):
    """The lock file beside a fleet file: model files keyed by their path as the fleet file writes it."""

    schema: str
    files: dict[str, HeaderFacts]


LOCK_SCHEMA = "launch.lock/v1"


class SeenDevice(NamedTuple):
    """A device by its name for `--device` (`CUDA0`, `Vulkan1`, `RPC0`); sizes are 0 where the build gives none."""

    name: str
    model: str
    total_bytes: int
    free_bytes: int


SeeDevices = Callable[[Mapping[str, Any]], Sequence[SeenDevice] | None]
"""An entry of `engines` → the devices that its binary lists here; None where it lists none."""
