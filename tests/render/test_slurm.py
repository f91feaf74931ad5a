"""Jobs for Slurm: scripts that bash reads, what they ask for, and what cannot be said."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.compiler import compile_fleet, render
from launcher.engine import recorded
from launcher.ir.config import ContainerConfig, DeployConfig, GpuConfig, ServiceConfig, SlurmConfig
from launcher.ir.fleet import SlurmUnit
from launcher.ir.plan import DeviceMemory, FleetPlan, ServicePlan
from launcher.manifest import decode_fleet, decode_routes
from launcher.render.fleet import Rendered, render_fleet
from launcher.render.units import MIB, memory_max
from launcher.runtime.deployment import read_deployment
from tests.ports import free_port
from tests.render.plan_factory import fleet_plan, server_plan

ENGINES = {"default": ("/opt/llama-server", recorded("b10434"))}
SHIPPED = (
    ("hardware=epyc", "profile=full"),
    ("hardware=sovereign", "profile=three_tier"),
    ("hardware=two_hosts", "profile=pair", "engine=embedded"),
)
GIB = 1024**3


@functools.lru_cache
def shipped(overrides: tuple[str, ...]) -> tuple[FleetPlan, Rendered]:
    """A fleet of the documents, as jobs."""
    compiled = compile_fleet([*overrides, "deploy=slurm"])
    return compiled.plan, render(compiled)


def rendered(templates: dict[str, str], *servers: Any, slurm: SlurmConfig | None = None, **changes: Any) -> Rendered:
    """A fleet of `servers` for Slurm."""
    deploy = DeployConfig(slurm=slurm or SlurmConfig(), units=False)
    return render_fleet(fleet_plan(*servers, deploy=deploy, **changes), ENGINES, templates, "0")


def script(found: Rendered, name: str) -> str:
    """The batch script of a server."""
    return next(f.text for f in found.deployment.files if f.path == f"slurm/jobs/{name}.sbatch")


def options(text: str) -> dict[str, str]:
    """What it asks sbatch for."""
    lines = (line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH "))
    return dict(line.partition("=")[::2] for line in lines)


def codes(found: Rendered) -> dict[str, str]:
    """Findings of this target, by code and key."""
    return {f"{f.code} {f.key}": f.message for f in found.findings if "slurm" in f.code or "slurm" in f.key}


@pytest.mark.parametrize("overrides", SHIPPED, ids=" ".join)
def test_shipped_fleets(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Bash reads every script; each asks for what was planned; the front reads its tables."""
    plan, found = shipped(overrides)
    own = [f for f in found.deployment.files if f.path.startswith("slurm/")]
    assert not any(f.path.startswith(("systemd", "polkit", "kubernetes")) for f in found.deployment.files)
    for file in own:
        path = tmp_path / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    scripts = sorted(tmp_path.rglob("*.sbatch"))
    assert scripts
    for path in scripts:
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=True)
        assert done.stderr == ""
    manifest, table = read_deployment(tmp_path / "slurm")
    assert isinstance(manifest.slurm, SlurmUnit)
    started = [server for server in plan.servers if server.starts != "never"]
    assert manifest.slurm.jobs.keys() == {server.name for server in started}
    for server in started:
        asked = options(manifest.slurm.jobs[server.name].script)
        limit = memory_max(server)
        if limit != "infinity":
            assert 0 <= int(asked["--mem"].removesuffix("M")) * MIB - int(limit) < MIB
        assert asked["--comment"] == server.name
        assert "--dependency" in asked
        assert (asked.get("--nodelist"), "--requeue" in asked) == (
            server.on or None, server.starts == "boot" and server.config.exclusive is None
        )  # fmt: skip
        target = table.targets[server.name]
        assert (target.host, target.start, target.on) == ("slurm.invalid", server.starts, "")
    for host in plan.config.hardware.hosts or ("",):
        turns: dict[str, int] = {}
        for server in (s for s in started if s.on == host):
            count = int(options(script(found, server.name))["--cpus-per-task"])
            turn = f"turn {server.config.exclusive}" if server.config.exclusive else server.name
            turns[turn] = max(turns.get(turn, 0), count)
        assert sum(turns.values()) <= plan.config.hardware.machine(host).cpu.logical_cores


def test_hostile_words(templates: dict[str, str], tmp_path: Path) -> None:
    """Arguments come to the server as they are, and nothing of whoever submits the job does."""
    words = ("--grammar", "a b$HOME`id`\"'\\\n%j#{{x}}", "--host", "x; touch /tmp/never")
    own = {"SLURM_JOB_ID": "7", "UID": "x", "port": "7", "place": "/x"}  # not the script's
    server = server_plan(extra_args=words, env={"A": "$(id) '\"\n", "GGML_CUDA_ENABLE": "1", **own}, port=0)
    text = script(rendered(templates, server), "frontdoor")
    program = tmp_path / "llama-server"
    show = "import json,os,sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    program.write_text(f"#!/usr/bin/env python3\n{show}\n")
    program.chmod(0o755)
    text = text.replace("/opt/llama-server", str(program)).replace("/shared/launch", str(tmp_path))
    env = {
        "PATH": os.environ["PATH"],
        "SLURM_JOB_ID": "5",
        "LLAMA_ARG_CTX_SIZE": "1",
        "HF_TOKEN": "x",
        "SLURMD_NODENAME": "n1",
    }
    done = subprocess.run(["bash"], input=text, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    assert said[0][-4:-2] == ["--grammar", words[1]]
    assert said[0][said[0].index("--host") + 1] == "0.0.0.0"
    assert said[1].items() >= {"A": "$(id) '\"\n", **own}.items()
    assert not {"LLAMA_ARG_CTX_SIZE", "HF_TOKEN"} & said[1].keys()
    place = json.loads((tmp_path / "epyc-hot_only/places/frontdoor.5.json").read_text())
    assert (place["job"], place["host"], place["state"], place["code"]) == ("5", "n1", "ended", 0)
    assert place["port"] == int(said[0][said[0].index("--port") + 1])


def test_restarts_are_bounded(templates: dict[str, str], tmp_path: Path) -> None:
    """A server that is always on is started again as often as a unit would be; one on demand is the runtime's."""
    both = (server_plan("hot", port=0), server_plan("warm", tier="warm", port=0))
    found = rendered(templates, *both)
    for name, runs in (("hot", 5), ("warm", 1)):
        text = script(found, name).replace("/opt/llama-server", "/bin/false").replace("/shared/launch", str(tmp_path))
        text = text.replace("sleep 3 &", "sleep 0 &")
        env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n1"}
        done = subprocess.run(["bash"], input=text, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout.count("launch: run")) == (1, runs), done.stderr
        place = json.loads((tmp_path / f"epyc-hot_only/places/{name}.5.json").read_text())
        assert (place["run"], place["state"], place["code"]) == (f"5.0.{runs}", "ended", 1)


def test_somebody_was_faster(templates: dict[str, str], tmp_path: Path) -> None:
    """A port that was free when it was looked at, and is another's when the server listens: it takes the next."""
    program, port = tmp_path / "llama-server", free_port()
    program.write_text(
        f"#!{sys.executable} -S\n"
        "import pathlib, socket, subprocess, sys\n"
        "port = sys.argv[sys.argv.index('--port') + 1]\n"
        f"here = pathlib.Path({str(tmp_path)!r}, 'other')\n"
        "if not here.exists():\n"
        "    words = 'import socket,sys; s=socket.create_server((\"127.0.0.1\",int(sys.argv[1])));'\n"
        "    words += 'print(1,flush=True); s.accept()'\n"
        "    own = {'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL, 'stdin': subprocess.DEVNULL}\n"
        "    other = subprocess.Popen([sys.executable, '-S', '-c', words, port], **own)\n"
        "    other.stdout.readline()\n"
        "    here.touch()\n"
        "    sys.exit(1)\n"
        "print('served on', port)\n"
    )
    program.chmod(0o755)
    text = script(rendered(templates, server_plan(port=port)), "frontdoor")
    text = text.replace("/opt/llama-server", str(program)).replace("/shared/launch", str(tmp_path))
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n1"}
    try:
        done = subprocess.run(["bash"], input=text, env=env, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert f"served on {port + 1000}" in done.stdout
        place = json.loads((tmp_path / "epyc-hot_only/places/frontdoor.5.json").read_text())
        assert (place["port"], place["state"], place["code"]) == (port + 1000, "ended", 0)
    finally:
        socket.create_connection(("127.0.0.1", port)).close()


def test_cards_and_nodes(templates: dict[str, str]) -> None:
    """Cards are generic resources, numbered from 0 in a job; hosts are nodes, or features of nodes."""
    gpus = {f"cuda{i}": GpuConfig(backend="cuda", vram_bytes=24 * GIB) for i in range(2)}
    gpus["vulkan0"] = GpuConfig(backend="vulkan", vram_bytes=8 * GIB)
    vram = DeviceMemory(device="cuda1", committed_bytes=GIB, peak_bytes=GIB)
    servers = (
        server_plan("first", devices=("cuda1",), memory=(vram,), port=0, on="alpha"),
        server_plan("second", devices=("vulkan0",), port=0, on="beta"),
    )
    found = rendered(
        templates, *servers, gpus=gpus, slurm=SlurmConfig(constraints={"beta": "big&avx512"}, gres={"cuda": "gpu:l4"})
    )
    first, second = (options(script(found, name)) for name in ("first", "second"))
    assert (first["--gres"], first["--nodelist"]) == ("gpu:l4:1", "alpha")
    assert "CUDA0" in script(found, "first")
    assert (second.get("--gres"), second["--constraint"], second.get("--nodelist")) == (None, "big&avx512", None)
    assert "vulkan" in codes(found)["render/left-out deploy.slurm"]
    manifest = decode_fleet(next(f.text for f in found.deployment.files if f.path == "slurm/fleet.json").encode(), "x")
    assert {need.device for unit in manifest.servers for need in unit.memory} == {"alpha/cuda1", "beta/ram"}


def test_what_cannot_be(templates: dict[str, str]) -> None:
    """What no job could get, or sbatch would read as something else, is an error before anything is submitted."""
    gpus = {"cuda0": GpuConfig(backend="cuda", vram_bytes=24 * GIB)}
    big = DeviceMemory(device="ram", committed_bytes=600 * GIB, peak_bytes=600 * GIB)
    crowd = [server_plan(name, port=0, devices=("cuda0",), memory=(big,)) for name in ("a", "b")]
    found = rendered(templates, *crowd, gpus=gpus)
    assert {key.partition(" ")[0] for key in codes(found)} == {
        "render/slurm-card",
        "render/slurm-node",
        "render/slurm-open",
    }
    slurm = SlurmConfig(
        partition="a b",
        time='1" --x',
        options=("--nodes=2", "x", "--reservation=y"),
        shared_dir="relative",
        constraints={"c": "d e"},
    )
    found = rendered(templates, server_plan(port=0, model_path="models/x.gguf"), slurm=slurm)
    keys = {key for key in codes(found) if "slurm-open" not in key}
    assert keys == {
        *(
            f"render/slurm-option deploy.slurm.{k}"
            for k in ("partition", "time", "options.0", "options.1", "constraints.c")
        ),
        "render/slurm-path deploy.slurm.shared_dir",
        "render/slurm-path servers.frontdoor.model",
    }
    one = server_plan(
        "a", port=0, on="x", memory=(DeviceMemory(device="ram", committed_bytes=2 << 40, peak_bytes=2 << 40),)
    )
    found = rendered(templates, one, slurm=SlurmConfig(constraints={"x": "big"}))
    assert "render/slurm-node servers.a" in codes(found)
    assert codes(rendered(templates, server_plan(port=0))).keys() == {"render/slurm-open deploy.slurm.listen"}


REFUSED = ("--job=x", "--arr=1-3", "-a1-3", "-Jx", "--mem-per-cpu=1G", "--depend=y", "-Mother", "--version")
TAKEN = ("--reservation=y", "--exclusive", "--mem-bind=local", "-x", "--chdir=/a", "--hint=nomultithread")


def test_options_that_sbatch_takes_for_ours(templates: dict[str, str]) -> None:
    """Abbreviations and glued values would take the name that keeps a server from running twice; no time is another."""
    slurm = SlurmConfig(options=(*REFUSED, *TAKEN), time="banana", listen="/run/x.sock")
    found = codes(rendered(templates, server_plan(port=0), slurm=slurm))
    options = {f"options.{i}" for i in range(len(REFUSED))}
    bad = {key.partition(" ")[2] for key in found if key.startswith("render/slurm-option")}
    assert bad == {f"deploy.slurm.{key}" for key in (*options, "time", "listen")}
    for time in ("60", "1:30:00", "2-00", "1-00:00:00", "UNLIMITED"):
        assert "render/slurm-option deploy.slurm.time" not in codes(
            rendered(templates, server_plan(port=0), slurm=SlurmConfig(time=time))
        )


def test_peers_are_no_jobs(templates: dict[str, str]) -> None:
    """Nobody would start the process of a host of the fleet; one that somebody else runs is asked by its own server."""
    lender = ServiceConfig(command=("/opt/ggml-rpc-server",), host="10.0.0.2", protocol="rpc")
    beside = ServicePlan(name="b-rpc0", starts="boot", port=50052, on="two", config=lender)
    gpus = {f"{n}-rpc0": GpuConfig(backend="rpc", vram_bytes=GIB, endpoint=f"10.0.0.{n}:5") for n in "12"}
    servers = [server_plan(n, port=0, devices=(f"{n}-rpc0",)) for n in "12"]
    found = rendered(templates, *servers, gpus=gpus)
    assert all(f"--rpc 10.0.0.{n}:5" in script(found, n) for n in "12")
    assert [f.code for f in found.findings if f.severity == "error"] == []
    found = rendered(templates, *servers, gpus=gpus, services=(beside,))
    finding = next(f for f in found.findings if f.code == "render/slurm-peer")
    assert (finding.severity, finding.key) == ("error", "servers.b.rpc.0")
    assert "10.0.0.2:50052" in finding.fixes[0].override


def test_with_a_key(templates: dict[str, str]) -> None:
    """Servers that ask for a key may listen where others reach them."""
    keyed = server_plan(port=0, extra_args=("--api-key-file", "/shared/key"))
    assert codes(rendered(templates, keyed)) == {}


def test_what_is_left_out(templates: dict[str, str]) -> None:
    """What the node decides, and processes that are no server, are said."""
    service = ServiceConfig(container=ContainerConfig(image="store:1"))
    beside = ServicePlan(name="store", starts="boot", port=9000, config=service)
    servers = (
        server_plan("pinned", port=0, cpus="0-3", load_mode="mmap+mlock", cache_ram_mib=-1),
        server_plan("many", port=0, threads=500),
    )
    found = rendered(templates, *servers, services=(beside,))
    said = " ".join(f.message for f in found.findings if f.code == "render/left-out")
    for part in ("CPUs and NUMA nodes", "locked memory", "a memory limit", "services beside", "threads for which"):
        assert part in said
    assert "--mem" not in options(script(found, "pinned"))
    assert "taskset" not in script(found, "pinned")


def test_names() -> None:
    """No two processes have jobs of one name, but those that take turns."""
    _, found = shipped(SHIPPED[1])
    manifest = decode_fleet(next(f.text for f in found.deployment.files if f.path == "slurm/fleet.json").encode(), "x")
    assert isinstance(manifest.slurm, SlurmUnit)
    by_name: dict[str, set[str]] = {}
    for unit in manifest.servers:
        by_name.setdefault(manifest.slurm.jobs[unit.name].name, set()).add(unit.exclusive or unit.name)
    assert all(len(turns) == 1 for turns in by_name.values())
    assert len(by_name) == len({unit.exclusive or unit.name for unit in manifest.servers})
    routes = decode_routes(next(f.text for f in found.deployment.files if f.path == "slurm/routes.json").encode(), "x")
    assert routes.targets.keys() >= {unit.name for unit in manifest.servers}
