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

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
LoadMode = Literal["mmap", "mlock", "mmap+mlock", "none", "dio"]
FlashAttention = Literal["auto", "on", "off"]


# --- hardware -----------------------------------------------------------------------------------------------


class NumaNodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One NUMA node: its id, its logical CPUs as a Linux list (`0-47,96-143`), its memory."""

    id: int
    cpus: str
    ram_bytes: ByteSize


class CpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host's processors. `nodes` empty means one node holding everything."""

    sockets: int = 1
    physical_cores: int
    logical_cores: int
    model: str = ""
    features: tuple[str, ...] = ()
    """Instruction sets that change memory (`amx_int8`, `avx512f`, `avx2`): llama.cpp repacks weights for them."""
    nodes: tuple[NumaNodeConfig, ...] = ()


class GpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. `backend` is llama.cpp's; the device is named as the map key (`cuda0`)."""

    backend: Literal["cuda", "vulkan", "rocm", "sycl", "metal", "rpc"]
    vram_bytes: ByteSize
    model: str = ""
    target_min: float = 0.90
    target_max: float = 0.95
    """Share of `vram_bytes` that a plan should use, and must not exceed."""
    endpoint: str | None = None
    """`host:port` of the ggml-rpc-server, for backend rpc."""


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


HOST_FIELDS = ("cpu", "ram_bytes", "ram_reserve_bytes", "gpus", "memlock_bytes")
"""What a host may have of its own."""


class HardwareConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine a fleet is compiled for, or each of several (`hosts`). RAM budget = ram_bytes - ram_reserve_bytes."""

    name: str
    description: str = ""
    cpu: CpuConfig
    ram_bytes: ByteSize
    ram_reserve_bytes: ByteSize = 0
    """For the system and its buffers; never planned."""
    gpus: dict[str, GpuConfig] = {}
    memlock_bytes: ByteSize | None = None
    """RLIMIT_MEMLOCK of the processes; absent means unlimited."""
    model_dir: str = "."
    """Where relative model paths start."""
    hosts: dict[str, HostConfig] = {}
    """Several machines by name. Empty: one, this."""

    def machine(self, host: str) -> HardwareConfig:
        """The one machine `host`, with what it has of its own; of a single machine itself. KeyError: no such host."""
        if not self.hosts:
            return self
        own = self.hosts[host]
        given = {field: value for field in HOST_FIELDS if (value := getattr(own, field)) is not None}
        return msgspec.structs.replace(self, hosts={}, **given)


# --- catalogue ----------------------------------------------------------------------------------------------


class ArchitectureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Public hyper-parameters of a model, by llama.cpp's names; enough to size it with no file at hand.

    Per-layer values may be lists. Zero or absent means that the architecture does not have it.
    """

    arch: str
    """GGUF `general.architecture`: qwen2, qwen3moe, granitehybrid …"""
    n_layer: int
    n_embd: int
    n_head: int | tuple[int, ...]
    n_head_kv: int | tuple[int, ...]
    n_vocab: int
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
    parts: int = 1


class ProjectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A multimodal projector (mmproj) GGUF."""

    path: str
    bytes: ByteSize | None = None
    compute_bytes: ByteSize = 0
    """Worst-case compute buffer of the image encoder, when measured."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: what it is, where its hyper-parameters were read, and its files by quantization."""

    title: str
    source: str
    """Where the hyper-parameters were read (a public config.json, a model card)."""
    license: str = ""
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
    block: int
    block_bytes: int
    description: str = ""
    quality_loss: str = ""


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


# --- fleet --------------------------------------------------------------------------------------------------


class TierConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When servers of a tier run. hot: from start to stop; warm: on demand; cold: files on disk only."""

    start: Literal["boot", "demand", "never"]
    idle_timeout_s: float = 0
    """Stop after this long without a request in flight; 0 = never."""
    expansion_threshold: int = 0
    """Requests in flight in a pool above which another server of the pool is started; 0 = never expand."""
    oom_score_adjust: int = 0


class DraftConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A draft model for speculative decoding, with its own KV types."""

    model: str
    quantization: str
    n_max: int = 16
    n_min: int = 0
    p_min: float | None = None
    cache_type_k: KvType = "f16"
    cache_type_v: KvType = "f16"
    n_gpu_layers: int | Literal["all"] = 0


class NgramConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speculation from n-grams of the context (`lookup` in the seed documents)."""

    kind: Literal["simple", "map-k", "map-k4v", "mod", "cache"] = "simple"
    n_max: int | None = None


class NumaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Memory policy of a process, as numactl knows it."""

    policy: Literal["interleave", "preferred", "bind"]
    nodes: tuple[int, ...] = ()
    """Empty with interleave means all nodes."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One llama-server: what it serves, where, and every choice that changes its memory or behaviour."""

    model: str
    quantization: str
    tier: str
    roles: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    description: str = ""
    engine: str = "default"
    host: str = "127.0.0.1"
    """The address to listen on, on the front's host; or the name of one of `hardware.hosts` to run there."""
    port: int | None = None
    """Absent: the entry of this server's name in `ports`."""
    # context and slots
    slots: int | None = None
    """Absent: the server's own auto (4 slots, unified KV)."""
    n_ctx: int | None = None
    n_ctx_per_slot: int | None = None
    """Exactly one of n_ctx (whole) and n_ctx_per_slot; both absent: the model's training context."""
    kv_unified: bool | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    flash_attention: FlashAttention = "auto"
    cache_type_k: KvType = "f16"
    cache_type_v: KvType = "f16"
    swa_full: bool = False
    context_checkpoints: int = 32
    cache_ram_mib: int = 8192
    """Prompt cache in host memory; 0 = off, -1 = no limit."""
    slot_save_path: str | None = None
    """Directory where slots are saved before a swap stops the server, and restored from after the swap back."""
    embedding: bool = False
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None
    # weights
    load_mode: LoadMode = "mmap"
    repack: bool = True
    projector: bool = False
    experts_used: int | None = None
    # placement
    devices: tuple[str, ...] = ()
    """Names from hardware.gpus; empty = CPU only."""
    n_gpu_layers: int | Literal["all", "auto"] = 0
    n_cpu_moe: int = 0
    tensor_split: tuple[float, ...] = ()
    fill: tuple[Literal["experts", "quantization", "context"], ...] = ()
    """What the plan may choose better than written, until the devices are full: fewer expert banks on the host
    (`n_cpu_moe`), a larger file of the model, more context a slot. What is written is the least that will do."""
    kv_offload: bool = True
    threads: int | None = None
    threads_batch: int | None = None
    cpus: str | None = None
    """Logical CPUs the process may use, as a Linux list."""
    numa: NumaConfig | None = None
    # speculation
    draft: DraftConfig | None = None
    ngram: NgramConfig | None = None
    # lifecycle
    exclusive: str | None = None
    """Servers of one exclusive group never run at once; they may share a port and a device."""
    default: bool = False
    """In an exclusive group: the member that is started first."""
    after: tuple[str, ...] = ()
    start_timeout_s: float = 180
    stall_timeout_s: float = 60
    request_timeout_s: float = 600
    stop_grace_s: float = 10
    fatal: bool = True
    """Whether the fleet's start fails when this server does."""
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

    Exactly one of `command`, `container` and `builtin` (our own front).
    """

    description: str = ""
    model: str = ""
    host: str = "127.0.0.1"
    """As a server's."""
    port: int | None = None
    command: tuple[str, ...] = ()
    container: ContainerConfig | None = None
    builtin: Literal["front"] | None = None
    health_path: str = "/health"
    ram_bytes: ByteSize = 0
    threads: int = 0
    start_timeout_s: float = 60
    fatal: bool = True
    tier: str = "hot"
    env: dict[str, str] = {}


class HookConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something done once after every HOT server is ready, in order. Exactly one of http, command, python."""

    description: str = ""
    http: str | None = None
    """`server/path`: posts `body` to that server, e.g. `embedder_0/embedding`."""
    body: dict[str, Any] = {}
    command: tuple[str, ...] = ()
    python: str | None = None
    """Entry point `module:function`."""
    timeout_s: float = 30
    on_failure: Literal["fail", "warn"] = "warn"
    enabled: bool = True


# --- routing and orchestration ------------------------------------------------------------------------------


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Servers that take the same kinds of task, in order of preference; later ones join on expansion."""

    servers: tuple[str, ...]
    task_types: tuple[str, ...] = ()


class BreakerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Circuit breaker of an upstream."""

    failures: int = 3
    open_s: float = 30
    open_max_s: float = 300


class EscalationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To a stronger role when an answer is not good enough (not for failures: that is fallback)."""

    chain: dict[str, str] = {}
    max_retries: int = 2
    max_escalations: int = 2


class RoutingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers what. Names in values are servers, roles or aliases."""

    default: str | None = None
    """Answers when a request names no model."""
    pools: dict[str, PoolConfig] = {}
    fallback: dict[str, tuple[str, ...]] = {}
    escalation: EscalationConfig = EscalationConfig()
    breaker: BreakerConfig = BreakerConfig()
    timeouts_s: dict[str, float] = {}
    """Answer timeout by role, over the server's own request_timeout_s."""
    n_ctx_min: dict[str, int] = {}
    """Tokens that a slot must have, by role."""


ValidationPolicy = Literal["none", "final", "block_by_block"]


class ValidationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Generate, validate, commit: which server judges, and how often a block may be corrected."""

    validator: str
    policy: ValidationPolicy = "block_by_block"
    """Where neither the request, nor its model, nor its domain, nor the router says another."""
    max_corrections: int = 3
    system_prompt: str = ""
    timeout_s: float = 60
    """For one verdict, waiting included."""
    block_tokens: int = 512
    """Longest block."""
    max_blocks: int = 32
    """Most blocks of one answer."""
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

    retention_days: float = 30
    """Finished work, notes and journal older than this are dropped; 0 = never."""
    context_blocks: int = 16
    """Latest blocks of a project that a worker may be shown, as far as its slot has room."""


class WarmPoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model files kept resident in RAM so that a swap reads memory, not disk."""

    models_min: int = 2
    models_max: int = 3
    ram_bytes: ByteSize = 0
    predict: dict[str, str] = {}
    """Domain → server likely to be needed next."""
    patterns: tuple[tuple[str, ...], ...] = ()
    """Sequences of servers: when all but the last just ran, the last is likely next."""


class RungConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rung of the ladder taken after out-of-memory. Absent fields stay as planned."""

    server: str | None = None
    quantization: str | None = None
    n_ctx: int | None = None
    cache_type_k: KvType | None = None
    cache_type_v: KvType | None = None
    n_gpu_layers: int | None = None


class OrchestrationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first seed document's engine: a router, a validator, one worker at a time."""

    router: str
    workers: tuple[str, ...] = ()
    router_timeout_s: float = 10
    validation: ValidationConfig | None = None
    prompts: dict[str, str] = {}
    """System prompt by server."""
    policies: dict[str, ValidationPolicy] = {}
    """Validation policy by domain."""
    model_policies: dict[str, ValidationPolicy] = {}
    """Validation policy by server, also for requests that name it themselves."""
    rules: tuple[RuleConfig, ...] = ()
    """Tried in order before the router is asked."""
    confidence_min: float = 0
    """Below this the router's decision is not taken, and the default server answers."""
    memory: MemoryConfig = MemoryConfig()
    warm_pool: WarmPoolConfig | None = None
    oom_ladder: tuple[RungConfig, ...] = ()
    swap_target_s: float | None = None
    tokens_per_second_min: float | None = None


# --- runtime and deployment ---------------------------------------------------------------------------------


class FrontConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one HTTP port that clients talk to."""

    host: str = "127.0.0.1"
    """The address to listen on, on the first of `hardware.hosts`; or the name of one of them to run there."""
    port: int = 8000
    api_key_file: str | None = None
    tls_cert_file: str | None = None
    """PEM certificate chain; with `tls_key_file` the front speaks https."""
    tls_key_file: str | None = None
    journal_file: str | None = None
    """One JSON line a request: who, which model, tokens, times; never the text."""
    max_body_bytes: ByteSize = 64 * 1024**2
    max_header_bytes: ByteSize = 64 * 1024
    header_timeout_s: float = 10
    idle_timeout_s: float = 75
    connect_timeout_s: float = 5
    queue_size: int = 256
    queue_timeout_s: float = 60
    allowed_hosts: tuple[str, ...] = ()
    access_log: bool = False


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the supervisor behaves."""

    front: FrontConfig = FrontConfig()
    state_dir: str | None = None
    """Absent: `$XDG_STATE_HOME/launch`."""
    server_key_file: str | None = None
    """Keys that every llama-server asks for which names no file of its own (`--api-key-file`); the front presents the
    first. `launch up` makes the file where there is none. Absent: whoever reaches a server's port may use it."""
    log_max_bytes: ByteSize = 16 * 1024**2
    log_files: int = 3
    parallel_start_below_bytes: ByteSize = 8 * 1024**3
    """Models smaller than this start together; bigger ones one after another."""
    max_parallel_starts: int = 4
    backoff_s: float = 0.5
    backoff_max_s: float = 30
    crash_loop_failures: int = 5
    crash_loop_window_s: float = 120
    health_interval_s: float = 5
    health_failures: int = 3
    drain_timeout_s: float = 10


class DeployConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How units are written."""

    unit_prefix: str = "launch"
    user: str | None = None
    """Absent: DynamicUser."""
    output_dir: str = "generated"
    python: str = "/usr/bin/env"
    hardening: bool = True
    watchdog: bool = False
    scope: Literal["system", "user"] = "system"
    """Units of the machine, or of one user without root (`launch install --user`): no sandbox that needs root."""
    launch: str = "/usr/local/bin/launch"
    """The `launch` program that the front's unit runs, on the machine where it is installed."""
    warm: Literal["socket", "manual"] = "socket"
    """Who starts servers of a tier that starts on demand: a socket on their port, or nobody but `systemctl`."""
    targets: tuple[Literal["llama_swap", "router", "prometheus", "alerts", "grafana"], ...] = ()
    """What else is written from the plan, below `exports/`."""


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
    ports: dict[str, int] = {}
    servers: dict[str, ServerConfig] = {}
    services: dict[str, ServiceConfig] = {}
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
