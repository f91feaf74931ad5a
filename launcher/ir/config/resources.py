"""Types of field values; and the groups `hardware`, `model` and `quantization`: what there is to run with. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from launcher.ir.backends import BACKENDS, BackendName

ByteSize = Annotated[int, "bytes"]
"""Bytes; the config decoder also accepts a string with a unit."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
NotNegativeNumber = Annotated[float, msgspec.Meta(ge=0, le=1_000_000_000_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=10_000_000)]
"""Any duration: up to 116 days. More is a mistake, and systemd and event loops count in small units."""
Limit = Annotated[float, msgspec.Meta(ge=0.001, le=10_000_000)]
"""Seconds; 0 would make it fail at once, or repeat without pause."""
StartLimit = Annotated[float, msgspec.Meta(ge=1, le=10_000_000)]
"""Seconds, at least one."""

OwnKvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
KvType = OwnKvType | str
"""One of llama.cpp's types, or of the engine's own `cache_types`."""
LoadMode = Literal["mmap", "mlock", "mmap+mlock", "none", "dio"]
SplitMode = Literal["layer", "none", "row", "tensor"]
DraftKind = Literal["simple", "mtp", "eagle3", "dflash", "dspark"]
FlashAttention = Literal["auto", "on", "off"]
Start = Literal["boot", "demand", "never"]


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
    """Instruction sets that change memory use (`amx_int8`, `avx512f`, `avx2`): llama.cpp repacks weights for them."""
    nodes: tuple[NumaNodeConfig, ...] = ()


class GpuConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator. `backend` is llama.cpp's; the map key (`cuda0`) is the device's name."""

    backend: BackendName
    vram_bytes: ByteSize
    memory: Literal["own", "shared"] = "own"
    """shared: it uses the host's RAM (Apple, Strix Halo, GB10, Jetson). Its use counts in RAM, too; `vram_bytes` is how
    much of it the GPU may take."""
    model: str = ""
    target_min: Share = 0.90
    target_max: Share = 0.95
    """Share of `vram_bytes` that a plan should use, and must not exceed."""
    endpoint: str | None = None
    """`host:port` of the ggml-rpc-server, for backend rpc."""
    read_bandwidth_bytes: ByteSize | None = None
    """Bytes per second at which weights are really read from it during generation; see `hardware`."""
    process_bytes: ByteSize | None = None
    """Memory that each process on it takes before it loads anything (driver context, kernels). Absent: 400 MiB for cuda
    and rocm, as people report 300 to 500; nothing for others. `nvidia-smi` shows it for a tiny model."""

    @property
    def context_bytes(self) -> int:
        """`process_bytes`, or the value assumed for it."""
        return self.process_bytes if self.process_bytes is not None else BACKENDS[self.backend].process_bytes


class HostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several machines. Fields left out are as in `hardware`. Model paths are the same on all."""

    address: str
    """Address by which the other hosts reach it; servers placed on it listen there."""
    api_key_file: str | None = None
    """Keys that its servers require (`--api-key-file`); the front presents the first, from the same path on its own
    host."""
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
    """Directory of relative model paths."""
    model_disk_bytes: ByteSize | None = None
    """Room for models on their disk: all quantizations that the config names of the fleet's models. Absent: `launch
    check` compares missing files with the free space."""
    read_speed_bytes: ByteSize | None = None
    """Bytes per second at which models are read from there. `launch calibrate` measures it, and `hardware=auto` uses
    the result. Absent: 200 MB (a hard disk) for how long a start may take, and no warnings about starts that are too
    short."""
    read_bandwidth_bytes: ByteSize | None = None
    """Bytes per second at which weights are really read from RAM during generation, all threads together: computed from
    a known speed (tokens per second times bytes touched per token), not from the data sheet. Without it a plan
    expects speeds only where `launch calibrate` measured some."""
    hosts: dict[str, HostConfig] = {}
    """Several machines by name. Empty: this one only."""

    @property
    def pooled(self) -> frozenset[str]:
        """GPUs that use the host's RAM."""
        return frozenset(name for name, gpu in self.gpus.items() if gpu.memory == "shared")

    def whose(self, host: str, front: str) -> str:
        """The machine named by an entry's `host`: one of several, else the front's; "" if there is only one."""
        return next((name for name in (host, front) if name in self.hosts), next(iter(self.hosts), ""))

    def machine(self, host: str) -> HardwareConfig:
        """The machine `host`, with its own fields; a single machine is returned as it is. KeyError: no such host."""
        if not self.hosts:
            return self
        own = msgspec.structs.asdict(self.hosts[host])
        of_machines = own.keys() & set(HardwareConfig.__struct_fields__)
        return msgspec.structs.replace(self, hosts={}, **{n: own[n] for n in of_machines if own[n] is not None})


class ArchitectureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Public hyper-parameters of a model, by llama.cpp's names; enough to size it without its file.

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
    """Next-token-prediction layers at the end (MTP); counted in n_layer, loaded for draft-mtp only."""
    n_embd_latent: int = 0
    """Width of the experts' input when it is not n_embd (nemotron_h_moe `moe_latent_size`)."""
    n_expert_used_min: int = 0
    """Fewest experts with coherent output, as found by people who ran it; 0 = unknown."""
    # sliding window
    n_swa: int = 0
    swa_pattern: int | tuple[bool, ...] = 0
    """p: layer il slides iff il % p < p-1; or one flag per layer."""
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
    """Width of the key that the indexer keeps per token, in layers with an indexer of their own."""
    indexer_top_k: int = 0
    indexer_types: tuple[bool, ...] = ()
    """Per layer: whether it has an indexer of its own, instead of sharing another layer's choice. Empty: all have."""
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
    """Layers that get image features beside the embeddings (qwen3vl): every token's row is longer by as many."""
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
    """Worst-case compute buffer of the image encoder, if it was measured."""
    repo: str | None = None
    """ORG/REPO on Hugging Face that has a file of this name: `launch pull` brings it to `path`."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: what it is, the source of its hyper-parameters, and its files per quantization."""

    title: str
    source: str
    """Where the hyper-parameters come from (a public config.json, a model card)."""
    architecture: ArchitectureConfig
    files: dict[str, ModelFileConfig]
    projector: ProjectorConfig | None = None
    domains: tuple[str, ...] = ()
    """Domains that it is good at, for routing (`coding_architecture`, `reasoning`)."""
    notes: tuple[str, ...] = ()


class QuantizationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A quantization mix: the GGML type of each kind of tensor.

    `mix` names llama.cpp's file type whose per-tensor rules apply (`Q4_K_M`); `default_type` is the type of ordinary
    2-D weights in it. `block` and `block_bytes` are that type's exact GGML block sizes.
    """

    mix: str
    default_type: str
    block: Positive
    block_bytes: Positive
    description: str = ""
