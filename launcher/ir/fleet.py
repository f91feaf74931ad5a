"""The input of the runtime: fleet manifest and routing table. Pure.

The runtime imports no other stage's types but the orchestration as it is configured; `DeviceMemory`'s plain figures are
copied here as maps of bytes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from launcher.ir.config import OrchestrationConfig
from launcher.ir.measured import Proved

FLEET_SCHEMA = "launch.fleet/v1"
ROUTES_SCHEMA = "launch.routes/v1"


class DeviceNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that a process takes on a device, in bytes (see `launcher.ir.plan.DeviceMemory`)."""

    device: str
    committed_bytes: int
    peak_bytes: int
    file_bytes: int
    locked_bytes: int = 0
    parts: dict[str, int] = {}
    """Its non-zero parts (`model`, `kv`, `compute`, …) in bytes, for people."""


class RungUnit(msgspec.Struct, frozen=True, kw_only=True):
    """A reduced form of a server, started after out-of-memory. `label` says what it sets.

    `memory` is its price, as for a server.
    """

    label: str
    argv: tuple[str, ...]
    argv_digest: str
    env: dict[str, str]
    model: str
    model_path: str
    files: tuple[str, ...]
    slots: int
    n_ctx_per_slot: int
    memory: tuple[DeviceNeed, ...]


class ServerUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One llama-server process as the supervisor runs it. `argv[0]` is the binary."""

    name: str
    roles: tuple[str, ...]
    aliases: tuple[str, ...]
    argv: tuple[str, ...]
    env: dict[str, str]
    host: str
    port: int
    model: str
    """Display name: the model entry and quantization."""
    model_path: str
    files: tuple[str, ...]
    """Every file that must exist before a start: model parts, draft, projector."""
    slots: int
    n_ctx_per_slot: int
    probe: Literal["completion", "embedding", "rerank"]
    """How readiness is proven after /health and /props."""
    tier: str
    start: Literal["boot", "demand", "never"]
    idle_timeout_s: float
    expansion_threshold: int
    exclusive: str | None
    default: bool
    after: tuple[str, ...]
    start_timeout_s: float
    stall_timeout_s: float
    request_timeout_s: float
    stop_grace_s: float
    fatal: bool
    request_defaults: dict[str, Any]
    memory: tuple[DeviceNeed, ...]
    argv_digest: str
    rungs: tuple[RungUnit, ...] = ()
    """The reduced forms to start after out-of-memory, in order."""
    slot_save_path: str | None = None
    """Directory where its slots are saved before a swap stops it, and restored from (`--slot-save-path`)."""
    min_stay_s: float | msgspec.UnsetType = msgspec.UNSET
    """How long it stays up while it gets requests, when another of its exclusive group gets one. Unset: as long as it
    took to load."""
    cooldown_s: float = 0
    """Pause before it is started with the fleet, after those that it waits for."""
    load_s: float | None = None
    """Expected seconds for reading its files; None: the disk's speed is unknown."""
    oom_score_adjust: int = 0
    """From its tier: how readily the kernel kills it when memory runs out, -1000 to 1000."""
    proved: Proved | None = None
    """Result of its own binary's dry run before it was started, for people; None: there was none."""
    peers: tuple[str, ...] = ()
    """`host:port` of every RPC server that holds a part of its model: all must answer before it is started."""
    kind: ClassVar[Literal["server"]] = "server"
    protocol: ClassVar[Literal["http"]] = "http"
    health_path: ClassVar[str] = "/health"
    container: ClassVar[None] = None
    builtin: ClassVar[None] = None


class ServiceUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process beside the llama-servers; `argv` is empty for the builtin front."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    host: str
    port: int
    health_path: str
    start: Literal["boot", "demand", "never"]
    start_timeout_s: float
    fatal: bool
    ram_bytes: int
    builtin: str | None
    container: str | None
    description: str = ""
    model: str = ""
    exclusive: str | None = None
    idle_timeout_s: float = 0
    slots: int = 0
    vram_bytes: dict[str, int] = {}
    protocol: Literal["http", "rpc"] = "http"
    """rpc: it is ready and well while it listens; it serves one client at a time."""
    kind: ClassVar[Literal["service"]] = "service"
    # what only servers have, as it is for a process without it
    argv_digest: ClassVar[str] = ""
    probe: ClassVar[Literal["health"]] = "health"
    """A 2xx answer is enough."""
    stall_timeout_s: ClassVar[float] = 0
    stop_grace_s: ClassVar[float] = 10
    files: ClassVar[tuple[str, ...]] = ()
    model_path: ClassVar[str] = ""
    slot_save_path: ClassVar[None] = None
    roles: ClassVar[tuple[str, ...]] = ()
    tier: ClassVar[str] = ""
    min_stay_s: ClassVar[float] = 0.0
    default: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()
    rungs: ClassVar[tuple[RungUnit, ...]] = ()
    oom_score_adjust: ClassVar[int] = 0
    cooldown_s: ClassVar[float] = 0
    load_s: ClassVar[None] = None
    peers: ClassVar[tuple[str, ...]] = ()

    @property
    def memory(self) -> tuple[DeviceNeed, ...]:
        """Its share of RAM and of GPUs."""
        sizes = {"ram": self.ram_bytes, **self.vram_bytes}
        return tuple(DeviceNeed(device=d, committed_bytes=n, peak_bytes=n, file_bytes=0) for d, n in sizes.items())


class HookUnit(msgspec.Struct, frozen=True, kw_only=True):
    """A step after ready. For http: `server` and `path`, body as JSON."""

    name: str
    server: str | None
    path: str | None
    body: dict[str, Any]
    command: tuple[str, ...]
    python: str | None
    timeout_s: float
    on_failure: Literal["fail", "warn"]


class NodeBudget(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node: its memory, the planned use after start, and in the worst set that the tiers allow."""

    id: int
    capacity_bytes: int
    planned_bytes: int
    peak_bytes: int
    servers: dict[str, int] = {}
    """`planned_bytes` per server; the rest is the services'."""


class DeviceBudget(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a device the fleet may use."""

    name: str
    kind: Literal["ram", "gpu"]
    capacity_bytes: int
    budget_bytes: int
    worst_bytes: int = 0
    """Use of the largest set that the tiers allow to run at once; the rest of the budget is free for warm files."""
    nodes: tuple[NodeBudget, ...] = ()
    """NUMA nodes of RAM, if there are several."""


class FrontUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The front's listening socket and limits."""

    host: str
    port: int
    api_key_file: str | None
    max_body_bytes: int
    max_header_bytes: int
    header_timeout_s: float
    idle_timeout_s: float
    connect_timeout_s: float
    queue_size: int
    queue_timeout_s: float
    allowed_hosts: tuple[str, ...]
    access_log: bool
    list_aliases: bool = False
    allowed_origins: tuple[str, ...] = ()
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    journal_file: str | None = None
    listen: tuple[str, ...] = ()
    max_connections: int = 4096
    max_connections_per_client: int = 1024
    max_held_bytes: int = 256 * 1024**2
    ping_after_s: float = 15
    apis: tuple[Literal["llama_router", "llama_swap", "ollama"], ...] = ()


class SupervisorUnit(msgspec.Struct, frozen=True, kw_only=True):
    """Supervision settings (see `launcher.ir.config.RuntimeConfig`)."""

    state_dir: str | None
    log_max_bytes: int
    log_files: int
    backoff_s: float
    backoff_max_s: float
    crash_loop_failures: int
    crash_loop_window_s: float
    health_interval_s: float
    health_failures: int
    drain_timeout_s: float
    max_parallel_starts: int


class TargetUnit(msgspec.Struct, frozen=True, kw_only=True):
    """A service level: at most so many seconds, or at least so many tokens per second. `server` empty: the fleet's."""

    name: Literal["swap_seconds", "tokens_per_second", "first_token_seconds"]
    server: str
    limit: float


class ClusterUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Set where the servers are pods of a Kubernetes cluster, and the runtime is one of several fronts."""

    namespace: str
    selector: dict[str, str]
    """Labels of every server's pods."""
    label: str
    """The label whose value names a pod's Deployment."""
    deployments: dict[str, str]
    """Per server: its Deployment, which runs it with one replica and stops it with none."""
    lease: str
    """Name of the Lease whose holder decides; the others forward clients to the holder."""
    account_dir: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    """Directory with the token and the certificate of the API server."""
    lease_s: float = 15
    """Seconds without a renewal after which the lease may be taken over."""


class JobUnit(msgspec.Struct, frozen=True, kw_only=True):
    """A server as a job. `name`: the job's, common to those that take turns. `script`: the input of sbatch."""

    name: str
    script: str


class SlurmUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Set where the servers are jobs of a Slurm cluster, and the runtime is one of several fronts."""

    shared_dir: str
    """The fleet's own directory on a file system that fronts and nodes share: logs, places of jobs, and the lease."""
    jobs: dict[str, JobUnit]
    """Per server."""
    lease_s: float = 15
    """Seconds without a renewal after which the lease may be taken over."""


class FleetManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`fleet.json`: everything that the runtime needs, and nothing left to compute.

    `servers` are in start order; `after` edges say what must be ready first.
    """

    schema: str = FLEET_SCHEMA
    deployment: str
    input_digest: str
    launch_version: str
    hardware: str
    devices: tuple[DeviceBudget, ...]
    servers: tuple[ServerUnit, ...]
    services: tuple[ServiceUnit, ...]
    hooks: tuple[HookUnit, ...]
    supervisor: SupervisorUnit
    targets: tuple[TargetUnit, ...] | msgspec.UnsetType = msgspec.UNSET
    """Service levels watched while the fleet runs."""
    host: str | msgspec.UnsetType = msgspec.UNSET
    """The host of these processes, if there are several."""
    cluster: ClusterUnit | msgspec.UnsetType = msgspec.UNSET
    """Set where a Kubernetes cluster owns the processes."""
    slurm: SlurmUnit | msgspec.UnsetType = msgspec.UNSET
    """Set where Slurm owns the processes."""


class FaceUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One more model name for a server: its request values override the server's own."""

    request_defaults: dict[str, Any] = {}
    request_set: dict[str, Any] = {}
    request_strip: tuple[str, ...] = ()
    description: str = ""


class OutsideUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to send requests to a server with OpenAI's API that is no llama-server of this fleet."""

    url: str
    """Base URL, with `/v1`."""
    health_path: str
    """A path on its host, without a query."""
    key_header: str = "authorization"
    """The header that carries the fleet's key for it."""
    ca_file: str | None = None
    """PEM file with the CA of its certificate; None: the system's."""
    supervised: bool = False
    """It is a service of this fleet, whose state is known."""


class RouteTarget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One upstream server of the routing table."""

    name: str
    host: str
    port: int
    slots: int
    n_ctx_per_slot: int
    model: str
    roles: tuple[str, ...]
    aliases: tuple[str, ...]
    start: Literal["boot", "demand", "never"]
    exclusive: str | None
    request_timeout_s: float
    request_defaults: dict[str, Any]
    embedding: bool
    modalities: tuple[str, ...]
    request_set: dict[str, Any] = {}
    request_strip: tuple[str, ...] = ()
    api_key_file: str | None = None
    """File with the server's own key (`--api-key-file`), which the front presents."""
    rungs: int = 0
    """Number of reduced forms after out-of-memory, and so of retries of a request."""
    on: str = ""
    """The other host that it runs on; "": it runs beside this front."""
    n_ctx_shared: int = 0
    """Tokens that all slots share (unified K/V); 0: each slot has `n_ctx_per_slot` of its own."""
    total_timeout_s: float | None = None
    faces: dict[str, FaceUnit] = {}
    n_ctx_train: int = 0
    n_params: int = 0
    size_bytes: int = 0
    """Bytes of the model's tensors. 0 here and above: unknown."""
    id: str = ""
    """Its model id for clients, one of its aliases; "": its name."""
    outside: OutsideUnit | None = None
    """Set for a server outside the fleet: each of its models is a face."""


class RoutePool(msgspec.Struct, frozen=True, kw_only=True):
    """Servers that share task types, in order of preference."""

    name: str
    servers: tuple[str, ...]
    task_types: tuple[str, ...]
    expansion_threshold: int


class BreakerUnit(msgspec.Struct, frozen=True, kw_only=True):
    """Circuit breaker: opens after `failures` in a row, for `open_s`, doubling to `open_max_s`."""

    failures: int
    open_s: float
    open_max_s: float


class RoutingTable(msgspec.Struct, frozen=True, kw_only=True):
    """`routes.json`: every name a request may use → servers, in order of preference.

    `names` maps server names, roles, aliases and model names to one or more servers (replicas).
    """

    schema: str = ROUTES_SCHEMA
    deployment: str
    front: FrontUnit
    targets: dict[str, RouteTarget]
    names: dict[str, tuple[str, ...]]
    default: str | None
    pools: tuple[RoutePool, ...]
    fallback: dict[str, tuple[str, ...]]
    escalation: dict[str, str]
    max_retries: int
    max_escalations: int
    breaker: BreakerUnit
    timeouts_s: dict[str, float]
    defaults: dict[str, str] = {}
    """Per kind of request (`launcher.route.endpoint.Kind`): the server where no model is named."""
    media: dict[str, str] = {}
    """Per modality: the server for a chat that contains it, where the server asked for accepts none."""
    unknown_model: Literal["refuse", "default"] = "refuse"
    orchestration: OrchestrationConfig | None = None

    def stronger(self, name: str) -> tuple[str, ...]:
        """The servers that `name` escalates to, in turn, `max_escalations` at most."""
        found: list[str] = []
        at, own = name, self.names.get(name, (name,))
        while len(found) < self.max_escalations:
            keys = (at, *(key for key in self.escalation if set(self.names.get(key, ())) & set(own)))
            after = next((self.escalation[key] for key in keys if key in self.escalation), None)
            if after is None or after in found or after in self.names.get(name, (name,)):
                break
            found.append(after)
            at, own = after, (after,)
        return tuple(found)
