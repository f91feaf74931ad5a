"""The groups `engine`, `tier` and `server`. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from launcher.ir.config.resources import (
    ByteSize,
    DraftKind,
    FlashAttention,
    KvType,
    LoadMode,
    NotNegative,
    NotNegativeNumber,
    Port,
    Positive,
    Seconds,
    Share,
    SplitMode,
    Start,
    StartLimit,
)


class CacheTypeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A K/V type that only some builds have: `block` values take `block_bytes` bytes (its ggml type traits)."""

    block: Positive
    block_bytes: Positive


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A llama-server binary: its path, and the recorded dialect to use where it is not at hand."""

    binary: str
    """A path, a name on PATH, `pkg://package/file` of an installed package, or `built://file` of `make engine`."""
    dialect: str
    """Name of a recorded dialect (`b10434`), used when the binary cannot be probed."""
    cpu_features: tuple[str, ...] | None = None
    """Instruction sets that the build was compiled for, as in `cpu.features`: it uses no others. Left out: all that the
    CPU has."""
    library_path: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cache_types: dict[str, CacheTypeConfig] = {}
    """K/V types that a fork has beside llama.cpp's, by their names for `--cache-type-k`."""


class TierConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When servers of a tier run. hot: from start to stop; warm: on demand; cold: files on disk only."""

    start: Start
    idle_timeout_s: Seconds = 0
    """Stop after this long without a request in flight; 0 = never."""
    expansion_threshold: NotNegative = 0
    """Requests in flight in a pool above which another server of the pool is started; 0 = never expand."""
    oom_score_adjust: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0


class DraftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speculative decoding with a draft: a model, or layers of the model itself; with its own K/V types."""

    kind: DraftKind = "simple"
    """simple: any smaller model with the same vocabulary. mtp: the model's own next-token-prediction layers, or a model
    made of such. eagle3, dflash, dspark: a model trained for this one."""
    model: str | None = None
    """Absent (mtp alone): the model's own layers."""
    quantization: str | None = None
    n_max: NotNegative = 16
    n_min: NotNegative = 0
    p_min: Share | None = None
    cache_type_k: KvType = "f16"
    cache_type_v: KvType = "f16"
    devices: tuple[str, ...] | None = None
    """Absent: the server's."""
    n_gpu_layers: NotNegative | Literal["all"] = "all"
    """Layers of a draft model on its devices, if it has any."""

    @property
    def file(self) -> tuple[str, str] | None:
        """Model and quantization; None where the model's own layers draft."""
        return (self.model, self.quantization) if self.model and self.quantization else None


class NgramConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speculation from n-grams of the context (`lookup` in the seed documents)."""

    kind: Literal["simple", "map-k", "map-k4v", "mod", "cache"] = "simple"
    n_max: NotNegative | None = None


class NumaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Memory policy of a process, as numactl knows it."""

    policy: Literal["interleave", "preferred", "bind"]
    nodes: tuple[int, ...] = ()
    """Empty with interleave means all nodes."""


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter (GGUF) over a server's model. `bytes` is its size, if it is not at hand."""

    path: str
    scale: float = 1.0
    bytes: ByteSize | None = None


class FaceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One more model name for a server, with its own request values: thinking or not, cooler for code."""

    request_defaults: dict[str, Any] = {}
    """Keys that the front adds to requests that lack them."""
    request_set: dict[str, Any] = {}
    """Keys that the front sets in every request, whatever the client wrote."""
    request_strip: tuple[str, ...] = ()
    """Keys that the front removes from every request."""
    description: str = ""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One llama-server: its model, its address, and every choice that changes its memory or behaviour."""

    model: str
    quantization: str
    tier: str
    file: str | None = None
    """A GGUF file instead of `model` and `quantization`: its header has the rest. Such a server, and any in a fleet
    file, may leave out tier (hot), port, slots (2), context (8,192 per slot), prompt cache (1 GiB) and devices
    (auto)."""
    ttl_s: Seconds | None = None
    """Stop after so many seconds without a request: a tier like `tier` (warm, if none is written) with this
    `idle_timeout_s`."""
    id: str | None = None
    """Model id in requests and listings, if it is not the server's name. A server written as `org/model:q4` has that as
    its id and is named `org-model-q4`; units, files and overrides use the name."""
    roles: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Further names that a request may use; a role may be that of several servers."""
    faces: dict[str, FaceConfig] = {}
    """Further models that this one process serves, by name, each with its own request values; they are listed, and may
    have any name that a model id may (`org/model:thinking`)."""
    description: str = ""
    engine: str = "default"
    host: str = "127.0.0.1"
    """The address to listen on, on the front's host; or the name of one of `hardware.hosts` to run there. The absolute
    path of a unix socket, which ends in `.sock`, stands for host and port: `/run/launch-chat/http.sock`."""
    port: Port | None = None
    """Absent: this server's entry in `ports`; or none, where `host` is a path."""
    # context and slots
    slots: Positive | None = None
    """Absent: llama-server's own choice (4 slots, unified KV); in a fleet file 2."""
    n_ctx: Positive | None = None
    n_ctx_per_slot: Positive | None = None
    """Exactly one of n_ctx (whole) and n_ctx_per_slot; both absent: the model's training context."""
    kv_unified: bool | None = None
    n_batch: Positive = 2048
    n_ubatch: Positive = 512
    flash_attention: FlashAttention = "auto"
    cache_type_k: KvType = "f16"
    cache_type_v: KvType = "f16"
    swa_full: bool = False
    context_checkpoints: NotNegative = 32
    cache_ram_mib: Annotated[int, msgspec.Meta(ge=-1)] = 8192
    """Prompt cache in host memory; 0 = off, -1 = no limit."""
    slot_save_path: str | None = None
    """Directory where slots are saved before a swap stops the server, and restored from after the swap back."""
    embedding: bool | None = None
    """Whether it serves embeddings (with pooling `rank`: reranking). Absent: by the model's kind and pooling."""
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None
    # weights
    load_mode: LoadMode = "mmap"
    repack: bool = True
    lora: tuple[LoraConfig, ...] = ()
    """Adapters over the model, all loaded at start."""
    lazy_tensors: Literal["auto", "on", "off"] | None = None
    """Whether tensors that the architecture marks (per-layer embeddings) are read on demand. Absent: the build's
    default."""
    projector: bool = False
    """Load the model's projector; on a server with a `file` the path of one."""
    projector_device: str | None = None
    """`cpu`, or a name from hardware.gpus. Absent: the server's first device, if it has one."""
    experts_used: Positive | None = None
    # placement
    devices: tuple[str, ...] = ()
    """Names from hardware.gpus; empty = CPU only. `auto`: all of them, with as many layers as fit."""
    rpc: tuple[str, ...] = ()
    """Experimental: hosts that lend it memory, by the names of `hardware.hosts` (a process is started there), or as
    `HOST:PORT` where somebody else runs a ggml-rpc-server; private IPv4 addresses only. Each is one more device;
    `n_gpu_layers` (auto, if not written) and `tensor_split` set its share."""
    n_gpu_layers: NotNegative | Literal["all", "auto"] = 0
    """Layers on `devices`, counted from the end; auto: as many as fit there."""
    n_cpu_moe: NotNegative = 0
    """Layers, counted from the first, whose experts stay in RAM."""
    n_cpu_ffn: NotNegative = 0
    """Layers, from the first, whose dense feed-forward stays on the host."""
    tensor_placement: tuple[str, ...] = ()
    """`REGEX=DEVICE`: tensors whose name has a match go to `cpu` or to one of the server's devices, whatever their
    layer does. The first match counts, before `n_cpu_moe` and `n_cpu_ffn`."""
    split_mode: SplitMode = "layer"
    """How several devices share the model. none: `main_gpu` has everything; row: each has rows of every matrix,
    `main_gpu` K/V and the rest; tensor: each has its share of matrices and K/V."""
    main_gpu: str | None = None
    """One of `devices`. Absent: the first."""
    tensor_split: tuple[NotNegativeNumber, ...] = ()
    fill: tuple[Literal["experts", "quantization", "context"], ...] = ()
    """Fields that the plan may raise above their written values until the devices are full: fewer expert banks on the
    host (`n_cpu_moe`), a larger file of the model, more context per slot. The written values are the least
    acceptable."""
    kv_offload: bool = True
    threads: Positive | None = None
    threads_batch: Positive | None = None
    cpus: str | None = None
    """Logical CPUs the process may use, as a Linux list."""
    numa: NumaConfig | None = None
    # speculation
    draft: DraftConfig | None = None
    ngram: NgramConfig | None = None
    tokens_per_second_min: NotNegativeNumber | None = None
    """Lowest wanted generation speed: watched in status, metrics and alerts. Absent:
    `orchestration.tokens_per_second_min`, if it is a worker."""
    first_token_max_s: Seconds | None = None
    """Longest wanted time until a streamed answer begins, waiting included: watched, too. 0: none. Absent:
    `orchestration.first_token_max_s`, if it is a worker."""
    # lifecycle
    exclusive: str | None = None
    """Servers of one exclusive group never run at once; they may share a port and a device."""
    default: bool = False
    """In an exclusive group: the member that starts first."""
    min_stay_s: Seconds | None = None
    """In an exclusive group: how long it stays up while it gets requests. Meanwhile its own requests go first, and
    those for other members are collected. It stops earlier when it gets no request for a second. 0: it stops as soon
    as another member gets a request. Absent: as long as it took to load, at most 30 s."""
    after: tuple[str, ...] = ()
    start_timeout_s: StartLimit | None = None
    """Absent: from the model's size and `hardware.read_speed_bytes`, at least 180. A start that is late then goes on
    while it still loads; one without progress ends earlier (`stall_timeout_s`)."""
    stall_timeout_s: Seconds = 60
    request_timeout_s: StartLimit = 600
    """Longest silence in seconds, before its answer and within it; an answer that flows is not cut."""
    total_timeout_s: StartLimit | None = None
    """Longest total time of an answer in seconds. Absent: no limit."""
    stop_grace_s: Seconds = 10
    fatal: bool = False
    """Whether the fleet's start fails when this server does. It also fails when no server at all starts."""
    # text
    context_shift: bool = False
    """A text that fills its slot goes on: the older half of what follows the first `n_keep` tokens is dropped."""
    n_keep: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    """Tokens of the beginning that a shift keeps; -1 = all of the prompt."""
    chat_template_file: str | None = None
    """A Jinja file instead of the model's own template."""
    chat_template_args: dict[str, Any] = {}
    """Variables for the template beside the messages (`enable_thinking: false`)."""
    # other
    reasoning: Literal["auto", "on", "off"] = "auto"
    request_defaults: dict[str, Any] = {}
    """Keys that the front adds to requests that lack them."""
    request_set: dict[str, Any] = {}
    """Keys that the front sets in every request, whatever the client wrote."""
    request_strip: tuple[str, ...] = ()
    """Keys that the front removes from every request."""
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    waive: tuple[str | dict[str, str], ...] = ()
    """Codes of warnings accepted here, each with a reason: `- cpu/oversubscribed: never busy together`."""
