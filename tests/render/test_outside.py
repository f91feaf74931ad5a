"""Upstreams and services with models: targets of the routing table, keys and the network of the runtime's unit."""

from __future__ import annotations

from typing import Any

from launcher.ir.config import GpuConfig, PoolConfig, RoutingConfig, ServiceConfig, TierConfig, UpstreamConfig
from launcher.ir.fleet import FaceUnit, OutsideUnit
from launcher.ir.plan import ServicePlan
from launcher.manifest import decode_fleet, decode_routes
from launcher.render.fleet import Rendered, render_fleet
from tests.render.plan_factory import fleet_plan, server_plan
from tests.render.test_fleet import ENGINES

CLOUD = UpstreamConfig(
    url="https://api.example.com/v1",
    models={"big": "vendor/big", "org/small:1": "vendor/small"},
    aliases=("smart",),
    key_file="/etc/launch/cloud.key",
    slots=3,
    request_set={"store": False},
)
WHISPER = ServiceConfig(
    command=("whisper-server",),
    tier="warm",
    exclusive="card",
    models={"whisper": "large-v3"},
    ram_bytes=5,
    vram_bytes={"cuda0": 7},
)
TIERS = {"hot": TierConfig(start="boot"), "warm": TierConfig(start="demand", idle_timeout_s=60)}


def rendered(templates: dict[str, str], **changes: Any) -> Rendered:
    """A fleet of one server with both."""
    service = ServicePlan(name="whisper", port=9001, config=WHISPER, starts="demand")
    fields = {"upstreams": {"cloud": CLOUD}, "tiers": TIERS, **changes}
    gpus = {"cuda0": GpuConfig(backend="cuda", vram_bytes=1 << 30)}
    plan = fleet_plan(server_plan("own"), gpus=gpus, services=(service,), **fields)
    return render_fleet(plan, ENGINES, templates, "0")


def test_targets(templates: dict[str, str]) -> None:
    """Every model is a face with the name that it has there; rules name them as they name servers."""
    routing = RoutingConfig(
        default="smart", fallback={"own": ("big",), "big": ("own",)}, pools={"ears": PoolConfig(servers=("whisper",))}
    )
    table = rendered(templates, routing=routing).routes
    cloud, whisper = table.targets["cloud"], table.targets["whisper"]
    assert (cloud.host, cloud.port, cloud.slots, cloud.api_key_file) == ("api.example.com", 443, 3, CLOUD.key_file)
    assert cloud.outside == OutsideUnit(url=CLOUD.url, health_path="/v1/models")
    assert cloud.request_set == {"model": "vendor/big", "store": False}
    assert cloud.faces["org/small:1"] == FaceUnit(request_set={"model": "vendor/small"})
    assert (whisper.port, whisper.start, whisper.exclusive) == (9001, "demand", "card")
    assert (whisper.faces, whisper.request_set) == ({}, {"model": "large-v3"})
    assert whisper.outside == OutsideUnit(url="http://127.0.0.1:9001/v1", health_path="/health", supervised=True)
    assert {n: table.names[n] for n in ("smart", "org/small:1", "whisper")} == {
        "smart": ("cloud",),
        "org/small:1": ("cloud",),
        "whisper": ("whisper",),
    }
    assert (table.default, table.pools[0].servers) == ("cloud", ("whisper",))
    assert table.fallback == {"own": ("cloud",), "big": ("own",)}


def test_the_runtime_takes_turns_with_a_service(templates: dict[str, str]) -> None:
    """Its group, its memory and how long it may idle are in the manifest."""
    files = {file.path: file.text for file in rendered(templates).deployment.files}
    unit = decode_fleet(files["fleet.json"].encode()).services[0]
    assert (unit.exclusive, unit.idle_timeout_s, unit.slots) == ("card", 60, 4)
    assert {need.device: need.peak_bytes for need in unit.memory} == {"ram": 5, "cuda0": 7}
    assert decode_routes(files["routes.json"].encode()).targets["cloud"].outside is not None


def test_the_units_key_and_network(templates: dict[str, str]) -> None:
    """Systemd hands the key over; the runtime may leave this machine only where something it asks is elsewhere."""

    def runtime(**changes: Any) -> str:
        files = {f.path: f.text for f in rendered(templates, **changes).deployment.files}
        return next(text for path, text in files.items() if "serve --no-color" in text and path.startswith("systemd/"))

    assert "LoadCredential=key-cloud:/etc/launch/cloud.key" in runtime()
    assert "IPAddressDeny" not in runtime()
    assert "IPAddressDeny=any" in runtime(upstreams={})
    own = {f.path: f.text for f in rendered(templates).deployment.files}["systemd/launch-whisper.service"]
    assert "DeviceAllow=char-nvidia rw" in own
