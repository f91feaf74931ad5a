"""What the user wrote, validated: the composed config as frozen types. Pure.

Field names are the YAML keys. A field named `*_bytes` also takes `"18GB"` or `"500GiB"` (see `launcher.sizes`).
A field without a default must be written. `ConfigDict` maps are keyed by the name other entries refer to.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from launcher.errors import Location

ByteSize = Annotated[int, "bytes"]
"""Bytes; the config decoder also accepts a string with a unit."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
NotNegativeNumber = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=10_000_000)]
"""Any duration: up to 116 days. More is a mistake, and systemd and event loops count in small units."""
Limit = Annotated[float, msgspec.Meta(ge=0.001, le=10_000_000)]
"""Seconds of what fails when it is given no time, or would be done without pause."""
StartLimit = Annotated[float, msgspec.Meta(ge=1, le=10_000_000)]
"""Seconds of what takes at least one."""

OwnKvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
KvType = OwnKvType | str
"""llama.cpp's own, or one that the server's engine names among its `cache_types`."""
LoadMode = Literal["mmap", "mlock", "mmap+mlock", "none", "dio"]
SplitMode = Literal["layer", "none", "row", "tensor"]
DraftKind = Literal["simple", "mtp", "eagle3", "dflash", "dspark"]
FlashAttention = Literal["auto", "on", "off"]
Start = Literal["boot", "demand", "never"]


# --- hardware -----------------------------------------------------------------------------------------------


class NumaNodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One NUMA node: its id, its logical CPUs as a Linux list (`0-47,96-143`), its memory."""

    id: int
    cpus: str
    ram_bytes: ByteSize


class CpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host's processors. `nodes` empty means one node holding everything."""

    sockets: Positive = 1
    physical_cores: Positive
    logical_cores: Positive
    model: str = ""
    features: tuple[str, ...] = ()
    """Instruction sets that change memory (`amx_int8`, `avx512f`, `avx2`): llama.cpp repacks weights for them."""
    nodes: tuple[NumaNodeConfig, ...] = ()


PROCESS_BYTES = {"cuda": 400 * 1024**2, "rocm": 400 * 1024**2}
"""VRAM of a process's context by backend, where nobody states it. From reports (nvidia-smi of idle llama.cpp and
PyTorch processes on cards from Turing to Ada: 300 to 500 MiB), not measured by this project."""


class GpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. `backend` is llama.cpp's; the device is named as the map key (`cuda0`)."""

    backend: Literal["cuda", "vulkan", "rocm", "sycl", "metal", "rpc"]
    vram_bytes: ByteSize
    memory: Literal["own", "shared"] = "own"
    """shared: it uses the host's RAM (Apple, Strix Halo, GB10, Jetson). What is on it counts in RAM, too; `vram_bytes`
    is how much of that it may take."""
    model: str = ""
    target_min: Share = 0.90
    target_max: Share = 0.95
    """Share of `vram_bytes` that a plan should use, and must not exceed."""
    endpoint: str | None = None
    """`host:port` of the ggml-rpc-server, for backend rpc."""
    read_bandwidth_bytes: ByteSize | None = None
    """Bytes a second at which weights are really read there while a server generates; see `hardware`."""
    process_bytes: ByteSize | None = None
    """What each process that uses it holds of it before it loads anything (driver context, kernels). Absent: 400 MiB
    for cuda and rocm, as people report 300 to 500; nothing for others. `nvidia-smi` shows it for a tiny model."""

    @property
    def context_bytes(self) -> int:
        """`process_bytes`, or what is taken for it."""
        return self.process_bytes if self.process_bytes is not None else PROCESS_BYTES.get(self.backend, 0)


class HostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine of several. What it does not say is as `hardware` says. Model paths are the same on all."""

    address: str
    """Where the other hosts reach it; servers placed on it listen there."""
    api_key_file: str | None = None
    """Keys that its servers ask for (`--api-key-file`); the front presents the first, from the same path there."""
    cpu: CpuConfig | None = None
    ram_bytes: ByteSize | None = None
    ram_reserve_bytes: ByteSize | None = None
    gpus: dict[str, GpuConfig] | None = None
    memlock_bytes: ByteSize | None = None


class HardwareConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine a fleet is compiled for, or each of several (`hosts`). RAM budget = ram_bytes - ram_reserve_bytes."""

    name: str
    description: str = ""
    cpu: CpuConfig
    ram_bytes: Annotated[ByteSize, msgspec.Meta(ge=1)]
    ram_reserve_bytes: ByteSize = 0
    """For the system and its buffers; never planned."""
    gpus: dict[str, GpuConfig] = {}
    memlock_bytes: ByteSize | None = None
    """RLIMIT_MEMLOCK of the processes; absent means unlimited."""
    model_dir: str = "."
    """Where relative model paths start."""
    model_disk_bytes: ByteSize | None = None
    """Room for models on the disk where they lie: all quantizations that the config names of the fleet's models.
    Absent: `launch check` holds what is still to come against what is free there."""
    read_speed_bytes: ByteSize | None = None
    """Bytes a second with which models are read from there. `launch calibrate` measures it, `hardware=auto` has what it
    found. Absent: 200 MB, a hard disk, for how long a start may take; nothing is said of starts that are too short."""
    read_bandwidth_bytes: ByteSize | None = None
    """Bytes a second at which weights are really read from RAM while a server generates, all its threads together: what
    a known speed gives (tokens a second, times what a token touches), not the data sheet. Without it a plan expects
    speeds where `launch calibrate` measured some."""
    hosts: dict[str, HostConfig] = {}
    """Several machines by name. Empty: one, this."""

    @property
    def pooled(self) -> frozenset[str]:
        """GPUs that use the host's RAM."""
        return frozenset(name for name, gpu in self.gpus.items() if gpu.memory == "shared")

    def machine(self, host: str) -> HardwareConfig:
        """The one machine `host`, with what it has of its own; of a single machine itself. KeyError: no such host."""
        if not self.hosts:
            return self
        own = msgspec.structs.asdict(self.hosts[host])
        of_machines = own.keys() & set(HardwareConfig.__struct_fields__)
        return msgspec.structs.replace(self, hosts={}, **{n: own[n] for n in of_machines if own[n] is not None})


# --- catalogue ----------------------------------------------------------------------------------------------


class ArchitectureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Public hyper-parameters of a model, by llama.cpp's names; enough to size it with no file at hand.

    Per-layer values may be lists. Zero or absent means that the architecture does not have it.
    """

    arch: str
    """GGUF `general.architecture`: qwen2, qwen3moe, granitehybrid …"""
    n_layer: Positive
    n_embd: Positive
    n_head: int | tuple[int, ...]
    n_head_kv: int | tuple[int, ...]
    n_vocab: Positive
    n_ctx_train: int
    n_ff: int | tuple[int, ...] = 0
    key_length: int = 0
    """Head size of K; 0 means n_embd / n_head."""
    value_length: int = 0
    tied_embeddings: bool = False
    attention_bias: bool = False
    """Q, K and V carry biases (qwen2)."""
    qk_norm: bool = False
    causal: bool = True
    pooling: str | None = None
    # experts
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_exp: int = 0
    n_expert_shared: int = 0
    n_ff_shexp: int = 0
    n_layer_dense_lead: int = 0
    n_layer_nextn: int = 0
    """Layers at the end that predict further tokens (MTP); counted in n_layer, loaded for draft-mtp only."""
    n_embd_latent: int = 0
    """Width of the experts' input when it is not n_embd (nemotron_h_moe `moe_latent_size`)."""
    n_expert_used_min: int = 0
    """Fewest experts with coherent output, as found by people who ran it; 0 = unknown."""
    # sliding window
    n_swa: int = 0
    swa_pattern: int | tuple[bool, ...] = 0
    """p: layer il slides iff il % p < p-1; or one flag a layer."""
    key_length_swa: int = 0
    value_length_swa: int = 0
    # multi-head latent attention
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_dim: int = 0
    key_length_mla: int = 0
    value_length_mla: int = 0
    # sparse attention: an indexer beside it chooses which tokens are attended to
    indexer_n_head: int = 0
    indexer_key_length: int = 0
    """Width of the key that the indexer keeps of each token, in layers with an indexer of their own."""
    indexer_top_k: int = 0
    indexer_types: tuple[bool, ...] = ()
    """One flag a layer: it has an indexer of its own, and does not take over another's choice. Empty: all have."""
    # recurrent layers
    ssm_d_conv: int = 0
    ssm_d_inner: int = 0
    ssm_d_state: int = 0
    ssm_n_group: int = 0
    ssm_dt_rank: int = 0
    full_attention_interval: int = 0
    shortconv_l_cache: int = 0
    """Length of the short convolution of lfm2; its recurrent layers keep l_cache - 1 positions of n_embd."""
    n_layer_kv: int = 0
    """Layers that own KV when later layers share it (gemma3n); 0 = all."""
    n_embd_per_layer: int = 0
    n_deepstack: int = 0
    """Layers that get features of the image beside the embeddings (qwen3vl): every token's row is so much longer."""
    n_token_types: int = 0
    n_merges: int = 0
    """BPE merges of the tokenizer; sizes the vocabulary's host memory."""
    tokenizer: str = "gpt2"
    """GGUF `tokenizer.ggml.model`: gpt2 (byte-level BPE), llama (SPM), bert (WordPiece)."""
    tokenizer_pre: str = ""
    bos_token_id: int | None = None


class ModelFileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GGUF of a model. `bytes` is the published size, if known; split files name part 1."""

    path: str
    bytes: ByteSize | None = None
    parts: Positive = 1
    repo: str | None = None
    """ORG/REPO on Hugging Face that has a file of this name: `launch pull` brings it to `path`."""


class ProjectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A multimodal projector (mmproj) GGUF."""

    path: str
    bytes: ByteSize | None = None
    compute_bytes: ByteSize = 0
    """Worst-case compute buffer of the image encoder, when measured."""
    repo: str | None = None
    """As of a model's file."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: what it is, where its hyper-parameters were read, and its files by quantization."""

    title: str
    source: str
    """Where the hyper-parameters were read (a public config.json, a model card)."""
    architecture: ArchitectureConfig
    files: dict[str, ModelFileConfig]
    projector: ProjectorConfig | None = None
    domains: tuple[str, ...] = ()
    """What it is good at, for routing (`coding_architecture`, `reasoning`)."""
    notes: tuple[str, ...] = ()


class QuantizationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A quantization mix: which GGML type each kind of tensor gets.

    `mix` names llama.cpp's file type whose per-tensor rules apply (`Q4_K_M`); `default_type` is the type of
    ordinary 2-D weights under it. `block` and `block_bytes` are that type's exact GGML block sizes.
    """

    mix: str
    default_type: str
    block: Positive
    block_bytes: Positive
    description: str = ""


class CacheTypeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A type of K/V that only some builds have: `block` values take `block_bytes` bytes (its ggml type traits)."""

    block: Positive
    block_bytes: Positive


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A llama-server binary: where it is and which recorded dialect it speaks when it is not at hand."""

    binary: str
    """A path, a name on PATH, `pkg://package/file` of an installed package, or `built://file` of `make engine`."""
    dialect: str
    """Name of a recorded dialect (`b10434`), used when the binary cannot be probed."""
    cpu_features: tuple[str, ...] | None = None
    """Instruction sets that the build was compiled for, as `cpu.features` has them: it uses no others that the CPU may
    have. Left out: all that the CPU has."""
    library_path: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cache_types: dict[str, CacheTypeConfig] = {}
    """K/V types that a fork has beside llama.cpp's, by the name that its `--cache-type-k` takes."""


# --- fleet --------------------------------------------------------------------------------------------------


class TierConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When servers of a tier run. hot: from start to stop; warm: on demand; cold: files on disk only."""

    start: Start
    idle_timeout_s: Seconds = 0
    """Stop after this long without a request in flight; 0 = never."""
    expansion_threshold: NotNegative = 0
    """Requests in flight in a pool above which another server of the pool is started; 0 = never expand."""
    oom_score_adjust: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0


class DraftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What drafts ahead for speculative decoding, with its own KV types: a model, or layers of the model itself."""

    kind: DraftKind = "simple"
    """simple: any smaller model with the same vocabulary. mtp: the model's own layers for further tokens, or a model
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
    """Of a draft model, if it has devices."""

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
    """One more model that a server is asked as, with its own request values: thinking or not, cooler for code."""

    request_defaults: dict[str, Any] = {}
    """Keys that the front adds to requests that lack them."""
    request_set: dict[str, Any] = {}
    """Keys that the front gives every request, whatever the client wrote."""
    request_strip: tuple[str, ...] = ()
    """Keys that the front takes out of every request."""
    description: str = ""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One llama-server: what it serves, where, and every choice that changes its memory or behaviour."""

    model: str
    quantization: str
    tier: str
    file: str | None = None
    """A GGUF file, in the place of `model` and `quantization`: its header says the rest. Such a server, and any in a
    fleet file, may leave out tier (hot), port, slots (2), context (8,192 a slot), prompt cache
    (1 GiB) and devices (auto)."""
    ttl_s: Seconds | None = None
    """Stop after so many seconds without a request: a tier like `tier` (warm, where none is written) with this
    `idle_timeout_s`."""
    id: str | None = None
    """The model id that it is listed by and asked as, where that is not its name. A server that is written as
    `org/model:q4` has that as its id and is named `org-model-q4`: units, files and overrides go by the name."""
    roles: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Further names that a request may use; a role may be that of several servers."""
    faces: dict[str, FaceConfig] = {}
    """Further models that this one process serves, by name, each with its own request values; listed, and any name that
    a model id may be (`org/model:thinking`)."""
    description: str = ""
    engine: str = "default"
    host: str = "127.0.0.1"
    """The address to listen on, on the front's host; or the name of one of `hardware.hosts` to run there."""
    port: Port | None = None
    """Absent: the entry of this server's name in `ports`."""
    # context and slots
    slots: Positive | None = None
    """Absent: the server's own auto (4 slots, unified KV)."""
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
    """It serves embeddings (with pooling `rank`: orders texts). Absent: as the model is, by its kind and pooling."""
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None
    # weights
    load_mode: LoadMode = "mmap"
    repack: bool = True
    lora: tuple[LoraConfig, ...] = ()
    """Adapters over the model, all loaded at start."""
    lazy_tensors: Literal["auto", "on", "off"] | None = None
    """Whether tensors that the architecture marks (embeddings by layer) are read on demand. Absent: the build's own."""
    projector: bool = False
    """Load the model's projector; on a server with a `file` the path of one."""
    projector_device: str | None = None
    """`cpu`, or a name from hardware.gpus. Absent: the server's first device, if it has one."""
    experts_used: Positive | None = None
    # placement
    devices: tuple[str, ...] = ()
    """Names from hardware.gpus; empty = CPU only. `auto`: all of them, with as many layers as fit."""
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
    """How several devices share the model. none: `main_gpu` has it all; row: each has rows of every matrix, `main_gpu`
    K/V and the rest; tensor: each has its share of matrices and K/V."""
    main_gpu: str | None = None
    """One of `devices`. Absent: the first."""
    tensor_split: tuple[NotNegativeNumber, ...] = ()
    fill: tuple[Literal["experts", "quantization", "context"], ...] = ()
    """What the plan may choose better than written, until the devices are full: fewer expert banks on the host
    (`n_cpu_moe`), a larger file of the model, more context a slot. What is written is the least that will do."""
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
    """It should generate at least so fast: watched in status, metrics and alerts. Absent: as
    `orchestration.tokens_per_second_min` says, if it is a worker."""
    # lifecycle
    exclusive: str | None = None
    """Servers of one exclusive group never run at once; they may share a port and a device."""
    default: bool = False
    """In an exclusive group: the member that is started first."""
    min_stay_s: Seconds | None = None
    """In an exclusive group: how long it stays up, once it is, while it is asked. Requests for it go first meanwhile,
    those for the other members are collected. It goes before when nobody asks it for a second. 0: it goes as soon as
    another is asked. Absent: as long as it took to load, 30 s at most."""
    after: tuple[str, ...] = ()
    start_timeout_s: StartLimit | None = None
    """Absent: from the model's size and `hardware.read_speed_bytes`, 180 at least. A start that is late then goes on
    while it loads; one without progress ends earlier (`stall_timeout_s`)."""
    stall_timeout_s: Seconds = 60
    request_timeout_s: StartLimit = 600
    """How long it may say nothing, before its answer and within it; an answer that flows is not cut."""
    total_timeout_s: StartLimit | None = None
    """How long a whole answer may take, however it flows. Absent: as long as it flows."""
    stop_grace_s: Seconds = 10
    fatal: bool = False
    """Whether the fleet's start fails when this server does. It also fails when no server at all starts."""
    # text
    context_shift: bool = False
    """A text that fills its slot goes on: the oldest half of what follows the first `n_keep` tokens is dropped."""
    n_keep: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    """Tokens of the beginning that a shift keeps; -1 = all of the prompt."""
    chat_template_file: str | None = None
    """A Jinja file instead of the model's own template."""
    chat_template_args: dict[str, Any] = {}
    """What the template is given beside the messages (`enable_thinking: false`)."""
    # other
    reasoning: Literal["auto", "on", "off"] = "auto"
    request_defaults: dict[str, Any] = {}
    """Keys that the front adds to requests that lack them."""
    request_set: dict[str, Any] = {}
    """Keys that the front gives every request, whatever the client wrote."""
    request_strip: tuple[str, ...] = ()
    """Keys that the front takes out of every request."""
    extra_args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    waive: tuple[str | dict[str, str], ...] = ()
    """Codes of warnings accepted here, each with a reason: `- cpu/oversubscribed: never busy together`."""


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container image to run as a service."""

    image: str
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process beside the llama-servers that counts in ports, RAM and threads.

    Exactly one of `command`, `container` and `builtin` (our own front). With `models` it speaks OpenAI's API, and the
    front asks it as it asks servers: a whisper, a vLLM.
    """

    description: str = ""
    model: str = ""
    host: str = "127.0.0.1"
    """As a server's."""
    port: Port | None = None
    command: tuple[str, ...] = ()
    container: ContainerConfig | None = None
    builtin: Literal["front"] | None = None
    health_path: str = "/health"
    ram_bytes: ByteSize = 0
    vram_bytes: dict[str, ByteSize] = {}
    """What it takes, by name in `hardware.gpus`."""
    threads: NotNegative = 0
    start_timeout_s: StartLimit = 60
    fatal: bool = False
    """As a server's."""
    tier: str = "hot"
    exclusive: str | None = None
    """It takes turns with the servers and services of this exclusive group; of a tier that is started on demand."""
    models: dict[str, str] = {}
    """Model as it is asked for here → what the service calls it, below `/v1`. The first answers to its own name."""
    slots: Positive = 4
    """Requests that it is given at once, where it has models."""
    modalities: tuple[Literal["text", "image", "audio"], ...] = ("text", "image", "audio")
    """As an upstream's."""
    request_timeout_s: StartLimit = 600
    """As a server's."""
    env: dict[str, str] = {}


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server with OpenAI's API that somebody else runs: vLLM, a whisper, a llama-server elsewhere, a cloud.

    The front asks it as it asks servers of the fleet; nothing starts or stops it.
    """

    url: str
    """As OpenAI's clients take it: `https://api.example.com/v1`. Without a path, `/v1` is meant."""
    models: dict[str, str]
    """Model as it is asked for here → what the upstream calls it. The first answers to the upstream's own name."""
    aliases: tuple[str, ...] = ()
    """Further names for the first model."""
    description: str = ""
    key_file: str | None = None
    """The fleet's key for it, in the first line. Keys of the front's clients are never sent there."""
    key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization"
    """How the key is sent: `Authorization: Bearer KEY`, or alone in one of the others."""
    ca_file: str | None = None
    """PEM certificates that its own is checked against. Absent: those that the system trusts."""
    health_path: str | None = None
    """A path of its host that answers while it is well. Absent: `/models` below its `url`."""
    slots: Positive = 16
    """Requests that it is given at once; more wait here."""
    n_ctx: NotNegative = 0
    """Tokens that a request may have, as clients are told; 0: not known."""
    modalities: tuple[Literal["text", "image", "audio"], ...] = ("text", "image", "audio")
    """What a chat may contain; it says itself what it does not take."""
    request_timeout_s: StartLimit = 600
    """As a server's, as the next four."""
    total_timeout_s: StartLimit | None = None
    request_defaults: dict[str, Any] = {}
    request_set: dict[str, Any] = {}
    request_strip: tuple[str, ...] = ()
    ram_bytes: ByteSize = 0
    """Where it runs on this machine: what it takes of RAM."""
    vram_bytes: dict[str, ByteSize] = {}
    """Where it runs on this machine: what it takes, by name in `hardware.gpus`."""


class HookConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something done once after every HOT server is ready, in order. Exactly one of http, command, python."""

    description: str = ""
    http: str | None = None
    """`server/path`: posts `body` to that server, e.g. `embedder_0/embedding`."""
    body: dict[str, Any] = {}
    command: tuple[str, ...] = ()
    python: str | None = None
    """Entry point `module:function`."""
    timeout_s: Limit = 30
    on_failure: Literal["fail", "warn"] = "warn"
    enabled: bool = True


# --- routing and orchestration ------------------------------------------------------------------------------


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Servers that take the same kinds of task, in order of preference; later ones join on expansion."""

    servers: tuple[str, ...]
    task_types: tuple[str, ...] = ()


class BreakerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Circuit breaker of an upstream."""

    failures: Positive = 3
    open_s: Seconds = 30
    open_max_s: Seconds = 300


class EscalationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To a stronger role when an answer is not good enough (a server that is down is its fallback's)."""

    chain: dict[str, str] = {}
    max_retries: NotNegative = 2
    """How often the validator refuses a worker's block before the next of the chain writes it, at least once."""
    max_escalations: NotNegative = 2
    """How often one answer may go on to the next of the chain."""


class SlotsMaxConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many requests a role's server may answer at once, and what was measured with more."""

    slots: Positive
    reason: str


class KindsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers a request of a kind that names no model. Absent: the first server that does it, if there is one."""

    embedding: str | None = None
    rerank: str | None = None
    infill: str | None = None
    """Absent: as any text. Name a model that was trained to fill in."""
    audio: str | None = None
    """Transcriptions and translations."""


class MediaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers a chat with images (audio) whose own server takes none. Absent: it is refused, with the reason."""

    image: str | None = None
    audio: str | None = None


class RoutingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers what. Names in values are servers, roles or aliases."""

    default: str | None = None
    """Answers when a request names no model."""
    defaults: KindsConfig = KindsConfig()
    media: MediaConfig = MediaConfig()
    unknown_model: Literal["refuse", "default"] = "refuse"
    """A model that nobody has: 404 with the nearest names; or as if none were named, for clients that were made for one
    llama-server, which ignores the name."""
    pools: dict[str, PoolConfig] = {}
    fallback: dict[str, tuple[str, ...]] = {}
    escalation: EscalationConfig = EscalationConfig()
    breaker: BreakerConfig = BreakerConfig()
    timeouts_s: dict[str, Limit] = {}
    """How long a server may say nothing, by role, over its own request_timeout_s."""
    n_ctx_min: dict[str, int] = {}
    """Tokens that a slot must have, by role."""
    slots_max: dict[str, SlotsMaxConfig] = {}
    """The most slots that the server of a role may have; 1: it is serial."""


ValidationPolicy = Literal["none", "final", "block_by_block"]


class ValidationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generate, validate, commit: which server judges, and how often a block may be corrected."""

    validator: str
    policy: ValidationPolicy = "block_by_block"
    """Where neither the request, nor its model, nor its domain, nor the router says another."""
    max_corrections: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    system_prompt: str = ""
    timeout_s: Limit = 60
    """For one verdict, waiting included."""
    block_tokens: Positive = 512
    """Longest block."""
    max_blocks: Positive = 32
    """Most blocks of one answer."""
    shed_above: NotNegative = 8
    """While so many answers are being validated, one more is only where the request or its model names a policy: a
    fleet with too much to do gets no more of it. 0 = always."""
    block_prompt: str = ""
    """What a worker is told about blocks, after its own prompt; empty: the built-in text."""


class RuleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model: auto` without asking the router: the last user message has one of `words`."""

    words: tuple[str, ...]
    """Whole words or phrases; letter case does not matter."""
    domain: str
    model: str | None = None
    """Absent: the first worker of the pool that serves the task type `domain`."""
    policy: ValidationPolicy | None = None


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of projects."""

    retention_days: NotNegativeNumber = 30
    """Finished work, notes and journal older than this are dropped; 0 = never."""
    context_blocks: NotNegative = 16
    """Latest blocks of a project that a worker may be shown, as far as its slot has room."""
    commits: Literal["validated", "projects"] = "validated"
    """Which answers are kept: those that were validated, or also those that were not, of requests with `X-Project`."""


class WarmPoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model files kept resident in RAM so that a swap reads memory, not disk."""

    models_min: NotNegative = 2
    models_max: NotNegative = 3
    ram_bytes: ByteSize = 0
    predict: dict[str, str] = {}
    """Domain → server likely to be needed next."""
    patterns: tuple[tuple[str, ...], ...] = ()
    """Sequences of servers: when all but the last just ran, the last is likely next."""


class RungConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rung of the ladder taken after out-of-memory. Absent fields stay as planned."""

    server: str | None = None
    quantization: str | None = None
    n_ctx: Positive | None = None
    cache_type_k: KvType | None = None
    cache_type_v: KvType | None = None
    n_gpu_layers: NotNegative | None = None


class OrchestrationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first seed document's engine: a router, a validator, one worker at a time."""

    router: str
    workers: tuple[str, ...] = ()
    router_timeout_s: Limit = 10
    validation: ValidationConfig | None = None
    prompts: dict[str, str] = {}
    """System prompt by server."""
    policies: dict[str, ValidationPolicy] = {}
    """Validation policy by domain."""
    model_policies: dict[str, ValidationPolicy] = {}
    """Validation policy by server, also for requests that name it themselves."""
    rules: tuple[RuleConfig, ...] = ()
    """Tried in order before the router is asked."""
    confidence_min: Share = 0
    """Below this the router's decision is not taken, and the default server answers."""
    memory: MemoryConfig = MemoryConfig()
    warm_pool: WarmPoolConfig | None = None
    oom_ladder: tuple[RungConfig, ...] = ()
    swap_target_s: Seconds | None = None
    """A swap should take at most so long, from the drain until the other serves. Watched: status, metrics, alerts."""
    tokens_per_second_min: NotNegativeNumber | None = None
    """Every worker should generate at least so fast, unless it says itself how fast. Watched, too."""


# --- runtime and deployment ---------------------------------------------------------------------------------


class FrontConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one HTTP port that clients talk to."""

    host: str = "127.0.0.1"
    """The address to listen on, on the first of `hardware.hosts`; or the name of one of them to run there. `::` is both
    families."""
    port: Port = 8000
    listen: tuple[str, ...] = ()
    """Where it listens beside `host`: addresses, at the same port, and absolute paths of unix sockets."""
    api_key_file: str | None = None
    tls_cert_file: str | None = None
    """PEM certificate chain; with `tls_key_file` the front speaks https."""
    tls_key_file: str | None = None
    journal_file: str | None = None
    """One JSON line a request: who, which model, tokens, times; never the text."""
    max_body_bytes: ByteSize = 64 * 1024**2
    max_header_bytes: ByteSize = 64 * 1024
    max_connections: int = 4096
    """Of all clients; fewer where the process may not have so many descriptors. One more ends an idle one."""
    max_connections_per_client: int = 1024
    """Of one address; of IPv6, of one /64 network."""
    max_held_bytes: ByteSize = 256 * 1024**2
    """Request bodies in memory, of all clients together, and twice `max_body_bytes` at least: from half of it on
    uploads wait for each other, beyond it they are refused."""
    header_timeout_s: Limit = 10
    idle_timeout_s: Limit = 75
    connect_timeout_s: Limit = 5
    queue_size: NotNegative = 256
    queue_timeout_s: Seconds = 60
    allowed_hosts: tuple[str, ...] = ()
    access_log: bool = False
    allowed_origins: tuple[str, ...] = ()
    """Pages that may use the front though they are at none of its hosts: `app://obsidian.md`, `null`, or any of one
    kind of app (`vscode-webview://*`)."""
    list_aliases: bool = False
    """Whether `/v1/models` lists aliases as models of their own, for clients that ask only for what is listed."""
    ping_after_s: Seconds = 15
    """While a stream waits for a slot, a swap or a load: after so much silence its client gets the header and a comment
    (`: ping`), and then again; 0 = never."""
    apis: tuple[Literal["llama_router", "llama_swap", "ollama"], ...] = ()
    """Other programs' paths that are answered, too: of llama.cpp's router (`/models/load`), llama-swap (`/running`) and
    Ollama (`/api/chat`). See docs/http.md."""


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the supervisor behaves."""

    front: FrontConfig = FrontConfig()
    container_engine: Literal["podman", "docker"] = "podman"
    """What runs services that are containers under `launch up`; installed they are podman's, as Quadlet files."""
    state_dir: str | None = None
    """Absent: `$XDG_STATE_HOME/launch`."""
    server_key_file: str | None = None
    """Keys that every llama-server asks for which names no file of its own (`--api-key-file`); the front presents the
    first. `launch up` makes the file where there is none. Absent: whoever reaches a server's port may use it."""
    log_max_bytes: ByteSize = 16 * 1024**2
    log_files: Positive = 3
    parallel_start_below_bytes: ByteSize = 8 * 1024**3
    """Models smaller than this start together; bigger ones one after another."""
    max_parallel_starts: Positive = 4
    cooldown_s: Seconds = 0
    """Pause between two of the bigger ones at the start of the fleet, for mappings to settle."""
    backoff_s: Seconds = 0.5
    backoff_max_s: Seconds = 30
    crash_loop_failures: Positive = 5
    crash_loop_window_s: Seconds = 120
    health_interval_s: Limit = 5
    health_failures: Positive = 3
    drain_timeout_s: Seconds = 10


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container image with a llama-server of an engine's build."""

    image: str
    program: str = "/app/llama-server"
    """Its path in the image."""


class KubernetesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What objects for Kubernetes need to know of the cluster."""

    namespace: str = "launch"
    images: dict[str, ImageConfig] = {}
    """By engine. Its build must be the one that the engine's dialect describes."""
    front_image: str = "launch"
    """With the `launch` program (packaging/Containerfile)."""
    front_replicas: int = 2
    models_claim: str | None = None
    """PersistentVolumeClaim with the models, read-only. Absent: the directories of the models on each node."""
    models_mount: str = "/models"
    """Where the claim is mounted: model paths lie below it."""
    state_claim: str | None = None
    """PersistentVolumeClaim for the memory of projects. Absent: it ends with the front's pod."""
    keys_secret: str = "launch-keys"  # noqa: S105 # its name
    """Secret with the key files that the config names, an entry a file by its name."""
    gpu_resources: dict[str, str] = {}
    """Backend → what the cluster's device plugin calls a card, where it is not its vendor's usual name."""


class DeployConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How units are written."""

    unit_prefix: str = "launch"
    user: str | None = None
    """Absent: DynamicUser."""
    output_dir: str = "generated"
    python: str = "/usr/bin/env"
    hardening: bool = True
    scope: Literal["system", "user"] = "system"
    """Units of the machine, or of one user without root (`launch install --user`): no sandbox that needs root."""
    launch: str = "/usr/local/bin/launch"
    """The `launch` program that the runtime's unit runs, on the machine where it is installed."""
    units: bool = True
    """Whether systemd units are written."""
    targets: tuple[Literal["llama_swap", "router", "prometheus", "alerts", "grafana"], ...] = ()
    """What else is written from the plan, below `exports/`."""
    kubernetes: KubernetesConfig | None = None
    """Objects for Kubernetes, below `kubernetes/`."""


class ProfileConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the fleet a deployment runs."""

    name: str
    description: str = ""


class StatedTotals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures that documents state; the plan says where the computed ones differ. Never used otherwise."""

    hot_ram_bytes: ByteSize | None = None
    kv_reserve_bytes: ByteSize | None = None
    servers: int | None = None
    services: int | None = None
    source: str = ""


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole composed config."""

    hardware: HardwareConfig
    profile: ProfileConfig
    models: dict[str, ModelConfig]
    quantizations: dict[str, QuantizationConfig]
    tiers: dict[str, TierConfig]
    engines: dict[str, EngineConfig]
    ports: dict[str, Port] = {}
    servers: dict[str, ServerConfig] = {}
    services: dict[str, ServiceConfig] = {}
    upstreams: dict[str, UpstreamConfig] = {}
    hooks: dict[str, HookConfig] = {}
    routing: RoutingConfig = RoutingConfig()
    orchestration: OrchestrationConfig | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    deploy: DeployConfig = DeployConfig()
    include_warm: tuple[str, ...] = ()
    stated: StatedTotals | None = None
    waive: tuple[str | dict[str, str], ...] = ()


class SourceMap(msgspec.Struct, frozen=True, kw_only=True):
    """Where each dotted key of the composed config was written. List items are `key.0`."""

    locations: dict[str, Location]

    def find(self, key: str) -> Location | None:
        """Location of `key`, or of its nearest written ancestor."""
        while key:
            if key in self.locations:
                return self.locations[key]
            key = key.rpartition(".")[0]
        return None


class Composed(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the config stage: the typed config, where each value came from, and the plain tree."""

    fleet: FleetConfig
    sources: SourceMap
    tree: dict[str, Any]
    findings: tuple[Any, ...] = ()
