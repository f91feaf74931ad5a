"""Objects for Kubernetes: by the published schema, against each other and against the plan."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.compiler import compile_fleet, render
from launcher.engine import recorded
from launcher.errors import Finding
from launcher.ir.config import ContainerConfig, DeployConfig, GpuConfig, ImageConfig, KubernetesConfig, ServiceConfig
from launcher.ir.fleet import ClusterUnit, FleetManifest
from launcher.ir.plan import DeviceMemory, DevicePlan, FleetPlan, ServicePlan
from launcher.manifest import argv_digest, decode_fleet, decode_routes
from launcher.render.block_yaml import block_yaml
from launcher.render.command import render_commands
from launcher.render.fleet_manifest import fleet_manifest
from launcher.render.kubernetes import CONFIG_MAP_BYTES, cluster_routes, kubernetes_files
from launcher.render.pods import object_name
from launcher.render.routes import routing_table
from launcher.render.units import memory_max
from launcher.runtime.deployment import read_deployment
from tests.cluster.fake_cluster import RULES
from tests.render.plan_factory import fleet_plan, server_plan

VERSION = kubernetes_validate.latest_version()
IMAGES = {"default": ImageConfig(image="llama:b10434", program="/app/llama-server")}
ENGINES = {"default": ("/opt/llama-server", recorded("b10434"))}
SHIPPED = (
    ("hardware=epyc", "profile=full"),
    ("hardware=sovereign", "profile=three_tier"),
    ("hardware=two_hosts", "profile=pair", "engine=embedded"),
)
GIB = 1024**3
NOTHING = {"planned_bytes": 0, "peak_bytes": 0}


def objects_of(texts: list[str]) -> list[dict[str, Any]]:
    """What is in files, in order."""
    return [found for text in texts for found in yaml.safe_load_all(text)]


@functools.lru_cache
def shipped(overrides: tuple[str, ...]) -> tuple[FleetPlan, tuple[dict[str, Any], ...], tuple[Finding, ...]]:
    """A fleet of the documents, as objects."""
    compiled = compile_fleet([*overrides, "deploy=kubernetes", "+deploy.kubernetes.images.default.image=llama"])
    rendered = render(compiled)
    paths = {f.path for f in rendered.deployment.files}
    assert not any(path.startswith(("systemd", "polkit", "sysusers", "containers")) for path in paths)
    texts = [f.text for f in rendered.deployment.files if f.path.startswith("kubernetes/")]
    return compiled.plan, tuple(objects_of(texts)), rendered.findings


def manifest_of(plan: FleetPlan) -> FleetManifest:
    """What any runtime of `plan` would read."""
    return fleet_manifest(plan, render_commands(plan, ENGINES)[0], "0")[0]


def rendered(plan: FleetPlan) -> tuple[dict[tuple[str, str], dict[str, Any]], list[Finding]]:
    """Objects of `plan` by kind and name, and findings."""
    files, findings = kubernetes_files(plan, ENGINES, manifest_of(plan), "# header")
    found = objects_of([f.text for f in files])
    assert len({(o["kind"], o["metadata"]["name"]) for o in found}) == len(found)
    return {(o["kind"], o["metadata"]["name"]): o for o in found}, findings


def planned(*servers: Any, cluster: KubernetesConfig | None = None, **changes: Any) -> FleetPlan:
    """A fleet of `servers` for a cluster with an image for every engine."""
    deploy = DeployConfig(kubernetes=cluster or KubernetesConfig(images=IMAGES), units=False)
    return fleet_plan(*servers, deploy=deploy, **changes)


def container(found: dict[tuple[str, str], dict[str, Any]], name: str) -> dict[str, Any]:
    """The container of a Deployment."""
    one: dict[str, Any] = found["Deployment", name]["spec"]["template"]["spec"]["containers"][0]
    return one


@pytest.mark.parametrize("overrides", SHIPPED, ids=" ".join)
def test_shipped_fleets(overrides: tuple[str, ...]) -> None:
    """The schema takes every object; selectors, ports, secrets, volumes and sizes agree."""
    plan, objects, _ = shipped(overrides)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for found in objects:
        by_kind.setdefault(found["kind"], []).append(found)
        if found["kind"] != "Kustomization":
            kubernetes_validate.validate(found, VERSION, strict=True)
            assert found["metadata"]["namespace"] == "launch"
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    pods = {o["metadata"]["name"]: o["spec"]["template"] for o in by_kind["Deployment"]}
    for found in by_kind["Deployment"]:
        selector = found["spec"]["selector"]["matchLabels"]
        assert [n for n, pod in pods.items() if selector.items() <= pod["metadata"]["labels"].items()] == [
            found["metadata"]["name"]
        ]
        pod = found["spec"]["template"]["spec"]
        mounted = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounted == {v["name"] for v in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"]
        for one in pod["containers"]:
            asked, limits = (dict(one["resources"][k]) for k in ("requests", "limits"))
            assert asked.pop("cpu") <= limits.pop("cpu")
            assert asked == limits
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    for found in by_kind["Service"]:
        matching = [p for p in pods.values() if found["spec"]["selector"].items() <= p["metadata"]["labels"].items()]
        assert len(matching) == 1
        ports = [port["name"] for port in matching[0]["spec"]["containers"][0]["ports"]]
        assert [p["targetPort"] for p in found["spec"]["ports"]] == ports
    for found in by_kind["PodDisruptionBudget"]:
        assert found["spec"]["selector"]["matchLabels"] == pods[found["metadata"]["name"]]["metadata"]["labels"]
    for host in plan.config.hardware.hosts or ("",):
        here = [
            o["spec"]["replicas"] * one["resources"]["requests"]["cpu"]
            for o in by_kind["Deployment"]
            for one in o["spec"]["template"]["spec"]["containers"]
            if o["spec"]["template"]["spec"].get("nodeSelector", {}).get("kubernetes.io/hostname", "") == host
        ]
        assert sum(here) <= plan.config.hardware.machine(host).cpu.logical_cores
    started = [s for s in plan.servers if s.starts != "never"]
    for server in started:
        pod = pods[object_name(plan, server.name)]["spec"]
        limits = pod["containers"][0]["resources"]["limits"]
        assert str(limits.get("memory", "infinity")) == memory_max(server)
        assert limits["cpu"] >= server.settings.threads
        assert cluster_routes(plan, routing_table(plan)).targets[server.name].start == server.starts
        probe = pod["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= server.start_timeout_s
        assert pod.get("nodeSelector", {}).get("kubernetes.io/hostname", "") == server.on
    assert {f"server-{s.name}.yaml" for s in started} <= set(by_kind["Kustomization"][0]["resources"])
    assert by_kind["Kustomization"][0]["metadata"]["annotations"]["launch/input-digest"] == plan.input_digest


@pytest.mark.parametrize("overrides", SHIPPED, ids=" ".join)
def test_the_front_reads_what_it_gets(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """ConfigMap entries as they are mounted are a deployment, whose servers are asked by their Services' names."""
    plan, objects, _ = shipped(overrides)
    config_map = next(o for o in objects if o["kind"] == "ConfigMap")
    services = {o["metadata"]["name"]: o["spec"]["ports"][0]["port"] for o in objects if o["kind"] == "Service"}
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text)
    _, table = read_deployment(tmp_path)
    assert set(table.targets) == {s.name for s in plan.servers}
    for target in table.targets.values():
        assert next(s.starts for s in plan.servers if s.name == target.name) == "never" or (
            services[target.host] == target.port
        )
    assert "launch-front.launch.svc" in table.front.allowed_hosts


def test_on_demand_and_turns() -> None:
    """Servers on demand and those that take turns have no pods before the front, and no budget; cold ones no object."""
    found, _ = rendered(
        planned(
            server_plan("hot"),
            server_plan("warm", port=8081, tier="warm"),
            server_plan("cold", port=8082, tier="cold"),
            server_plan("one", port=8083, exclusive="gpu", default=True),
            server_plan("two", port=8083, exclusive="gpu", initial=False),
        )
    )
    replicas = {name: o["spec"]["replicas"] for (kind, name), o in found.items() if kind == "Deployment"}
    assert replicas == {"launch-hot": 1, "launch-warm": 0, "launch-one": 0, "launch-two": 0, "launch-front": 2}
    assert {name for kind, name in found if kind == "PodDisruptionBudget"} == {"launch-hot", "launch-front"}


def test_a_unix_socket_is_a_port_in_a_pod() -> None:
    """Its Service reaches a pod by its address: the container listens there, and the front asks it there."""
    plan = planned(server_plan("a", port=0, host="/run/launch-a/http.sock"))
    found, _ = rendered(plan)
    container = found["Deployment", "launch-a"]["spec"]["template"]["spec"]["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    words = container["args"]
    assert [words[words.index(flag) + 1] for flag in ("--host", "--port")] == ["0.0.0.0", "8080"]
    assert found["Service", "launch-a"]["spec"]["ports"][0]["port"] == 8080
    target = cluster_routes(plan, routing_table(plan)).targets["a"]
    assert (target.host, target.port) == ("launch-a", 8080)
    found, _ = rendered(planned(server_plan("b", port=0, host="/run/launch-b/http.sock", tier="warm")))
    (led,) = decode_fleet(found["ConfigMap", "launch-front"]["data"]["fleet.json"].encode()).servers
    assert (led.host, led.port) == ("launch-b", 8080)


def test_what_the_front_scales() -> None:
    """It reads those servers as their pods run them, and may do what it must to exactly those; others it only asks."""
    plan = planned(
        server_plan("hot", memory=(DeviceMemory(device="ram", committed_bytes=GIB),)),
        server_plan("warm", port=8081, tier="warm", extra_args=("--reverse-prompt", "$(HOME) $$")),
        server_plan("cold", port=8082, tier="cold"),
        server_plan("one", port=8083, exclusive="gpu", default=True),
    )
    found, _ = rendered(plan)
    for one in found.values():
        if one["kind"] != "Kustomization":
            kubernetes_validate.validate(one, VERSION, strict=True)
    data = found["ConfigMap", "launch-front"]["data"]
    fleet, table = decode_fleet(data["fleet.json"].encode()), decode_routes(data["routes.json"].encode())
    assert isinstance(fleet.cluster, ClusterUnit)
    assert fleet.cluster.deployments == {"warm": "launch-warm", "one": "launch-one"}
    assert [unit.name for unit in fleet.servers] == ["warm", "one"]
    for unit in fleet.servers:
        deployed = found["Deployment", fleet.cluster.deployments[unit.name]]["spec"]["template"]
        box = deployed["spec"]["containers"][0]
        assert unit.argv == (*box["command"], *(expanded(word) for word in box["args"]))
        assert unit.argv_digest == argv_digest(unit.argv)
        service = found["Service", unit.host]
        assert (service["spec"]["ports"][0]["port"], table.targets[unit.name].host) == (unit.port, unit.host)
        assert fleet.cluster.selector.items() <= deployed["metadata"]["labels"].items()
        assert deployed["metadata"]["labels"][fleet.cluster.label] == unit.host
        assert unit.stop_grace_s > deployed["spec"]["terminationGracePeriodSeconds"]
        assert (unit.fatal, unit.files, unit.rungs) == (False, (), ())
    assert {name: target.on for name, target in table.targets.items() if target.start != "never"} == {
        "hot": "kubernetes",
        "warm": "",
        "one": "",
    }
    whole = {device.name: device.budget_bytes for device in manifest_of(plan).devices}
    limits = {
        name: found["Deployment", f"launch-{name}"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name in ("hot", "warm", "one")
    }
    budgets = {device.name: device.budget_bytes for device in fleet.devices}
    assert budgets == {"ram": whole["ram"] - limits["hot"]["memory"]}
    assert {u.name: u.memory[0].peak_bytes for u in fleet.servers} == {n: limits[n]["memory"] for n in ("warm", "one")}
    rules = found["Role", "launch-front"]["rules"]
    assert {(rule["resources"][0], *rule["verbs"], *rule.get("resourceNames", ())) for rule in rules} == {
        ("deployments/scale", "get", "patch", "launch-one", "launch-warm"),
        ("pods", "list", "watch"),
        ("leases", "get", "update", "launch-front"),
    }
    assert [{k: v for k, v in rule.items() if k != "resourceNames"} for rule in rules] == RULES  # the fake's
    bound = found["RoleBinding", "launch-front"]
    assert (bound["roleRef"]["name"], bound["subjects"][0]["name"]) == ("launch-front", "launch-front")
    assert ("Lease", fleet.cluster.lease) in found
    pod = found["Deployment", "launch-front"]["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("launch-front", True)
    box = pod["containers"][0]
    assert box["args"] == ["serve", "/etc/launch/fleet"]
    assert {e["name"] for e in box["env"]} >= {"POD_IP", "POD_NAME"}
    assert box["readinessProbe"]["httpGet"]["path"] == "/health"
    assert box["livenessProbe"]["tcpSocket"] == {"port": "http"}
    tokens = {
        n: o["spec"]["template"]["spec"]["automountServiceAccountToken"]
        for (k, n), o in found.items()
        if k == "Deployment"
    }
    assert {name for name, has in tokens.items() if has} == {"launch-front"}


def test_a_card_is_one_pods_whole() -> None:
    """To the front, too: of two on demand one goes for the other, and where one always has it there is no room."""
    gpus = {"cuda0": GpuConfig(backend="cuda", vram_bytes=24 * GIB)}
    devices = (DevicePlan(name="cuda0", kind="gpu", capacity_bytes=24 * GIB, budget_bytes=23 * GIB, **NOTHING),)
    on = {"devices": ("cuda0",), "n_gpu_layers": 99, "memory": (DeviceMemory(device="cuda0", committed_bytes=GIB),)}
    warm = server_plan("warm", port=8081, tier="warm", **on)
    for hot, left in (((), 24 * GIB), ((server_plan("hot", **on),), 0)):
        found, _ = rendered(planned(*hot, warm, gpus=gpus, devices=devices))
        fleet = decode_fleet(found["ConfigMap", "launch-front"]["data"]["fleet.json"].encode())
        assert [(d.name, d.budget_bytes) for d in fleet.devices] == [("cuda0", left)]
        assert fleet.servers[0].memory[0].peak_bytes == 24 * GIB


def test_a_front_that_scales_nothing() -> None:
    """Where every server always runs it routes alone: no account, no rights, no token, no lease."""
    found, _ = rendered(planned(server_plan("hot")))
    assert not {"ServiceAccount", "Role", "RoleBinding", "Lease"} & {kind for kind, _ in found}
    pod = found["Deployment", "launch-front"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["args"][-1] == "--route-only"
    assert decode_fleet(found["ConfigMap", "launch-front"]["data"]["fleet.json"].encode()).cluster is msgspec.UNSET


def test_cards() -> None:
    """A pod's cards are numbered from 0; a vendor's resource each; what the cluster has no word for is said."""
    card = {"vram_bytes": 24 * GIB}
    gpus = {f"cuda{i}": GpuConfig(backend="cuda", **card) for i in range(3)} | {
        "vulkan0": GpuConfig(backend="vulkan", **card)
    }
    plan = planned(
        server_plan("a", devices=("cuda1", "cuda2"), n_gpu_layers=99, main_gpu="cuda2", tensor_split=(1.0, 1.0)),
        server_plan("b", port=8081, devices=("vulkan0",), n_gpu_layers=99),
        gpus=gpus,
    )
    found, findings = rendered(plan)
    args = container(found, "launch-a")["args"]
    assert args[args.index("--device") + 1] == "CUDA0,CUDA1"
    assert container(found, "launch-a")["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert any("device vulkan0" in f.message for f in findings)
    cluster = KubernetesConfig(images=IMAGES, gpu_resources={"vulkan": "example.com/card"})
    plan = planned(server_plan("b", devices=("vulkan0",), n_gpu_layers=99), gpus=gpus, cluster=cluster)
    assert container(rendered(plan)[0], "launch-b")["resources"]["limits"]["example.com/card"] == 1


def test_a_card_for_two() -> None:
    """What our own runtime runs together on one card, Kubernetes cannot; servers that take turns it can."""
    gpus = {"cuda0": GpuConfig(backend="cuda", vram_bytes=24 * GIB)}
    on = {"devices": ("cuda0",), "n_gpu_layers": 99}
    together = planned(server_plan("a", **on), server_plan("b", port=8081, **on), gpus=gpus)
    assert [f.code for f in rendered(together)[1] if f.severity == "error"] == ["render/kubernetes-card"]
    turns = planned(server_plan("a", exclusive="g", **on), server_plan("b", port=8081, exclusive="g", **on), gpus=gpus)
    assert [f for f in rendered(turns)[1] if f.severity == "error"] == []


def test_images_and_files() -> None:
    """No image of an engine, a file that is not on the claim, tables that no ConfigMap holds: errors."""
    server = server_plan("a", model_path="/srv/x.gguf")
    for cluster, code in (
        (KubernetesConfig(), "render/kubernetes-image"),
        (KubernetesConfig(images=IMAGES, models_claim="models"), "render/kubernetes-path"),
    ):
        _, findings = rendered(planned(server, cluster=cluster))
        assert [f.code for f in findings if f.severity == "error"] == [code]
    claimed = KubernetesConfig(images=IMAGES, models_claim="models", models_mount="/srv/")
    found, findings = rendered(planned(server, cluster=claimed))
    assert [f for f in findings if f.severity == "error"] == []
    volumes = found["Deployment", "launch-a"]["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    large = msgspec.structs.replace(manifest_of(planned(server)), hardware="x" * CONFIG_MAP_BYTES)
    _, findings = kubernetes_files(planned(server), ENGINES, large, "#")
    assert [f.code for f in findings if f.severity == "error"] == ["render/kubernetes-size"]
    relative = server_plan("a", model_path="x.gguf")
    assert [f.code for f in rendered(planned(relative))[1]] == ["render/kubernetes-path"]


def test_keys_come_from_the_secret() -> None:
    """Key files of the front and of servers are entries of one Secret, and none of them is in an object."""
    server = server_plan("a", extra_args=("--api-key-file", "/etc/launch/server-keys"))
    found, _ = rendered(planned(server))
    pod = found["Deployment", "launch-a"]["spec"]["template"]["spec"]
    volume = next(v for v in pod["volumes"] if v["name"] == "keys")
    assert volume["secret"]["secretName"] == "launch-keys"  # a name
    assert [i["key"] for i in volume["secret"]["items"]] == ["server-keys"]
    front = container(found, "launch-front")
    assert "/etc/launch/server-keys" in [m["mountPath"] for m in front["volumeMounts"]]
    assert "Secret" not in {kind for kind, _ in found}


def test_what_pods_leave_out_is_said_once() -> None:
    """One warning a matter, however many servers it is about."""
    servers = [server_plan(f"s{i}", port=8080 + i, cpus=f"{i}") for i in range(5)]
    found, findings = rendered(planned(*servers))
    assert [f.code for f in findings] == ["render/left-out"]
    assert "s0, s1, s2 and 2 more" in findings[0].message
    beside = ServicePlan(name="ocr", starts="boot", port=9000, config=ServiceConfig(command=("ocr",)))
    image = ContainerConfig(image="ocr:1", ports=("127.0.0.1:9001:80",), volumes=("/srv/data:/data:ro",))
    boxed = ServicePlan(
        name="box", starts="boot", port=9001, config=ServiceConfig(container=image, ram_bytes=GIB, threads=2)
    )
    found, findings = rendered(planned(server_plan(), services=(beside, boxed)))
    assert "ocr" in findings[0].message
    assert container(found, "launch-box")["ports"] == [{"name": "http", "containerPort": 80}]
    for one in found.values():
        if one["kind"] != "Kustomization":
            kubernetes_validate.validate(one, VERSION, strict=True)


def test_a_container_with_a_card() -> None:
    """It asks for one of its vendor's resource; a card that a server is planned on, too, is an error for both."""
    gpus = {"cuda0": GpuConfig(backend="cuda", vram_bytes=GIB), "vulkan0": GpuConfig(backend="vulkan", vram_bytes=GIB)}
    boxed = ServicePlan(
        name="box", port=9001, config=ServiceConfig(container=ContainerConfig(image="x"), vram_bytes={"cuda0": 1})
    )
    found, findings = rendered(planned(server_plan(), services=(boxed,), gpus=gpus))
    assert findings == []
    assert container(found, "launch-box")["resources"]["limits"] == {"cpu": 1, "nvidia.com/gpu": 1}
    on_card = server_plan("a", devices=("cuda0",), n_gpu_layers=99)
    (finding,) = rendered(planned(on_card, services=(boxed,), gpus=gpus))[1]
    assert (finding.code, finding.key) == ("render/kubernetes-card", "services.box.vram_bytes")
    other = msgspec.structs.replace(boxed, config=msgspec.structs.replace(boxed.config, vram_bytes={"vulkan0": 1}))
    (finding,) = rendered(planned(server_plan(), services=(other,), gpus=gpus))[1]
    assert "box: device vulkan0" in finding.message


def test_pods_that_no_node_holds() -> None:
    """Together more memory than the node has is an error; those that take turns count once."""
    big = {"memory": (DeviceMemory(device="ram", committed_bytes=600 * GIB),)}
    together = planned(server_plan("a", **big), server_plan("b", port=8081, **big))
    assert [f.code for f in rendered(together)[1]] == ["render/kubernetes-node"]
    turns = planned(server_plan("a", exclusive="x", **big), server_plan("b", port=8081, exclusive="x", **big))
    assert rendered(turns)[1] == []


def test_memory_without_a_limit_is_said() -> None:
    """A prompt cache without a limit has no memory limit, and the scheduler is told nothing wrong."""
    found, findings = rendered(planned(server_plan("a", cache_ram_mib=-1)))
    assert "memory" not in container(found, "launch-a")["resources"]["limits"]
    assert "cache_ram_mib" in findings[0].message
    found, _ = rendered(planned(server_plan("a", memory=(DeviceMemory(device="ram", committed_bytes=GIB),))))
    assert container(found, "launch-a")["resources"]["limits"]["memory"] > GIB


@given(st.sets(st.from_regex(re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,80}"), fullmatch=True), min_size=1, max_size=6))
def test_names_are_labels_and_differ(names: set[str]) -> None:
    """Every name that a server may have is a DNS label of its own, and none is an object of the fleet's."""
    plan = planned(
        *(server_plan(name, port=8080 + i) for i, name in enumerate(sorted(names | {"front", "a_b", "a-b"})))
    )
    labels = [object_name(plan, s.name) for s in plan.servers]
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", label) for label in labels)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXT | st.sampled_from(["1e6", "on", "0o7", "~", "null", "=", "<<"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT | st.just("on"), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(_TEXT, _VALUES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_yaml_comes_back(documents: list[dict[str, Any]]) -> None:
    """Any value, read by a YAML parser, is what it was, and no line is more than one string's."""
    text = block_yaml(documents)
    assert list(yaml.safe_load_all(text)) == documents
    assert text.isascii()


def expanded(text: str) -> str:
    """`text` as the kubelet hands it over (third_party/forked/golang/expansion: Expand), with no variable set."""
    found, at = "", 0
    while at < len(text):
        if text.startswith("$$", at):
            found, at = found + "$", at + 2
        elif text.startswith("$(", at) and ")" in text[at:]:
            raise AssertionError(f"a variable in {text!r}")
        else:
            found, at = found + text[at], at + 1
    return found


@settings(max_examples=20)
@given(_TEXT | st.text("a$()"))
def test_hostile_words_stay_words(word: str) -> None:
    """An argument with `$(HOME)`, quotes or line breaks comes to the server as it was written."""
    plan = planned(server_plan("a", extra_args=("--reverse-prompt", word), env={"X": word}))
    one = container(rendered(plan)[0], "launch-a")
    at = one["args"].index("--reverse-prompt")
    assert expanded(one["args"][at + 1]) == word
    assert [(e["name"], expanded(e["value"])) for e in one["env"]] == [("X", word)]


def test_a_deployment_with_an_odd_name() -> None:
    """What a label's value may not have is another character there, and the schema's limits hold."""
    found, _ = rendered(planned(server_plan("a"), deployment="a@b=c+" + "d" * 90 + "."))
    values = {v for o in found.values() for v in o["metadata"].get("labels", {}).values()}
    assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value) for value in values)


def test_yaml_takes_no_other_types() -> None:
    """A value that is no JSON is a bug of ours, and said."""
    with pytest.raises(TypeError):
        block_yaml([{"a": 1.5}])


def test_a_change_restarts_what_changed() -> None:
    """A server's flag changes that server's pods; what the routing table says of one changes the front's."""

    def templates(plan: FleetPlan) -> dict[str, Any]:
        found, _ = rendered(plan)
        return {name: o["spec"]["template"] for (kind, name), o in found.items() if kind == "Deployment"}

    before = templates(planned(server_plan("a"), server_plan("b", port=8081)))
    for change, changed in (({"n_batch": 1024}, {"launch-b"}), ({"aliases": ("gpt",)}, {"launch-front"})):
        after = templates(planned(server_plan("a"), server_plan("b", port=8081, **change)))
        assert {name for name in before if before[name] != after[name]} == changed
