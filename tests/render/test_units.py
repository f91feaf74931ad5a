"""systemd units, judged by systemd itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.engine import recorded
from launcher.ir.config import (
    ContainerConfig,
    DeployConfig,
    GpuConfig,
    LoraConfig,
    NumaConfig,
    RuntimeConfig,
    ServiceConfig,
)
from launcher.ir.plan import DeviceMemory, FleetPlan, ServerPlan, ServicePlan
from launcher.render.beside_units import cards, container_argv
from launcher.render.fleet import Rendered, render_fleet
from launcher.render.units import memory_max
from tests.render.conftest import exposure, verify
from tests.render.plan_factory import MIB, fleet_plan, server_plan
from tests.render.test_quoting import specifiers, systemd_words, variables

NEWEST = recorded("b10434")
HOSTILE = 'a b"c\\d%n$HOME;#\n\té'

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")


def rendered(plan: FleetPlan, templates: dict[str, str], **options: Any) -> Rendered:
    """`plan` with a binary that is there."""
    return render_fleet(plan, {"default": ("/bin/true", NEWEST)}, templates, "0.1.0", **options)


def unit(result: Rendered, name: str) -> str:
    """Text of a unit."""
    return next(f.text for f in result.deployment.files if f.path == f"systemd/{name}")


def values(text: str, key: str) -> list[str]:
    """Values of `key` in a unit, continued lines joined."""
    return re.findall(rf"^{key}=(.*)$", text.replace("\\\n", " "), re.MULTILINE)


ALONE = {"socket": (), "socket_card": ("cuda0",), "socket_far": ("rpc0",)}


def socket_plan(name: str, **changes: Any) -> ServerPlan:
    """A server on a unix socket."""
    return server_plan(name, port=0, host=f"/run/launch-{name}/http.sock", **changes)


def everything() -> FleetPlan:
    """A fleet with every shape of unit: plain, NUMA, GPU of each backend, hidden paths, exclusive, hostile words."""
    gpus = {
        f"{backend}0": GpuConfig(backend=backend, vram_bytes=1 << 34, endpoint="10.0.0.2:50052")  # type: ignore[arg-type] # a literal
        for backend in ("cuda", "vulkan", "rocm", "sycl", "rpc")
    }
    return fleet_plan(
        server_plan("plain"),
        server_plan("numa", port=8081, numa=NumaConfig(policy="interleave"), cpus="0-1", load_mode="mmap+mlock"),
        server_plan("bind", port=8082, numa=NumaConfig(policy="bind", nodes=(0,)), tier="warm", after=("plain",)),
        server_plan("home", port=8084, model_path='/home/u/a b:"%.gguf', host="0.0.0.0"),
        server_plan("hostile", port=8085, extra_args=("--reverse-prompt", HOSTILE), env={"X": HOSTILE}),
        *(
            server_plan(name, port=8090, devices=(name,), n_gpu_layers=99, exclusive="gpu", default=name == "cuda0")
            for name in gpus
        ),
        server_plan("cold", port=8099, tier="cold"),
        *(socket_plan(name, devices=devices) for name, devices in ALONE.items()),
        gpus=gpus,
    )


def units_of(result: Rendered) -> dict[str, str]:
    """Text of every unit by name."""
    return {f.path.removeprefix("systemd/"): f.text for f in result.deployment.files if f.path.startswith("systemd/")}


@needs_systemd
def test_systemd_finds_nothing_to_say(templates: dict[str, str], tmp_path: Path) -> None:
    """`systemd-analyze verify` exits 0 with an empty stderr (it exits 0 for unknown keys, too), for every shape."""
    plan = everything()
    services = (
        ServicePlan(name="ocr", port=9001, config=ServiceConfig(command=("ocr", HOSTILE), ram_bytes=MIB, tier="warm")),
    )
    for changes in ({}, {"hardening": False, "user": "llama"}):
        config = msgspec.structs.replace(plan.config, deploy=DeployConfig(**changes))
        result = rendered(msgspec.structs.replace(plan, config=config, services=services), templates)
        units = units_of(result)
        assert len(units) == 13 + 2 * 2 + 2
        root = tmp_path / "-".join(["root", *changes])
        assert verify(root, units) == (0, "")


@needs_systemd
def test_exposure(templates: dict[str, str], tmp_path: Path) -> None:
    """Each unit is as closed as it claims; 9.6 is no sandbox at all."""
    levels = {}
    for name, text in units_of(rendered(everything(), templates)).items():
        if claim := values(text, "X-Launch-Exposure"):
            (tmp_path / name).write_text(text)
            levels[name] = exposure(tmp_path / name)
            assert levels[name] <= float(claim[0]), name
    assert levels["launch-plain.service"] <= 1.0
    assert levels["launch-socket.service"] <= 0.3
    assert levels["launch-socket_card.service"] <= 0.9
    assert levels["launch-epyc-hot_only.service"] <= 2.0
    assert max(level for name, level in levels.items() if name != "launch-epyc-hot_only.service") <= 1.5


def test_a_unix_socket(templates: dict[str, str]) -> None:
    """No network but for a card of another machine; a folder of its own; the runtime's group alone may connect."""
    result = rendered(everything(), templates)
    text = unit(result, "launch-socket.service")
    shown = {
        key: values(text, key) for key in ("RuntimeDirectory", "Group", "UMask", "PrivateNetwork", "SocketBindAllow")
    }
    group = ["launch-epyc-hot_only"]
    assert shown == {
        "RuntimeDirectory": ["launch-socket"], "Group": group, "UMask": ["0007"],
        "PrivateNetwork": ["yes"], "SocketBindAllow": [],
    }  # fmt: skip
    assert values(unit(result, "launch-epyc-hot_only.service"), "User") == group
    assert values(text, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert "--port" not in text
    far = unit(result, "launch-socket_far.service")
    assert values(far, "PrivateNetwork") == values(far, "IPAddressDeny") == []
    assert "AF_INET" in values(far, "RestrictAddressFamilies")[0]


@pytest.mark.parametrize(
    ("deploy", "path", "folder", "group", "umask"),
    [
        ({"user": "llama"}, "/run/launch-a/http.sock", ["launch-a"], [], ["0077"]),
        ({"hardening": False}, "/run/launch-a/http.sock", ["launch-a"], ["launch-epyc-hot_only"], ["0007"]),
        ({"unit_prefix": "ai"}, "/run/launch-a/http.sock", [], ["ai-epyc-hot_only"], ["0007"]),
        ({"unit_prefix": "ai"}, "/run/ai-a/http.sock", ["ai-a"], ["ai-epyc-hot_only"], ["0007"]),
        ({}, "/run/systemd/http.sock", [], ["launch-epyc-hot_only"], ["0007"]),
        ({}, "/run/launch-a/deeper/http.sock", [], ["launch-epyc-hot_only"], ["0007"]),
        ({"scope": "user"}, "/run/user/1000/launch-a/http.sock", ["launch-a"], [], []),
        ({"scope": "user"}, "/run/launch-a/http.sock", [], [], []),
    ],
)
def test_the_folder_of_a_unix_socket(
    templates: dict[str, str],
    deploy: dict[str, Any],
    path: str,
    folder: list[str],
    group: list[str],
    umask: list[str],
) -> None:
    """Systemd removes it with all that is in it: it is made only where its name is the fleet's; else that is said."""
    plan = fleet_plan(server_plan("a", port=0, host=path), server_plan("b", port=8081, after=("a",)))
    config = msgspec.structs.replace(plan.config, deploy=DeployConfig(**deploy))
    result = rendered(msgspec.structs.replace(plan, config=config), templates)
    names = [f for f in result.deployment.files if f.path.endswith("-a.service")]
    text = names[0].text
    assert [values(text, key) for key in ("RuntimeDirectory", "Group", "UMask")] == [folder, group, umask]
    assert [f.key for f in result.findings if f.code == "render/socket-folder"] == ["servers.a.host"] * (not folder)
    assert f"curl -sf -o /dev/null --noproxy '*' --unix-socket {path} http://localhost/health" in text


def test_the_front_has_folders_of_its_own_alone(templates: dict[str, str]) -> None:
    """What systemd makes for a unit it removes with all that is in it: never another's folder below /run."""
    plan = fleet_plan(server_plan("a"))
    listen = ("/run/launch/front.sock", "/run/launch-x/front.sock", "/run/systemd/front.sock", "/srv/front.sock")
    listen += ("/run/launch-a b/front.sock", "/run/launch-%n/front.sock", "/run/launch-a:b/f.sock", "/srv/a b/f.sock")
    front = msgspec.structs.replace(plan.config.runtime.front, listen=listen)
    runtime = msgspec.structs.replace(plan.config.runtime, front=front)
    config = msgspec.structs.replace(plan.config, runtime=runtime)
    text = unit(rendered(msgspec.structs.replace(plan, config=config), templates), "launch-epyc-hot_only.service")
    assert values(text, "RuntimeDirectory") == ['launch launch-x "launch-a b" "launch-%%n"']
    assert values(text, "ReadWritePaths") == ['/run/systemd /srv "/run/launch-a:b" "/srv/a b"']


def test_a_container_is_a_quadlet_file(templates: dict[str, str]) -> None:
    """Documented keys of podman-systemd.unit(5) only; its ports are this machine's; the tier's target wants it."""
    config = ServiceConfig(
        container=ContainerConfig(image="x@sha256:0", ports=("8088:8080",), volumes=("v:/d",), args=("--a", HOSTILE)),
        ram_bytes=MIB,
        env={"X": HOSTILE},
    )
    service = ServicePlan(name="code", port=8088, config=config)
    result = rendered(fleet_plan(server_plan(), services=(service,)), templates)
    text = next(f.text for f in result.deployment.files if f.path == "containers/launch-code.container")
    section = text[text.index("[Container]") : text.index("[Service]")]
    assert set(re.findall(r"^(\w+)=", section, re.MULTILINE)) == {
        *("ContainerName", "Image", "PublishPort", "Volume", "Environment", "Exec"),
        *("ReadOnly", "DropCapability", "NoNewPrivileges", "PodmanArgs"),
    }
    assert values(text, "PublishPort") == ["127.0.0.1:8088:8080"]
    assert [variables(specifiers(w)) for w in systemd_words(values(text, "Exec")[0])] == ["--a", HOSTILE]
    assert "launch-code.service" in values(unit(result, "launch-hot.target"), "Wants")[0]


CARDS = {
    ("cuda0",): (("nvidia.com/gpu=0",), {}, ("--gpus=device=0",)),
    ("big", "cuda0"): (("nvidia.com/gpu=1", "nvidia.com/gpu=0"), {}, ('--gpus="device=1,0"',)),
    ("rocm0", "rocm1"): (
        ("/dev/kfd", "/dev/dri"),
        {"ROCR_VISIBLE_DEVICES": "0,1"},
        ("--device=/dev/kfd", "--device=/dev/dri"),
    ),
    ("vulkan0",): (("/dev/dri",), {}, ("--device=/dev/dri",)),
    ("sycl0",): (("/dev/dri",), {"ZE_AFFINITY_MASK": "0"}, ("--device=/dev/dri",)),
    (): ((), {}, ()),
}
"""Planned cards of a container → its devices for podman, what chooses among them, docker's words."""


@pytest.mark.parametrize("planned", CARDS)
def test_a_container_has_the_cards_that_it_is_planned_on(templates: dict[str, str], planned: tuple[str, ...]) -> None:
    """Installed, under `up` with podman and with docker: each vendor's way, and no card that it is not planned on."""
    devices, chosen, docker = CARDS[planned]
    names = {"cuda0": "cuda", "big": "cuda", "rocm0": "rocm", "rocm1": "rocm", "vulkan0": "vulkan", "sycl0": "sycl"}
    gpus = {name: GpuConfig(backend=backend, vram_bytes=1 << 34) for name, backend in names.items()}  # type: ignore[arg-type] # literals
    config = ServiceConfig(container=ContainerConfig(image="x"), vram_bytes=dict.fromkeys(planned, MIB))
    plan = fleet_plan(server_plan(), services=(ServicePlan(name="w", port=8088, config=config),), gpus=gpus)
    text = next(f.text for f in rendered(plan, templates).deployment.files if f.path.endswith("w.container"))
    assert tuple(values(text, "AddDevice")) == devices
    assert " ".join(values(text, "Environment")) == " ".join(f"{k}={v}" for k, v in chosen.items())
    groups = ["--group-add=keep-groups"] if "/dev/dri" in devices else []
    assert values(text, "PodmanArgs") == groups
    for engine, given in (("podman", (*(f"--device={d}" for d in devices), *groups)), ("docker", docker)):
        words = container_argv(config, "w", engine, gpus)
        assert tuple(w for w in words if w.startswith(("--device", "--gpus", "--group"))) == given
        assert [w for w in words if w.startswith("--env")] == [f"--env={k}={v}" for k, v in chosen.items()]
    own = msgspec.structs.replace(config, env=dict.fromkeys(chosen, "7"))
    assert not cards(own, gpus).env


def test_the_command_is_the_argv(templates: dict[str, str]) -> None:
    """ExecStart= and Environment= parsed by systemd's rules give back argv and env, hostile words included."""
    result = rendered(everything(), templates)
    text = unit(result, "launch-hostile.service")
    (line,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", text, re.MULTILINE)
    program, *rest = (specifiers(w) for w in systemd_words(line))
    assert (program, *map(variables, rest)) == result.commands["hostile"].argv
    (assignment,) = values(text, "Environment")
    assert [specifiers(w) for w in systemd_words(assignment)] == [f"X={HOSTILE}"]


def test_systemd_places_the_process(templates: dict[str, str]) -> None:
    """CPUAffinity= and NUMAPolicy= instead of numactl, which is in the script for people."""
    result = rendered(everything(), templates)
    text = unit(result, "launch-numa.service")
    assert "numactl" not in text
    assert (values(text, "CPUAffinity"), values(text, "NUMAPolicy"), values(text, "NUMAMask")) == (
        ["0-1"],
        ["interleave"],
        ["all"],
    )
    assert values(text, "LimitMEMLOCK") == ["infinity"]
    script = next(f for f in result.deployment.files if f.path == "commands/numa.sh")
    assert "numactl" in script.text
    assert script.executable


def test_what_a_boot_does_without_the_runtime(templates: dict[str, str]) -> None:
    """It starts what is always on, in order; what takes turns or is started on demand is left to the runtime."""
    servers = (server_plan("plain"), server_plan("next", port=8081, after=("plain",)), *everything().servers[2:])
    config = msgspec.structs.replace(everything().config, servers={s.name: s.config for s in servers})
    result = rendered(msgspec.structs.replace(everything(), config=config, servers=servers), templates)
    hot = unit(result, "launch-hot.target")
    assert values(hot, "Wants")[0].split() == [
        f"launch-{n}.service" for n in ("plain", "next", "home", "hostile", *ALONE)
    ]
    assert values(hot, "WantedBy") == ["multi-user.target"]
    assert values(unit(result, "launch-epyc-hot_only.service"), "WantedBy") == ["multi-user.target"]
    assert values(unit(result, "launch-warm.target"), "Wants") == []
    plain, following, warm = (unit(result, f"launch-{n}.service") for n in ("plain", "next", "bind"))
    assert values(following, "After") == ["network.target launch-plain.service"]
    assert "http://127.0.0.1:8080/health" in values(plain, "ExecStartPost")[0]
    assert values(following, "ExecStartPost") == values(warm, "ExecStartPost") == []
    assert values(warm, "After") == ["network.target"]
    restarts = {n: values(unit(result, f"launch-{n}.service"), "Restart")[0] for n in ("plain", "bind", "cuda0")}
    assert restarts == {"plain": "always", "bind": "no", "cuda0": "no"}
    assert not [f.path for f in result.deployment.files if "cold" in f.path and "systemd" in f.path]


def test_the_runtimes_rights(templates: dict[str, str]) -> None:
    """The rule names exactly the units of this deployment, its user, and what it may do to them."""
    result = rendered(everything(), templates)
    text = next(f.text for f in result.deployment.files if f.path == "polkit/50-launch-epyc-hot_only.rules")
    units = set(re.findall(r'"(launch-[\w.]+\.service)"', text))
    assert units == {u for u in units_of(result) if u.endswith(".service")} - {"launch-epyc-hot_only.service"}
    assert 'subject.user == "launch-epyc-hot_only"' in text
    runtime = unit(result, "launch-epyc-hot_only.service")
    assert values(runtime, "User") == ["launch-epyc-hot_only"]
    (user,) = (f.text for f in result.deployment.files if f.path.startswith("sysusers/"))
    assert "u launch-epyc-hot_only - " in user


def test_restarts_are_bounded_by_load_time(templates: dict[str, str]) -> None:
    """Five loads of 600 s each must fit into the interval, or the limit would never trip."""
    plan = fleet_plan(server_plan(start_timeout_s=600.0), runtime=RuntimeConfig(crash_loop_failures=5))
    text = unit(rendered(plan, templates), "launch-frontdoor.service")
    assert values(text, "StartLimitBurst") == ["5"]
    assert int(values(text, "StartLimitIntervalSec")[0]) > 5 * 600
    assert values(text, "TimeoutStartSec") == ["600"]


def test_the_start_interval_has_an_end(templates: dict[str, str]) -> None:
    """Numbers as large as the config types hold make no interval that systemd refuses, and no overflow."""
    runtime = RuntimeConfig(crash_loop_failures=2**62, backoff_s=1234567.5)
    plan = fleet_plan(server_plan(start_timeout_s=1e7), runtime=runtime)
    text = unit(rendered(plan, templates), "launch-frontdoor.service")
    assert values(text, "StartLimitIntervalSec") == ["1000000000"]
    assert values(text, "StartLimitBurst") == [str(2**31 - 1)]
    assert values(text, "RestartSec") == ["1234567.5"]


def test_memory_max() -> None:
    """Private memory, growth and, with a mapping, every mapped page; no limit where the prompt cache has none."""
    plan = server_plan()
    (ram,) = plan.memory
    wanted = ram.peak_bytes + ram.growth_bytes + ram.model_bytes
    assert int(memory_max(plan)) == wanted + wanted // 10 + 512 * MIB
    shared = msgspec.structs.replace(plan, memory=(msgspec.structs.replace(ram, file_bytes=0, shared_with=("a",)),))
    assert memory_max(shared) == memory_max(plan)
    locked = server_plan(load_mode="none", memory=(msgspec.structs.replace(ram, file_bytes=0),))
    assert int(memory_max(locked)) < int(memory_max(plan))
    assert memory_max(server_plan(cache_ram_mib=-1)) == "infinity"
    assert memory_max(server_plan(memory=())) == "infinity"
    gpu = server_plan(devices=("cuda0",), memory=(ram, DeviceMemory(device="cuda0", committed_bytes=1 << 34)))
    assert int(memory_max(gpu)) - int(memory_max(plan)) == 2048 * MIB


def test_f25_files_of_words_are_bound_into_the_sandbox(templates: dict[str, str]) -> None:
    """F25: adapters, a template, and every path among the extra arguments that the server reads."""
    server = server_plan(
        "words",
        lora=(LoraConfig(path="/home/ann/sql.gguf", scale=0.5),),
        chat_template_file="/home/ann/t.jinja",
        extra_args=(
            "--grammar-file",
            "/root/g.gbnf",
            "--control-vector",
            "/home/a.gguf,/srv/b.gguf",
            "--temp",
            "/home/x",
        ),
    )
    result = rendered(fleet_plan(server), templates)
    bound = [
        specifiers(word)
        for line in values(unit(result, "launch-words.service"), "BindReadOnlyPaths")
        for word in systemd_words(line, escapes=False)
    ]
    hidden = ["/home/a.gguf", "/home/ann/sql.gguf", "/home/ann/t.jinja", "/root/g.gbnf"]
    assert bound == hidden
    manifest = next(f.text for f in result.deployment.files if f.path == "fleet.json")
    assert {*hidden, "/srv/b.gguf"} <= {*json.loads(manifest)["servers"][0]["files"]}


@pytest.mark.parametrize("binary", ["/root/llama-server", "/home/me/bin/llama-server", "/opt/bin/llama-server"])
def test_the_folder_of_the_binary_is_bound_into_the_sandbox(binary: str, templates: dict[str, str]) -> None:
    """Libraries lie there; also where it is itself what the sandbox hides."""
    result = render_fleet(fleet_plan(server_plan("a")), {"default": (binary, NEWEST)}, templates, "0.1.0")
    bound = values(unit(result, "launch-a.service"), "BindReadOnlyPaths")
    assert (binary.rpartition("/")[0] in bound) == (not binary.startswith("/opt"))


def test_what_the_sandbox_lets_through(templates: dict[str, str]) -> None:
    """Loopback only where the server listens on loopback; files below /home bound in; device nodes per backend."""
    result = rendered(everything(), templates)
    home, plain, cuda = (unit(result, f"launch-{n}.service") for n in ("home", "plain", "cuda0"))
    assert values(plain, "IPAddressDeny") == ["any"]
    assert values(home, "IPAddressDeny") == values(unit(result, "launch-rpc0.service"), "IPAddressDeny") == []
    (bound,) = values(home, "BindReadOnlyPaths")
    assert [specifiers(w) for w in systemd_words(bound, escapes=False)] == ['/home/u/a b:"%.gguf']
    assert values(plain, "ProtectHome") == ["yes"]
    assert values(plain, "SocketBindAllow") == ["tcp:8080"]
    assert values(cuda, "DeviceAllow") == ["char-nvidia rw", "char-nvidia-uvm rw", "char-nvidia-caps rw"]
    for text in (cuda,):
        assert values(text, "MemoryDenyWriteExecute") == values(text, "ProcSubset") == []
    assert "~@privileged @resources" in values(plain, "SystemCallFilter")
    assert "~@privileged" in values(cuda, "SystemCallFilter")


def test_deploy_settings(templates: dict[str, str]) -> None:
    """A user, another prefix, no sandbox."""
    deploy = DeployConfig(unit_prefix="llm", user="llama", hardening=False)
    result = rendered(fleet_plan(server_plan(), deploy=deploy), templates)
    text = unit(result, "llm-frontdoor.service")
    assert values(text, "User") == ["llama"]
    assert "DynamicUser" not in text
    assert "NoNewPrivileges" not in text
    assert values(text, "Slice") == ["llm-hot.slice"]
    assert 'subject.user == "llama"' in next(f.text for f in result.deployment.files if f.path.startswith("polkit/"))
    assert not [f.path for f in result.deployment.files if f.path.startswith("sysusers/")]


def test_provenance(templates: dict[str, str]) -> None:
    """Every text file says who made it; from what says fleet.json alone, so that one change is no change of all."""
    result = rendered(everything(), templates)
    digest = "sha256:" + "0" * 64
    expected = "# Generated by launch 0.1.0 for deployment epyc-hot_only. Do not edit."
    for file in result.deployment.files:
        assert (digest in file.text) == (file.path == "fleet.json")
        if not file.path.endswith(".json"):
            assert expected in [line.replace("//", "#") for line in file.text.splitlines()[:2]]
            assert file.text.endswith("\n")
    assert values(unit(result, "launch-plain.service"), "X-Launch-Digest") == [result.commands["plain"].digest]


@pytest.mark.parametrize("name", ["../etc", "a b", "a/b", "-x", ".x", "", "a.rung1", "epyc-hot_only"])
def test_names_that_would_leave_the_directory(name: str, templates: dict[str, str]) -> None:
    """A server's name becomes a path and a unit: an error, before anything is written."""
    result = rendered(fleet_plan(server_plan(name)), templates)
    assert ("render/bad-name", "error") in [(f.code, f.severity) for f in result.findings]


@pytest.mark.parametrize(
    ("prefix", "deployment", "user"),
    [
        ("launch", "epyc-hot.only", "launch-epyc-hot_only"),
        ("1fleet", "d", "_1fleet-d-df32fa5a"),
        ("launch", "epyc-a+b", "launch-epyc-a_b-979724fe"),
        ("a=b", "d", "a_b-d-4197697c"),
    ],
)
def test_users_have_names_that_sysusers_takes(
    prefix: str, deployment: str, user: str, templates: dict[str, str]
) -> None:
    """Letters, digits, _ and -, and no digit first; what two deployments would have in common is told apart."""
    plan = fleet_plan(server_plan("a"), deploy=DeployConfig(unit_prefix=prefix))
    result = rendered(msgspec.structs.replace(plan, deployment=deployment), templates)
    made = next(f.text for f in result.deployment.files if f.path.startswith("sysusers/"))
    assert re.findall(r"^u ([a-z_][a-z0-9_-]{0,30}) ", made, re.MULTILINE) == [user]
