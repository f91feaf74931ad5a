"""The groups `runtime` and `deploy`. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from launcher.ir.config.values import ByteSize, Limit, NotNegative, Port, Positive, Seconds


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
    nodes: dict[str, str] = {}
    """By host of `hardware.hosts`: what its node's label `kubernetes.io/hostname` says (`ip-10-0-0-1.ec2.internal`).
    Absent: the host's name."""


class SlurmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What jobs for Slurm need to know of the cluster."""

    shared_dir: str = "/shared/launch"
    """A directory on a file system that fronts and nodes share, with POSIX locks over all of them; each deployment has
    one of its own below it."""
    listen: str = "0.0.0.0"  # noqa: S104 # other nodes reach it
    """The address that servers listen on, on whatever node they land."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    """How long a job may run, as `--time` has it; absent: as long as the partition says. One that is over is submitted
    again."""
    constraints: dict[str, str] = {}
    """By host of `hardware.hosts`: the nodes that are such, as `--constraint` has it (`bigmem&avx512`). Absent: the
    node of that name."""
    gres: dict[str, str] = {}
    """Backend → what the cluster calls such a card (`gpu:a100`), where it is not `gpu`."""
    options: tuple[str, ...] = ()
    """More options of sbatch for every job (`--reservation=models`)."""


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
    slurm: SlurmConfig | None = None
    """Jobs for Slurm, below `slurm/`."""
