"""What runs or is asked beside the servers: the groups `service`, `upstream` and `hook`. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from launcher.ir.config.values import ByteSize, Limit, NotNegative, Port, Positive, StartLimit


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
    protocol: Literal["http", "rpc"] = "http"
    """What it speaks. rpc: llama.cpp's, of which nobody asks /health; it is well while it listens."""
    ram_bytes: ByteSize = 0
    vram_bytes: dict[str, ByteSize] = {}
    """What it takes, by name in `hardware.gpus`. A container gets these cards."""
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
