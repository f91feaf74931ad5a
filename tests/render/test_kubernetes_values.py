"""Values that the API server would refuse are found, each where it is written, before anything is applied."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from launcher.ir.config import (
    ContainerConfig,
    CpuConfig,
    FrontConfig,
    GpuConfig,
    HardwareConfig,
    HostConfig,
    ImageConfig,
    KubernetesConfig,
    RuntimeConfig,
    ServiceConfig,
    UpstreamConfig,
)
from launcher.ir.plan import FleetPlan, ServicePlan
from tests.render.test_kubernetes import IMAGES, container, planned, rendered, server_plan


def machines(*names: str) -> HardwareConfig:
    """Hosts of these names."""
    cpu = CpuConfig(physical_cores=96, logical_cores=192)
    hosts = {name: HostConfig(address=f"10.0.0.{i}") for i, name in enumerate(names, 1)}
    return HardwareConfig(name="several", cpu=cpu, ram_bytes=1 << 40, hosts=hosts)


def errors(plan: FleetPlan) -> dict[str, str]:
    """Errors, by code and key."""
    return {f"{f.code} {f.key}": f.message for f in rendered(plan)[1] if f.severity == "error"}


@pytest.mark.parametrize(
    "written",
    [
        {"namespace": "Launch NS"},
        {"namespace": ""},
        {"namespace": "a" * 64},
        {"keys_secret": "a_b"},
        {"models_claim": "-a"},
        {"state_claim": "A"},
        {"models_mount": "models"},
        {"models_mount": "/a:b"},
        {"front_image": ""},
        {"front_replicas": 0},
        {"front_replicas": 10**9},
        {"gpu_resources": {"cuda": "gpu"}},
        {"nodes": {"alpha": "a b"}},
        {"images": {"default": ImageConfig(image="")}},
        {"images": {"default": ImageConfig(image="a\nb")}},
        {"images": {"default": ImageConfig(image="a", program="llama-server")}},
    ],
    ids=str,
)
def test_what_no_object_may_have(written: dict[str, Any]) -> None:
    """The key of the value is named."""
    found = errors(planned(server_plan("a"), cluster=KubernetesConfig(**{"images": IMAGES, **written})))
    assert [k for k in found if k.startswith(f"render/kubernetes-value deploy.kubernetes.{next(iter(written))}")]


def test_what_objects_may_have() -> None:
    """Registries with ports and digests, labels of clouds; the same key file for several is one entry."""
    cluster = KubernetesConfig(
        images={"default": ImageConfig(image="reg.example:5000/a/b@sha256:0123")},
        nodes={"al_pha": "ip-10-0-0-1.ec2.internal"},
        gpu_resources={"cuda": "nvidia.com/mig-1g.10gb"},
        models_claim="models.v2",
        models_mount="/models",
    )
    server = server_plan("a", on="al_pha", model_path="/models/x.gguf", extra_args=("--api-key-file", "/etc/keys"))
    runtime = RuntimeConfig(server_key_file="/etc/keys")
    plan = planned(server, cluster=cluster, runtime=runtime, hardware=machines("al_pha"))
    found, findings = rendered(plan)
    assert [f for f in findings if f.severity == "error"] == []
    pod = found["Deployment", "launch-a"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"kubernetes.io/hostname": "ip-10-0-0-1.ec2.internal"}


def test_a_host_that_is_no_node() -> None:
    """A host whose name no label can be: its pods would wait for ever. One that nothing runs on is nobody's matter."""
    used, idle = "Big_Box", "Other_Box"
    found = errors(planned(server_plan("a", on=used), hardware=machines(used, idle)))
    assert list(found) == [f"render/kubernetes-value hardware.hosts.{used}"]


def test_two_keys_of_one_name() -> None:
    """One entry of the secret would be both files: clients' keys would open the servers, or a cloud get theirs."""
    server = server_plan("a", extra_args=("--api-key-file", "/etc/servers/keys"))
    runtime = RuntimeConfig(front=FrontConfig(api_key_file="/etc/launch/keys"), server_key_file="/etc/servers/keys")
    found = errors(planned(server, runtime=runtime))
    assert list(found) == ["render/kubernetes-key runtime.server_key_file"]
    assert "/etc/launch/keys" in found["render/kubernetes-key runtime.server_key_file"]
    own = errors(planned(server, runtime=RuntimeConfig(front=FrontConfig(api_key_file="/etc/launch/keys"))))
    assert list(own) == ["render/kubernetes-key servers.a.extra_args"]
    cloud = {"cloud": UpstreamConfig(url="https://a.example/v1", models={"m": "m"}, key_file="/x/k", ca_file="/y/k")}
    assert list(errors(planned(server, upstreams=cloud))) == ["render/kubernetes-key upstreams.cloud.ca_file"]


@pytest.mark.parametrize("path", ["/etc/launch/", "/etc/a b", "keys", "/etc/a:b/keys", "/etc/.."])
def test_what_is_no_entry_of_a_secret(path: str) -> None:
    """Such a file could not be mounted."""
    runtime = RuntimeConfig(front=FrontConfig(api_key_file=path))
    assert list(errors(planned(server_plan("a"), runtime=runtime))) == [
        "render/kubernetes-key runtime.front.api_key_file"
    ]


@pytest.mark.parametrize("folder", ["", "/tmp", "/a:b", "/a/../b", "/a\nb"])  # a pod's own, and none
def test_directories_that_cannot_be_mounted(folder: str) -> None:
    """The second mount of one path, and paths that the API server refuses."""
    found = errors(planned(server_plan("a", model_path=f"{folder}/x.gguf")))
    assert list(found) == ["render/kubernetes-path servers.a.model"]


def test_peers_of_servers_on_one_host() -> None:
    """Each server asks its own peers, and none of them is a card of its node; the network lets them through."""
    far = [GpuConfig(backend="rpc", vram_bytes=1 << 33, endpoint=e) for e in ("10.0.0.8:5", "10.0.0.9:6", "far:7")]
    gpus = {f"{name}-rpc0": gpu for name, gpu in zip("abc", far, strict=True)}
    servers = [server_plan(name, port=8080 + i, devices=(f"{name}-rpc0",)) for i, name in enumerate("abc")]
    found, findings = rendered(planned(*servers, gpus=gpus))
    assert [f.message for f in findings if "resource" in f.message] == []
    for name, gpu in zip("abc", far, strict=True):
        args = container(found, f"launch-{name}")["args"]
        assert args[args.index("--rpc") + 1] == gpu.endpoint
    assert found["NetworkPolicy", "launch-heads"]["spec"]["egress"] == [
        {"ports": [{"protocol": "TCP", "port": 7}]},
        {"to": [{"ipBlock": {"cidr": "10.0.0.8/32"}}], "ports": [{"protocol": "TCP", "port": 5}]},
        {"to": [{"ipBlock": {"cidr": "10.0.0.9/32"}}], "ports": [{"protocol": "TCP", "port": 6}]},
    ]


def test_pods_beside_the_servers_are_on_the_node_too() -> None:
    """Memory and CPUs of containers and peers that are always up are counted where they are asked for."""
    here = machines("n")
    half = msgspec.structs.replace(here, ram_bytes=1 << 33, cpu=CpuConfig(physical_cores=4, logical_cores=8))
    box = ServiceConfig(container=ContainerConfig(image="box:1"), ram_bytes=7 << 30, threads=4)
    peer = ServiceConfig(command=("/opt/ggml-rpc-server",), protocol="rpc", threads=4)
    large, far = (
        ServicePlan(name=n, starts="boot", port=9000, on="n", config=c) for n, c in (("x", box), ("a-rpc0", peer))
    )
    server = server_plan("a", on="n", threads=8)
    (only,) = errors(planned(server, services=(large,), hardware=half)).values()
    assert "2 pods ask for" in only
    assert "GiB" in only
    found, findings = rendered(planned(server, services=(far,), hardware=half))
    assert [f for f in findings if f.code == "render/kubernetes-node"] == []
    assert container(found, "launch-a")["resources"]["requests"]["cpu"] == 1
    crowd = [server_plan(f"s{i}", on="n", port=8100 + i) for i in range(9)]
    (only,) = errors(planned(*crowd, hardware=msgspec.structs.replace(half, ram_bytes=1 << 40))).values()
    assert "for 9 CPUs at least, and node n has 8" in only


def boxed(**container: Any) -> FleetPlan:
    """A fleet with a service that is this container."""
    config = ServiceConfig(container=ContainerConfig(**{"image": "ocr:1", **container}))
    return planned(server_plan("a"), services=(ServicePlan(name="box", starts="boot", port=9001, config=config),))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", ""),
        ("image", "a b"),
        ("ports", ("8000-8010:8000-8010",)),
        ("ports", ("9000:",)),
        ("ports", ("x:y",)),
        ("ports", ("9000:99999",)),
        ("ports", ("9000:80/udp",)),
        ("volumes", ("/a:/b", "/c:/b")),
        ("volumes", ("/a:/tmp",)),
        ("volumes", ("/tmp/",)),
        ("volumes", ("/a:/",)),
        ("volumes", ("/a:data",)),
        ("volumes", ("/a/../b:/c",)),
        ("volumes", ("/a:/b/../c",)),
    ],
    ids=str,
)
def test_what_no_container_may_have(field: str, value: Any) -> None:
    """Of a service that is a container: its image, the port that it is asked at, and where its volumes are mounted."""
    (found,) = errors(boxed(**{field: value}))
    code = "kubernetes-path" if field == "volumes" else "kubernetes-value"
    assert found.startswith(f"render/{code} services.box.container.{field}")


@pytest.mark.parametrize("port", ["80", "9000:80", "127.0.0.1:9000:80", "[::1]:9000:80/tcp", "127.0.0.1::80"])
def test_ports_of_containers(port: str) -> None:
    """As podman and docker publish them; further ones may be several, which no object has."""
    found, findings = rendered(boxed(ports=(port, "9100-9110:9100-9110"), volumes=("/data:/data:ro", "/tmp:/scratch")))
    assert [f for f in findings if f.severity == "error"] == []
    assert container(found, "launch-box")["ports"] == [{"name": "http", "containerPort": 80}]


@pytest.mark.parametrize("prefix", ["1fleet", "9", "a" * 70])
def test_objects_of_any_fleet_have_names(prefix: str) -> None:
    """Names of Services are labels of RFC 1035: they begin with a letter, and have 63 characters at most."""
    plan = planned(server_plan("a"))
    deploy = msgspec.structs.replace(plan.config.deploy, unit_prefix=prefix)
    plan = msgspec.structs.replace(plan, config=msgspec.structs.replace(plan.config, deploy=deploy))
    found, findings = rendered(plan)
    assert findings == []
    services = [one["metadata"]["name"] for one in found.values() if one["kind"] == "Service"]
    assert services
    for name in services:
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]", name)
    for one in found.values():
        labels = one["metadata"].get("labels", {})
        assert all(len(value) <= 63 for value in labels.values())
