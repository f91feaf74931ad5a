"""What runs, or is asked, beside servers, and how: `service`, `upstream`, `hook`, `runtime`, `deploy`. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from launcher.ir.config.resources import ByteSize, Limit, NotNegative, Port, Positive, Seconds, StartLimit


class ContainerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container image to run as a service."""

    image: str
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process beside the llama-servers that counts in ports, RAM and threads.

    Exactly one of `command`, `container` and `builtin` (the fleet's own front). With `models` it speaks OpenAI's API,
    and the front sends it requests as it does servers: a whisper, a vLLM.
    """

    description: str = ""
    model: str = ""
    host: str = "127.0.0.1"
    """The address to listen on, on the front's host; or the name of one of `hardware.hosts` to run there."""
    port: Port | None = None
    command: tuple[str, ...] = ()
    container: ContainerConfig | None = None
    builtin: Literal["front"] | None = None
    health_path: str = "/health"
    protocol: Literal["http", "rpc"] = "http"
    """The protocol that it speaks. rpc: llama.cpp's, without /health; it counts as well while it listens."""
    ram_bytes: ByteSize = 0
    vram_bytes: dict[str, ByteSize] = {}
    """Memory that it takes, keyed by names in `hardware.gpus`. A container gets these cards."""
    threads: NotNegative = 0
    start_timeout_s: StartLimit = 60
    fatal: bool = False
    """Whether the fleet's start fails when this service does."""
    tier: str = "hot"
    exclusive: str | None = None
    """Takes turns with the servers and services of this exclusive group; its tier must start on demand."""
    models: dict[str, str] = {}
    """Model name for requests here → its name at the service, below `/v1`. The first also answers to the service's own
    name."""
    slots: Positive = 4
    """Requests sent to it at once, where it has models."""
    modalities: tuple[Literal["text", "image", "audio"], ...] = ("text", "image", "audio")
    """What a chat may contain; the service itself refuses what it does not accept."""
    request_timeout_s: StartLimit = 600
    """Longest silence in seconds, before its answer and within it; an answer that flows is not cut."""
    env: dict[str, str] = {}


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server with OpenAI's API that somebody else runs: vLLM, a whisper, a llama-server elsewhere, a cloud.

    The front sends it requests as it does servers of the fleet; nothing starts or stops it.
    """

    url: str
    """Base URL as OpenAI clients take it: `https://api.example.com/v1`. Without a path, `/v1` is meant."""
    models: dict[str, str]
    """Model name for requests here → its name at the upstream. The first also answers to the upstream's own name."""
    aliases: tuple[str, ...] = ()
    """Further names for the first model."""
    description: str = ""
    key_file: str | None = None
    """The fleet's key for it, on the first line. Keys of the front's clients are never sent there."""
    key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization"
    """Header for the key: `Authorization: Bearer KEY`, or one of the others with the key alone."""
    ca_file: str | None = None
    """PEM certificates that its own is checked against. Absent: those that the system trusts."""
    health_path: str | None = None
    """A path on its host that answers while it is well. Absent: `/models` below its `url`."""
    slots: Positive = 16
    """Requests sent to it at once; more wait at the front."""
    n_ctx: NotNegative = 0
    """Tokens per request, as clients are told; 0: unknown."""
    modalities: tuple[Literal["text", "image", "audio"], ...] = ("text", "image", "audio")
    """What a chat may contain; the upstream itself refuses what it does not accept."""
    request_timeout_s: StartLimit = 600
    """Longest silence in seconds, before its answer and within it; this and the next four are as for a server."""
    total_timeout_s: StartLimit | None = None
    request_defaults: dict[str, Any] = {}
    request_set: dict[str, Any] = {}
    request_strip: tuple[str, ...] = ()
    ram_bytes: ByteSize = 0
    """RAM that it takes of this machine, if it runs here."""
    vram_bytes: dict[str, ByteSize] = {}
    """GPU memory that it takes of this machine, if it runs here, keyed by names in `hardware.gpus`."""


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


class FrontConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one HTTP port that clients talk to."""

    host: str = "127.0.0.1"
    """The address to listen on, on the first of `hardware.hosts`; or the name of one of them to run there. `::` is both
    families."""
    port: Port = 8000
    listen: tuple[str, ...] = ()
    """Further sockets beside `host`: addresses, at the same port, and absolute paths of unix sockets."""
    api_key_file: str | None = None
    tls_cert_file: str | None = None
    """PEM certificate chain; with `tls_key_file` the front speaks https."""
    tls_key_file: str | None = None
    journal_file: str | None = None
    """One JSON line per request: caller, model, tokens, times; never the text."""
    max_body_bytes: ByteSize = 64 * 1024**2
    max_header_bytes: ByteSize = 64 * 1024
    max_connections: int = 4096
    """Connections of all clients together; fewer where the process may not open so many descriptors. Beyond it an idle
    one is closed."""
    max_connections_per_client: int = 1024
    """Connections per client address; for IPv6 per /64 network."""
    max_held_bytes: ByteSize = 256 * 1024**2
    """Bytes of request bodies in memory, of all clients together; at least twice `max_body_bytes`. From half of it on
    uploads wait for each other, beyond it they are refused."""
    header_timeout_s: Limit = 10
    idle_timeout_s: Limit = 75
    connect_timeout_s: Limit = 5
    queue_size: NotNegative = 256
    queue_timeout_s: Seconds = 60
    allowed_hosts: tuple[str, ...] = ()
    access_log: bool = False
    allowed_origins: tuple[str, ...] = ()
    """Origins of pages that may use the front although they are not served from its hosts: `app://obsidian.md`, `null`,
    or any of one kind of app (`vscode-webview://*`)."""
    list_aliases: bool = False
    """Whether `/v1/models` lists aliases as models of their own, for clients that ask only for what is listed."""
    ping_after_s: Seconds = 15
    """While a stream waits for a slot, a swap or a load, its client gets the header and a comment (`: ping`) after so
    many silent seconds, and again after each further such time; 0 = never."""
    apis: tuple[Literal["llama_router", "llama_swap", "ollama"], ...] = ()
    """Other programs' paths that are answered, too: those of llama.cpp's router (`/models/load`), llama-swap
    (`/running`) and Ollama (`/api/chat`). See docs/http.md."""


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the supervisor."""

    front: FrontConfig = FrontConfig()
    container_engine: Literal["podman", "docker"] = "podman"
    """Runs services that are containers under `launch up`; installed fleets use podman (Quadlet files)."""
    state_dir: str | None = None
    """Absent: `$XDG_STATE_HOME/launch`."""
    server_key_file: str | None = None
    """Keys that every llama-server requires which names no file of its own (`--api-key-file`); the front presents the
    first. `launch up` makes the file if it is missing. Absent: anything that reaches a server's port may use it."""
    log_max_bytes: ByteSize = 16 * 1024**2
    log_files: Positive = 3
    parallel_start_below_bytes: ByteSize = 8 * 1024**3
    """Models smaller than this start together, larger ones one after another."""
    max_parallel_starts: Positive = 4
    cooldown_s: Seconds = 0
    """Pause between two larger models at the start of the fleet, for mappings to settle."""
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
    """What rendering for Kubernetes needs to know of the cluster."""

    namespace: str = "launch"
    images: dict[str, ImageConfig] = {}
    """Per engine. The image's build must be the one that the engine's dialect describes."""
    front_image: str = "launch"
    """An image with the `launch` program (packaging/Containerfile)."""
    front_replicas: int = 2
    models_claim: str | None = None
    """PersistentVolumeClaim with the models, read-only. Absent: the models' directories on each node."""
    models_mount: str = "/models"
    """Mount path of the claim: model paths lie below it."""
    state_claim: str | None = None
    """PersistentVolumeClaim for the project memory. Absent: it is lost with the front's pod."""
    keys_secret: str = "launch-keys"  # noqa: S105 # its name
    """Secret with the key files that the config names, one entry per file name."""
    gpu_resources: dict[str, str] = {}
    """Backend → resource name of a card in the cluster's device plugin, if it is not the vendor's usual one."""
    nodes: dict[str, str] = {}
    """Per host of `hardware.hosts`: its node's label `kubernetes.io/hostname` (`ip-10-0-0-1.ec2.internal`). Absent: the
    host's name."""


class SlurmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What rendering for Slurm needs to know of the cluster."""

    shared_dir: str = "/shared/launch"
    """A directory on a file system that fronts and nodes share, with POSIX locks across all of them; each deployment
    has a directory of its own below it."""
    listen: str = "0.0.0.0"  # noqa: S104 # other nodes reach it
    """The address that servers listen on, on whatever node they land."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    """Time limit of a job, as for `--time`; absent: the partition's. A job that reached it is submitted again."""
    constraints: dict[str, str] = {}
    """Per host of `hardware.hosts`: its nodes, as for `--constraint` (`bigmem&avx512`). Absent: the node of that
    name."""
    gres: dict[str, str] = {}
    """Backend → the cluster's name of such a card (`gpu:a100`), if it is not `gpu`."""
    options: tuple[str, ...] = ()
    """Further sbatch options for every job (`--reservation=models`)."""


ExportName = Literal["llama_swap", "router", "prometheus", "alerts", "grafana"]
"""Other programs that a deployment can have a file for (`launcher/render/exports.py`)."""


class DeployConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the files that a deployment is installed from."""

    unit_prefix: str = "launch"
    user: str | None = None
    """System user of the units. Absent: DynamicUser."""
    output_dir: str = "generated"
    python: str = "/usr/bin/env"
    hardening: bool = True
    scope: Literal["system", "user"] = "system"
    """Units of the machine, or of one user without root (`launch install --user`): no sandbox that needs root."""
    launch: str = "/usr/local/bin/launch"
    """The `launch` program that the runtime's unit runs, on the machine where it is installed."""
    units: bool = True
    """Whether systemd units are written."""
    targets: tuple[ExportName, ...] = ()
    """Further formats written from the plan, below `exports/`."""
    kubernetes: KubernetesConfig | None = None
    """Objects for Kubernetes, below `kubernetes/`."""
    slurm: SlurmConfig | None = None
    """Jobs for Slurm, below `slurm/`."""
