"""The whole: one fleet as composed, and where each value was written. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.errors import Location
from launcher.ir.config.hardware import HardwareConfig
from launcher.ir.config.models import ModelConfig, QuantizationConfig
from launcher.ir.config.orchestration import OrchestrationConfig
from launcher.ir.config.routing import RoutingConfig
from launcher.ir.config.runtime import DeployConfig, RuntimeConfig
from launcher.ir.config.servers import EngineConfig, ServerConfig, TierConfig
from launcher.ir.config.services import HookConfig, ServiceConfig, UpstreamConfig
from launcher.ir.config.values import ByteSize, Port


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

    def slowest(self, server: str) -> float | None:
        """Tokens a second that a server should make at least, by itself or as a worker; None: nobody says."""
        return self._wanted(server, "tokens_per_second_min")

    def latest(self, server: str) -> float | None:
        """Seconds within which a server's streamed answers should begin, as `slowest`; None: nobody says."""
        return self._wanted(server, "first_token_max_s")

    def _wanted(self, server: str, field: str) -> float | None:
        """A target of a server: its own, else its orchestration's where it is a worker; 0 is none."""
        own: float | None = getattr(self.servers[server], field)
        cycle = self.orchestration
        if own is None and cycle is not None and server in cycle.workers:
            own = getattr(cycle, field)
        return own or None


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
