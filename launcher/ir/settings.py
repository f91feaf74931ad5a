"""What a server's fields mean once every default is resolved: the numbers that decide memory. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.config import KvType, LoadMode, NgramConfig, SplitMode

RAM = "ram"
"""Name of the host's memory among the devices."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One llama-server's choices, all made. Contexts in tokens after llama.cpp's padding.

    `n_ctx_seq` is what the KV cache holds for one sequence (the whole `n_ctx` when unified); `n_ctx_per_slot` is
    what a request may use (capped at the training context). `tensor_split` has one share a device, summing to 1.
    `host_buffer`: a device's backend has its own host buffers, which displace repacked CPU weights.
    """

    slots: int
    n_ctx: int
    n_ctx_seq: int
    n_ctx_per_slot: int
    kv_unified: bool
    n_batch: int
    n_ubatch: int
    causal: bool
    embedding: bool
    flash_attention: bool
    cache_type_k: KvType
    cache_type_v: KvType
    swa_full: bool
    context_checkpoints: int
    cache_ram_mib: int
    load_mode: LoadMode
    repack: bool
    n_expert_used: int
    devices: tuple[str, ...]
    n_gpu_layers: int
    n_cpu_moe: int
    tensor_split: tuple[float, ...]
    kv_offload: bool
    host_buffer: bool
    cpu_features: frozenset[str]
    threads: int
    threads_batch: int
    draft_n_max: int
    """Tokens drafted ahead by a draft; 0 = no draft."""
    ngram: NgramConfig | None
    contexts: tuple[tuple[str, int], ...] = ()
    """Devices that the process uses, the draft's too, and bytes that it holds of each before it loads anything."""
    plain_devices: bool = False
    """Every device allocates as the CPU does (RPC)."""
    cache_blocks: tuple[tuple[str, int, int], ...] = ()
    """K/V types that only this engine has: name, bytes of a block, values in it."""
    pooling: str = "none"
    """How an embedding server makes one vector of a text's tokens."""
    split_mode: SplitMode = "layer"
    main: str = ""
    """The device that has what is not split."""
    n_cpu_ffn: int = 0
    placement: tuple[tuple[str, str], ...] = ()
    """Regular expression → device, for tensors that go elsewhere than their layer."""
    projector_device: str | None = None
    draft_kind: str = ""
    """How they are drafted; "" = no draft."""
    build: int = 0
    """Number of the llama-server build; 0 = not known."""

    @property
    def streams(self) -> int:
        """KV streams: one when unified, else one a slot."""
        return 1 if self.kv_unified else self.slots
