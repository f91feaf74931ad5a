"""A fleet as files, the runtime's manifest, and the routing table."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.engine import recorded
from launcher.ir.config import (
    ContainerConfig,
    EngineConfig,
    EscalationConfig,
    HookConfig,
    OrchestrationConfig,
    PoolConfig,
    RoutingConfig,
    RuntimeConfig,
    ServiceConfig,
)
from launcher.ir.dialect import Dialect
from launcher.ir.measured import ServerSpeed
from launcher.ir.plan import FleetPlan, ServicePlan
from launcher.manifest import argv_digest, decode_fleet, decode_routes
from launcher.render import render_commands
from launcher.render.fleet import Rendered, render_fleet
from tests.render.plan_factory import fleet_plan, server_plan

NEWEST = recorded("b10434")
ENGINES = {"default": ("/opt/llama-server", NEWEST), "old": ("/opt/old-server", recorded("b10068"))}


def service(name: str, port: int, **config: Any) -> ServicePlan:
    """A service of a plan."""
    return ServicePlan(name=name, port=port, config=ServiceConfig(**config))


def seed_fleet(**changes: Any) -> FleetPlan:
    """Servers of several tiers with roles, pools, chains, services and hooks, as in the second seed document."""
    settings: dict[str, Any] = {
        "services": (
            service("orchestrator", 8000, builtin="front"),
            service(
                "nextplaid",
                8088,
                container=ContainerConfig(image="x@sha256:1", ports=("127.0.0.1:8088:8080",), volumes=("/i:/i:ro",)),
                env={"B": "2"},
            ),
            service("ocr", 9001, command=("uvicorn", "ocr:app"), fatal=False, env={"B": "2", "A": "1"}),
        ),
        "hooks": {
            "warm": HookConfig(http="embedder/embedding", body={"content": "x"}),
            "gone": HookConfig(http="vision/completion"),
            "off": HookConfig(command=("true",), enabled=False),
            "seed": HookConfig(command=("seed",), on_failure="fail"),
        },
        "routing": RoutingConfig(
            default="frontdoor",
            pools={
                "code": PoolConfig(servers=("worker_explore", "fast", "gone"), task_types=("boilerplate",)),
                "none": PoolConfig(servers=("gone",)),
            },
            fallback={
                "worker_math": ("worker_general", "frontdoor"),
                "coder": ("frontdoor", "gone"),
                "gone": ("coder",),
                "frontdoor": (),
            },
            escalation=EscalationConfig(chain={"worker_explore": "coder", "coder": "architect", "frontdoor": "coder"}),
            timeouts_s={"coder": 120},
        ),
        "engines": {
            "default": EngineConfig(
                binary="/opt/llama-server", dialect="b10434", library_path=("/cuda", "/opt"), env={"OMP": "1", "Z": "0"}
            ),
            "old": EngineConfig(binary="/opt/old-server", dialect="b10068"),
        },
        **changes,
    }
    return fleet_plan(
        server_plan("embedder_0", port=8090, roles=("embedder",), embedding=True, pooling="cls", model="bge"),
        server_plan("embedder_1", port=8091, roles=("embedder",), embedding=True, pooling="cls", model="bge"),
        server_plan("fast", port=8102, tier="warm", roles=("worker_general",), engine="old"),
        server_plan("frontdoor", port=8080, aliases=("gpt-4o",), env={"OMP": "2"}, request_defaults={"top_k": 20}),
        server_plan("coder", port=8081, roles=("coder", "summarize"), model="qwen", draft_path=None),
        server_plan("worker_explore", port=8082, roles=("worker_math", "worker_general"), projector_path="/p.gguf"),
        **settings,
    )


@pytest.fixture(scope="module")
def result(request: pytest.FixtureRequest) -> Rendered:
    """That fleet, rendered."""
    return render_fleet(seed_fleet(), ENGINES, request.getfixturevalue("templates"), "0.1.0")


def test_files(result: Rendered) -> None:
    """Sorted by path, each once; scripts are executable; the JSON files are the manifest and the table.

    Beside the two and a script a server: six servers, two for each of two tiers, one command and one container, the
    runtime, its user and its rights.
    """
    files = {f.path: f for f in result.deployment.files}
    assert list(files) == sorted(files)
    assert len(files) == len(result.deployment.files) == 2 + 6 + (6 + 2 * 2 + 1 + 1 + 3)
    assert {p for p, f in files.items() if f.executable} == {p for p in files if p.startswith("commands/")}
    assert decode_fleet(files["fleet.json"].text.encode()) == result.manifest
    assert decode_routes(files["routes.json"].text.encode()) == result.routes


def test_the_same_input_gives_the_same_bytes(result: Rendered, templates: dict[str, str]) -> None:
    """Twice the same; templates and engines in any order."""
    shuffled = dict(reversed(templates.items()))
    again = render_fleet(seed_fleet(), dict(reversed(ENGINES.items())), shuffled, "0.1.0")
    assert again.deployment == result.deployment


def test_nothing_of_this_machine_or_moment(result: Rendered) -> None:
    """No path below this checkout or the home, no date."""
    for file in result.deployment.files:
        assert str(Path(__file__).parents[2]) not in file.text
        assert str(Path.home()) not in file.text
        assert not re.search(r"\b20\d\d-\d\d-\d\d", file.text)


def test_an_unknown_template_name_is_an_error(templates: dict[str, str]) -> None:
    """StrictUndefined: a template that asks for what nobody gives fails, it is not left blank."""
    from jinja2 import UndefinedError

    broken = {**templates, "commands/server.sh.j2": "{{ no_such_value }}"}
    with pytest.raises(UndefinedError):
        render_fleet(seed_fleet(), ENGINES, broken, "0.1.0")


def test_scripts_run_the_argv_with_its_environment(templates: dict[str, str], tmp_path: Path) -> None:
    """A script, run by sh with a program that prints its words, prints argv and the environment of the manifest."""
    printer = tmp_path / "printer"
    printer.write_text('#!/bin/sh\nprintf "%s\\0" "$OMP" "$LD_LIBRARY_PATH" "$0" "$@"\n')
    printer.chmod(0o755)
    hostile = server_plan(extra_args=("--reverse-prompt", 'a b"$HOME\\\n;%'), env={"OMP": "it's $X\n2"})
    engine = EngineConfig(binary=str(printer), dialect="b10434", library_path=("/a", "/b"))
    plan = fleet_plan(hostile, engines={"default": engine})
    rendered = render_fleet(plan, {"default": (str(printer), NEWEST)}, templates, "0.1.0")
    script = tmp_path / "frontdoor.sh"
    script.write_text(next(f.text for f in rendered.deployment.files if f.path == "commands/frontdoor.sh"))
    out = subprocess.run(["sh", script], capture_output=True, check=True).stdout
    unit = rendered.manifest.servers[0]
    assert out.decode().split("\0")[:-1] == [unit.env["OMP"], "/a:/b", *unit.argv]


def test_findings_of_every_server_are_collected(templates: dict[str, str]) -> None:
    """One bad flag in each of two servers, one render."""
    servers = [server_plan(name, extra_args=("--lookup",)) for name in ("a", "b")]
    rendered = render_fleet(fleet_plan(*servers), ENGINES, templates, "0.1.0")
    assert [f.key for f in rendered.findings] == ["servers.a.extra_args.0", "servers.b.extra_args.0"]


def test_commands_that_are_spelled_already_are_judged_once(templates: dict[str, str]) -> None:
    """Whoever spelled them has said what is wrong with them: the files say it no second time."""
    plan = fleet_plan(server_plan(extra_args=("--defrag-thold", "0.1")))
    spelled, found = render_commands(plan, ENGINES)
    again = render_fleet(plan, ENGINES, templates, "0.1.0")
    rendered = render_fleet(plan, ENGINES, templates, "0.1.0", spelled)
    assert [f.code for f in found] == ["engine/deprecated-flag"]
    assert (rendered.deployment, rendered.commands) == (again.deployment, spelled)
    assert [f for f in again.findings if f not in rendered.findings] == list(found)


# --- manifest ------------------------------------------------------------------------------------------------


def test_servers_of_the_manifest(result: Rendered) -> None:
    """Start order is kept; argv, environment, files, tier and probe are settled."""
    units = {u.name: u for u in result.manifest.servers}
    assert list(units) == ["embedder_0", "embedder_1", "fast", "frontdoor", "coder", "worker_explore"]
    assert units["frontdoor"].argv[0] == "/opt/llama-server"
    assert units["fast"].argv[0] == "/opt/old-server"
    assert "--load-mode" not in units["fast"].argv
    assert units["frontdoor"].env == {"LD_LIBRARY_PATH": "/cuda:/opt", "OMP": "2", "Z": "0"}
    assert units["fast"].env == {}
    assert units["worker_explore"].files == ("/models/smollm2-q4_1.gguf", "/p.gguf")
    assert (units["fast"].start, units["fast"].idle_timeout_s, units["fast"].expansion_threshold) == ("demand", 300, 4)
    assert [units[n].probe for n in ("embedder_0", "coder")] == ["embedding", "completion"]
    assert units["coder"].argv_digest == argv_digest(units["coder"].argv)
    (need,) = units["coder"].memory
    assert need.peak_bytes == server_plan().memory[0].peak_bytes


def test_a_placement_prefix_is_part_of_the_supervised_argv(templates: dict[str, str]) -> None:
    """The supervisor has no CPUAffinity= of its own."""
    rendered = render_fleet(fleet_plan(server_plan(cpus="0")), ENGINES, templates, "0.1.0")
    assert rendered.manifest.servers[0].argv[:4] == ("taskset", "--cpu-list", "0", "/opt/llama-server")


def test_services_of_the_manifest(result: Rendered) -> None:
    """Our front has no argv, a command its own, a container one of the container tool."""
    services = {s.name: s for s in result.manifest.services}
    assert (services["orchestrator"].argv, services["orchestrator"].builtin) == ((), "front")
    assert services["ocr"].argv == ("uvicorn", "ocr:app")
    assert services["ocr"].env == {"A": "1", "B": "2"}
    assert services["nextplaid"].container == "x@sha256:1"
    run = (
        "podman run --rm --replace --name=launch-nextplaid --read-only --tmpfs=/tmp --cap-drop=all"
        " --security-opt=no-new-privileges --publish=127.0.0.1:8088:8080 --volume=/i:/i:ro --env=B=2"
    )
    assert services["nextplaid"].argv == (*run.split(), "x@sha256:1")


def test_docker_is_a_choice(templates: dict[str, str]) -> None:
    """Confined as podman's, with a memory limit, and without a word that docker does not know."""
    box = ServiceConfig(container=ContainerConfig(image="i", ports=("81:80", "0.0.0.0:82:80")), ram_bytes=1 << 30)
    plan = fleet_plan(
        server_plan(),
        services=(ServicePlan(name="box", port=81, config=box),),
        runtime=RuntimeConfig(container_engine="docker"),
    )
    (unit,) = render_fleet(plan, ENGINES, templates, "0").manifest.services
    assert unit.argv[:2] == ("docker", "run")
    assert "--replace" not in unit.argv
    assert f"--memory={(1 << 30) * 5 // 4 + (256 << 20)}" in unit.argv
    assert [w for w in unit.argv if w.startswith("--publish")] == [
        "--publish=127.0.0.1:81:80",
        "--publish=0.0.0.0:82:80",
    ]


def test_hooks_of_the_manifest(result: Rendered) -> None:
    """In order, enabled ones only; a role becomes a server; one for a server that does not run is left out, aloud."""
    assert [(h.name, h.server, h.path) for h in result.manifest.hooks] == [
        ("warm", "embedder_0", "/embedding"),
        ("seed", None, None),
    ]
    assert [(f.code, f.severity, f.key) for f in result.findings] == [("render/hook-left-out", "note", "hooks.gone")]


# --- routes --------------------------------------------------------------------------------------------------


def test_names(result: Rendered) -> None:
    """Servers, roles, aliases, models; the server so named first, and what is resident before what must start."""
    names = result.routes.names
    assert names["frontdoor"] == ("frontdoor",)
    assert names["gpt-4o"] == ("frontdoor",)
    assert names["embedder"] == ("embedder_0", "embedder_1")
    assert names["worker_general"] == ("worker_explore", "fast")
    assert names["smollm2"] == ("frontdoor", "worker_explore", "fast")
    assert names["qwen@q4_1"] == ("coder",)
    assert "gone" not in names
    assert set(itertools.chain.from_iterable(names.values())) == set(result.routes.targets)


def test_of_equals_the_faster_is_first(templates: dict[str, str]) -> None:
    """By what the plan expects; resident comes before fast; where one is not known, all keep the plan's order."""
    chat = {"roles": ("chat",)}
    servers = [server_plan(name, **chat) for name in ("slow", "fast", "same")]
    servers.append(server_plan("demand", starts="demand", tier="warm", **chat))
    speeds = [("slow", 10.0), ("fast", 40.0), ("same", 10.0), ("demand", 90.0)]
    known = tuple(
        ServerSpeed(server=name, decode=(value, value), source="stated", basis="", touched_bytes={})
        for name, value in speeds
    )
    plan = fleet_plan(*servers)

    def chosen(*known: ServerSpeed) -> tuple[str, ...]:
        """Who answers to the role, in order."""
        table = render_fleet(msgspec.structs.replace(plan, speeds=known), ENGINES, templates, "0.1.0").routes
        return table.names["chat"]

    assert chosen(*known) == ("fast", "slow", "same", "demand")
    assert chosen() == chosen(*known[:3]) == ("slow", "fast", "same", "demand")


def test_pools(result: Rendered) -> None:
    """What this plan does not run is left out; the threshold is that of the tier that expands."""
    (pool,) = result.routes.pools
    assert (pool.name, pool.servers, pool.expansion_threshold) == ("code", ("worker_explore", "fast"), 4)


def test_fallback_and_escalation(result: Rendered) -> None:
    """Values are servers, never the one that failed; chains that lead nowhere are left out."""
    assert result.routes.fallback == {"worker_math": ("fast", "frontdoor"), "coder": ("frontdoor",)}
    assert result.routes.escalation == {"worker_explore": "coder", "frontdoor": "coder"}


def test_targets_and_front(result: Rendered) -> None:
    """Modalities, kinds and defaults; the port of the service that is our front."""
    targets = result.routes.targets
    assert targets["worker_explore"].modalities == ("text", "image")
    assert targets["embedder_0"].embedding
    assert targets["frontdoor"].request_defaults == {"top_k": 20}
    assert targets["fast"].start == "demand"
    assert result.routes.front.port == 8000
    assert result.routes.default == "frontdoor"
    assert result.routes.timeouts_s == {"coder": 120}


@pytest.mark.parametrize(
    ("default", "servers", "expected"),
    [
        (None, ("a",), "a"),
        (None, ("a", "b"), None),
        ("b", ("a", "b"), "b"),
        ("gone", ("a",), None),
    ],
)
def test_default(
    default: str | None, servers: tuple[str, ...], expected: str | None, templates: dict[str, str]
) -> None:
    """As written; else the only server that completes text, embedders not counted."""
    plan = fleet_plan(
        *(server_plan(name) for name in servers),
        server_plan("e", embedding=True),
        routing=RoutingConfig(default=default),
    )
    assert render_fleet(plan, ENGINES, templates, "0.1.0").routes.default == expected


def test_orchestration_travels_as_plain_values(templates: dict[str, str]) -> None:
    """The runtime reads no config types."""
    orchestration = OrchestrationConfig(router="frontdoor", workers=("coder",))
    routes = render_fleet(seed_fleet(orchestration=orchestration), ENGINES, templates, "0.1.0").routes
    assert routes.orchestration == orchestration


def test_an_empty_fleet(templates: dict[str, str]) -> None:
    """No servers: documents, no units."""
    rendered = render_fleet(fleet_plan(), {}, templates, "0.1.0")
    assert [f.path for f in rendered.deployment.files] == [
        "fleet.json",
        "routes.json",
    ]
    assert rendered.routes.names == {}


def test_argv_needs_no_templates_engine() -> None:
    """`launch plan` renders argv without importing jinja2."""
    code = "import sys, launcher.render as r; r.server_command; sys.exit('jinja2' in sys.modules)"
    import sys

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dialects_are_per_engine() -> None:
    """Two builds in one fleet speak differently (guards the fixture)."""
    assert isinstance(ENGINES["old"][1], Dialect)
    assert ENGINES["old"][1].flags != NEWEST.flags
