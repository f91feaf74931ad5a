"""What a fleet declares and pods do not have is said; containers on demand, upstreams and their like work there."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from launcher.compiler import compile_fleet, render
from launcher.ir.config import (
    ContainerConfig,
    FrontConfig,
    HookConfig,
    OrchestrationConfig,
    RuntimeConfig,
    ServiceConfig,
    UpstreamConfig,
    WarmPoolConfig,
)
from launcher.ir.fleet import ClusterUnit
from launcher.ir.plan import RungPlan, ServicePlan
from launcher.manifest import decode_fleet, decode_routes
from tests.render.test_kubernetes import GIB, VERSION, container, objects_of, planned, rendered, server_plan


def box(name: str, *, starts: Any = "demand", ports: tuple[str, ...] = ("9001:80",), **config: Any) -> ServicePlan:
    """A service that is a container."""
    image = ContainerConfig(image=f"{name}:1", ports=ports, volumes=config.pop("volumes", ()), args=("serve", "$X"))
    return ServicePlan(name=name, starts=starts, port=9001, config=ServiceConfig(container=image, **config))


def _writes(path: str) -> dict[str, Any]:
    return {"servers": ({"extra_args": ("--log-file", path)},)}


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "hooks": ({"hooks": {"warm": HookConfig(http="a/embedding")}}, "hook warm: what is done once"),
    "rungs": ({"ladders": {"a": (RungPlan(label="less", server=server_plan("a")),)}}, "a: rungs after out-of-memory"),
    "slots": ({"servers": ({"slot_save_path": "/var/slots"},)}, "a: slots saved over a swap"),
    "order": ({"servers": ({"after": ("b",)},)}, "a: an order of starts"),
    "fatal": ({"servers": ({"fatal": True},)}, "a: that the fleet does not start without it"),
    "its files": (_writes("/var/log/a.log"), "a: /var/log/a.log, which it may not write"),
    "pauses": ({"runtime": RuntimeConfig(cooldown_s=5)}, "the fleet: pauses between starts"),
    "addresses": ({"runtime": RuntimeConfig(front=FrontConfig(listen=("::1",)))}, "the front: further addresses (::1)"),
    "journal": ({"runtime": RuntimeConfig(front=FrontConfig(journal_file="/var/log/j"))}, "the front: /var/log/j"),
    "state": ({"runtime": RuntimeConfig(state_dir="/srv/state")}, "the front: runtime.state_dir"),
    "warm pool": ({"orchestration": OrchestrationConfig(router="a", warm_pool=WarmPoolConfig())}, "(warm_pool)"),
    "fatal service": ({"services": (box("ears", fatal=True),)}, "ears: that the fleet does not start without it"),
    "ports": ({"services": (box("ears", ports=("1:1", "2:2")),)}, "ears: further ports (2:2)"),
    "volume": ({"services": (box("ears", volumes=("data:/data",)),)}, "ears: volume data:/data"),
}
SAID: dict[str, dict[str, Any]] = {
    "a hook that is off": {"hooks": {"warm": HookConfig(http="a/embedding", enabled=False)}},
    "another's rungs": {"ladders": {"a": ()}},
    "files of its own": _writes("/tmp/a.log"),
    "a journal of its own": {"runtime": RuntimeConfig(front=FrontConfig(journal_file="/var/lib/launch/journal"))},
    "one port": {"services": (box("ears", volumes=("/srv/data:/data:ro",)),)},
}
"""What comes near."""


def found_of(changes: dict[str, Any]) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """Objects of a fleet with `changes`, and what is left out."""
    changes = dict(changes)
    servers = [server_plan("a", **fields) for fields in changes.pop("servers", ({},))]
    found, findings = rendered(planned(*servers, **changes))
    assert {finding.code for finding in findings} <= {"render/left-out"}
    return found, [finding.message for finding in findings]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_pods_do_not_have_is_said(name: str) -> None:
    """A warning each, with whom it is about."""
    changes, words = LEFT_OUT[name]
    found, said = found_of(changes)
    assert any(words in message for message in said), said
    for one in found.values():
        if one["kind"] != "Kustomization":
            kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.parametrize("name", SAID)
def test_what_pods_have_is_not(name: str) -> None:
    """Nothing is said of what comes near."""
    assert found_of(SAID[name])[1] == []


def test_what_is_left_out_is_nowhere_in_the_objects() -> None:
    """No flag names a directory that no pod has, and the front writes nothing where it may not."""
    runtime = RuntimeConfig(state_dir="/srv/state", front=FrontConfig(journal_file="/var/log/j", listen=("::1",)))
    servers = ({"slot_save_path": "/var/slots"},)
    found, _ = found_of({"servers": servers, "runtime": runtime})
    assert "--slot-save-path" not in container(found, "launch-a")["args"]
    data = found["ConfigMap", "launch-front"]["data"]
    front = decode_routes(data["routes.json"].encode()).front
    assert (front.journal_file, front.listen) == (None, ())
    assert decode_fleet(data["fleet.json"].encode()).supervisor.state_dir is None


def test_a_container_on_demand_is_scaled_as_servers_are() -> None:
    """It has no pod before the front, which may scale it, asks it at its Service, and counts what its pod may take."""
    ears = box("ears", models={"whisper": "large"}, ram_bytes=GIB, request_timeout_s=7)
    mouth = box("mouth", starts="boot", models={"voice": "v1"})
    plan = planned(server_plan("a"), services=(ears, mouth))
    found, findings = rendered(plan)
    assert findings == []
    replicas = {name: o["spec"]["replicas"] for (kind, name), o in found.items() if kind == "Deployment"}
    assert replicas == {"launch-a": 1, "launch-ears": 0, "launch-mouth": 1, "launch-front": 2}
    data = found["ConfigMap", "launch-front"]["data"]
    fleet, table = decode_fleet(data["fleet.json"].encode()), decode_routes(data["routes.json"].encode())
    assert isinstance(fleet.cluster, ClusterUnit)
    assert fleet.cluster.deployments == {"ears": "launch-ears"}
    (unit,) = fleet.services
    assert (unit.name, unit.host, unit.port, unit.container, unit.argv) == (
        *("ears", "launch-ears", 9001, None),
        ("ears:1", "serve", "$X"),
    )
    limit = container(found, "launch-ears")["resources"]["limits"]["memory"]
    assert [(need.device, need.peak_bytes) for need in unit.memory] == [("ram", limit)]
    labels = found["Deployment", "launch-ears"]["spec"]["template"]["metadata"]["labels"]
    assert fleet.cluster.selector.items() <= labels.items()
    assert labels[fleet.cluster.label] == "launch-ears"
    (scales,) = [r for r in found["Role", "launch-front"]["rules"] if r["resources"] == ["deployments/scale"]]
    assert scales["resourceNames"] == ["launch-ears"]
    asked = {name: (t.host, t.port, t.on, t.outside and t.outside.url) for name, t in table.targets.items()}
    assert asked == {
        "a": ("launch-a", 8080, "kubernetes", None),
        "ears": ("launch-ears", 9001, "", "http://launch-ears:9001/v1"),
        "mouth": ("launch-mouth", 9001, "kubernetes", "http://launch-mouth:9001/v1"),
    }
    assert {"whisper", "voice"} <= set(table.names)
    assert found["Service", "launch-ears"]["spec"]["ports"][0]["port"] == 9001


def test_upstreams_are_asked_from_the_cluster_too() -> None:
    """At their own addresses, which the network policy lets the front reach, with keys and certificates as entries."""
    far = UpstreamConfig(url="https://api.example.com/v1", models={"gpt": "g"}, key_file="/etc/k", ca_file="/etc/ca")
    found, findings = rendered(planned(server_plan("a"), upstreams={"far": far}))
    assert findings == []
    table = decode_routes(found["ConfigMap", "launch-front"]["data"]["routes.json"].encode())
    target = table.targets["far"]
    assert (target.host, target.port, target.on) == ("api.example.com", 443, "")
    assert {"/etc/k", "/etc/ca"} <= {m["mountPath"] for m in container(found, "launch-front")["volumeMounts"]}
    egress = found["NetworkPolicy", "launch-clients"]["spec"]["egress"]
    assert {"ports": [{"protocol": "TCP", "port": 443}]} in egress


def test_what_no_image_has_answers_to_nothing() -> None:
    """A command of the machine's own, that has models: none of its names is in the table, and it is said."""
    ears = ServicePlan(name="ears", port=9001, config=ServiceConfig(command=("ears",), models={"whisper": "large"}))
    found, findings = rendered(planned(server_plan("a"), services=(ears,)))
    assert ["of ears: a command" in finding.message for finding in findings] == [True]
    table = decode_routes(found["ConfigMap", "launch-front"]["data"]["routes.json"].encode())
    assert set(table.targets) == {"a"}
    assert not {"ears", "whisper"} & set(table.names)


def test_peers_are_pods_too() -> None:
    """One Deployment a peer, that only servers reach, with its share; the server asks it at its Service."""
    compiled = compile_fleet(
        [
            *("hardware=two_hosts", "profile=pair", "engine=embedded", "deploy=kubernetes"),
            *("+deploy.kubernetes.images.default.image=llama", "servers.assistant_alpha.rpc=[beta]"),
        ]
    )
    found = {
        (o["kind"], o["metadata"]["name"]): o
        for o in objects_of([f.text for f in render(compiled).deployment.files if f.path.startswith("kubernetes/")])
    }
    for one in found.values():
        if one["kind"] != "Kustomization":
            kubernetes_validate.validate(one, VERSION, strict=True)
    name = "launch-assistant-alpha-rpc0"
    head, peer = container(found, "launch-assistant-alpha"), container(found, name)
    assert head["args"][head["args"].index("--rpc") + 1] == f"{name}:50052"
    assert peer["command"] == ["/app/ggml-rpc-server"]
    assert peer["args"][:4] == ["--host", "0.0.0.0", "--port", "50052"]
    assert not [key for key in peer if key.endswith("Probe")]
    pod = found["Deployment", name]["spec"]["template"]
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "beta"}
    assert found["Service", name]["spec"]["ports"] == [{"name": "rpc", "port": 50052, "targetPort": "rpc"}]
    lender = next(s for s in compiled.plan.services if s.config.protocol == "rpc")
    assert peer["resources"]["limits"]["memory"] > lender.config.ram_bytes
    policy = found["NetworkPolicy", "launch-peers"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (source,) = policy["ingress"][0]["from"]
    labels = found["Deployment", "launch-assistant-alpha"]["spec"]["template"]["metadata"]["labels"]
    assert source["podSelector"]["matchLabels"].items() <= labels.items()
    assert "peer-assistant_alpha-rpc0.yaml" in found["Kustomization", "launch-fleet"]["resources"]
