"""What the front asks beside llama-servers: upstreams, and services that have models, as targets of its table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from launcher.ir.config import UpstreamConfig
from launcher.ir.fleet import FaceUnit, OutsideUnit, RouteTarget
from launcher.ir.plan import FleetPlan, ServicePlan

_V1 = "/v1"
_PORTS = {"http": 80, "https": 443}


def outside_targets(plan: FleetPlan) -> tuple[RouteTarget, ...]:
    """Upstreams, then services; those of a tier that is never started are nobody's."""
    services = (s for s in plan.services if s.config.models and s.starts != "never")
    upstreams = plan.config.upstreams.items()
    return (*(_upstream(name, config) for name, config in upstreams), *(_service(service) for service in services))


def _upstream(name: str, config: UpstreamConfig) -> RouteTarget:
    """What somebody else runs: from here it is up, or does not answer."""
    parts = urlsplit(config.url)
    base = parts.path.rstrip("/") or _V1
    return _target(
        *(name, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0), config.models),
        model=config.description,
        aliases=config.aliases,
        slots=config.slots,
        n_ctx_per_slot=config.n_ctx,
        modalities=config.modalities,
        request_timeout_s=config.request_timeout_s,
        total_timeout_s=config.total_timeout_s,
        request_defaults=config.request_defaults,
        request_set=config.request_set,
        request_strip=config.request_strip,
        api_key_file=config.key_file,
        outside=OutsideUnit(
            url=config.url,
            health_path=config.health_path or f"{base}/models",
            key_header=config.key_header,
            ca_file=config.ca_file,
        ),
    )


def _service(service: ServicePlan) -> RouteTarget:
    """A process of this fleet: started, stopped and looked after as servers are."""
    config = service.config
    shown = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{shown}:{service.port}{_V1}"
    return _target(
        *(service.name, config.host, service.port, config.models),
        model=config.model or config.description,
        aliases=(),
        slots=config.slots,
        n_ctx_per_slot=0,
        modalities=config.modalities,
        request_timeout_s=config.request_timeout_s,
        request_defaults={},
        start=service.starts,
        exclusive=config.exclusive,
        outside=OutsideUnit(url=url, health_path=config.health_path, supervised=True),
    )


def _target(name: str, host: str, port: int, models: Mapping[str, str], **fields: Any) -> RouteTarget:
    """A target whose models are faces; the one of its name, else the first, answers to every other name."""
    own = {"model": models.get(name, next(iter(models.values()), name))}
    faces = {asked: FaceUnit(request_set={"model": theirs}) for asked, theirs in models.items() if asked != name}
    fields = {"roles": (), "start": "boot", "exclusive": None, "embedding": False} | fields
    fields["request_set"] = own | fields.get("request_set", {})
    return RouteTarget(name=name, host=host, port=port, faces=faces, **fields)
