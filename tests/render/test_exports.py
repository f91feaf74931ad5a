"""Files for other programs, judged by those programs where they can be had."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from launcher.engine import probe, recorded
from launcher.ir.config import DeployConfig, ExportName, FaceConfig
from launcher.ir.dialect import Dialect
from launcher.ir.plan import FleetPlan
from launcher.render.exports import EXPORTS
from launcher.render.fleet import Rendered, render_fleet
from tests.render.conftest import get_json, running
from tests.render.plan_factory import fleet_plan, server_plan

pytestmark = pytest.mark.xdist_group("exports")  # one worker fetches promtool

ALL = DeployConfig(targets=tuple(EXPORTS))
LLAMA_SWAP_KEYS = {"cmd", "proxy", "checkEndpoint", "env", "aliases", "filters", "ttl"}
"""Keys of a model that we write, all in llama-swap's documented configuration (README, config.example.yaml)."""


def a_fleet(**changes: Any) -> FleetPlan:
    """Two residents, one with hostile words, an exclusive pair, one that is never started."""
    return fleet_plan(
        server_plan("frontdoor", aliases=("gpt-4o",), env={"X": "a b\"c'd"}),
        server_plan("hostile", port=8081, roles=("worker",), extra_args=("--reverse-prompt", "a b\"c'd\n%$HOME;#é")),
        server_plan("one", port=8082, exclusive="gpu", default=True, roles=("worker",)),
        server_plan("two", port=8082, exclusive="gpu", tier="warm"),
        server_plan("cold", port=8083, tier="cold"),
        deploy=ALL,
        **changes,
    )


@pytest.fixture(scope="module")
def result(request: pytest.FixtureRequest) -> Rendered:
    """That fleet, rendered for every target."""
    engines = {"default": ("/opt/llama-server", recorded("b10434"))}
    return render_fleet(a_fleet(), engines, request.getfixturevalue("templates"), "0.1.0")


def export(result: Rendered, target: ExportName) -> str:
    """Text of an export."""
    return next(f.text for f in result.deployment.files if f.path == f"exports/{EXPORTS[target].file}")


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, of the machine or out of Debian's package (not installed)."""
    if found := shutil.which("promtool"):
        return found
    folder = tmp_path_factory.mktemp("prometheus")
    folder.chmod(0o777)
    if shutil.which("apt-get") and shutil.which("dpkg"):
        subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, capture_output=True, check=False)
    package = next(folder.glob("*.deb"), None)
    if package is None:
        pytest.skip("promtool is not installed, and Debian's prometheus package cannot be fetched")
    subprocess.run(["dpkg", "-x", package, folder], check=True)
    return str(folder / "usr/bin/promtool")


def test_what_cannot_be_said_is_said(result: Rendered) -> None:
    """The INI has no way to write one server's words: a warning, and the others are there."""
    assert [(f.code, f.severity, f.key) for f in result.findings] == [("render/left-out", "warning", "servers.hostile")]
    assert "[hostile]" not in export(result, "router")


def test_a_unix_socket(templates: dict[str, str]) -> None:
    """Who asks by a URL or an address leaves it out and says so; the router gives its own addresses."""
    fleet = fleet_plan(server_plan("a", port=0, host="/run/launch-a/http.sock"), server_plan("b"), deploy=ALL)
    rendered = render_fleet(fleet, {"default": ("/opt/llama-server", recorded("b10434"))}, templates, "0.1.0")
    said = [f.message for f in rendered.findings if f.code == "render/left-out"]
    assert [line.partition(": ")[0] for line in said] == [
        f"{name} leaves out a" for name in ("llama-swap.yaml", "prometheus.yml", "alerts.yml")
    ]
    assert all("unix socket" in line for line in said)
    assert "[a]" in export(rendered, "router")
    for target in ("llama_swap", "prometheus", "alerts"):
        assert "/run/launch-a" not in export(rendered, target)


def test_what_is_done_to_requests(templates: dict[str, str]) -> None:
    """llama-swap's filters say it; what neither says is a warning, a field each."""
    changes: dict[str, Any] = {"request_set": {"top_p": 0.9}, "request_strip": ("temperature", "top_k")}
    fleet = fleet_plan(server_plan("a", faces={"a:high": FaceConfig(request_set={"x": 1})}, **changes), deploy=ALL)
    rendered = render_fleet(fleet, {"default": ("/opt/llama-server", recorded("b10434"))}, templates, "0.1.0")
    model = yaml.safe_load(export(rendered, "llama_swap"))["models"]["a"]
    assert model["filters"] == {"stripParams": "temperature, top_k", "setParams": {"top_p": 0.9}}
    said = [(f.message.split()[0], f.key.rpartition(".")[2]) for f in rendered.findings]
    lost = ["faces", "request_set", "request_strip"]
    assert said == [("llama-swap.yaml", "faces"), *(("router.ini", field) for field in lost)]


def test_llama_swap(result: Rendered) -> None:
    """Documented keys only; cmd splits into argv, hostile words included; exclusive servers swap, residents stay."""
    document = yaml.safe_load(export(result, "llama_swap"))
    assert set(document) == {"healthCheckTimeout", "models", "groups", "hooks"}
    assert list(document["models"]) == ["frontdoor", "hostile", "one", "two"]
    for name, model in document["models"].items():
        assert set(model) <= LLAMA_SWAP_KEYS
        assert tuple(shlex.split(model["cmd"])) == result.commands[name].argv
    assert document["models"]["frontdoor"]["env"] == ["X=a b\"c'd"]
    assert document["models"]["frontdoor"]["aliases"] == ["gpt-4o"]
    assert "aliases" not in document["models"]["one"]
    assert document["groups"]["gpu"] == {
        "swap": True,
        "exclusive": False,
        "persistent": False,
        "members": ["one", "two"],
    }
    assert document["groups"]["tier-hot"]["persistent"] is True
    assert document["hooks"]["on_startup"]["preload"] == ["frontdoor", "hostile", "one"]


@pytest.mark.parametrize("check", [("config", "--syntax-only", "prometheus"), ("rules", "alerts")])
def test_prometheus(check: tuple[str, ...], result: Rendered, promtool: str, tmp_path: Path) -> None:
    """Prometheus's own checker passes both files; what starts on demand is not scraped."""
    path = tmp_path / "file.yml"
    path.write_text(export(result, check[-1]))
    subprocess.run([promtool, "check", *check[:-1], path], check=True, capture_output=True)
    text = export(result, "prometheus")
    assert '"two"' not in text
    assert '"127.0.0.1:8080"' in text


def test_alerts_and_panels_select_labels_that_are_scraped(result: Rendered) -> None:
    """Whatever `label="value"` an expression selects by, some scrape target is labelled with, or the front writes."""
    targets = [
        t for job in yaml.safe_load(export(result, "prometheus"))["scrape_configs"] for t in job["static_configs"]
    ]
    given = {(name, value) for target in targets for name, value in target["labels"].items()}
    rules = yaml.safe_load(export(result, "alerts"))["groups"][0]["rules"]
    panels = json.loads(export(result, "grafana"))["panels"]
    expressions = [rule["expr"] for rule in rules] + [panel["targets"][0]["expr"] for panel in panels]
    selected = {pair for text in expressions for pair in re.findall(r'(\w+)="([^"]*)"', text) if pair[0] != "job"}
    assert ("deployment", "epyc-hot_only") in selected
    assert selected <= given


@pytest.mark.parametrize("front", [True, False])
def test_several_hosts(templates: dict[str, str], promtool: str, tmp_path: Path, *, front: bool) -> None:
    """The host of the front scrapes all hosts' servers; another one its own, and no front that it does not have."""
    own, other = server_plan("own"), server_plan("other", host="10.0.0.2", on="two")
    plan = fleet_plan(own, deploy=ALL, front=front, remote=(other,) if front else ())
    rendered = render_fleet(plan, {"default": ("/bin/true", recorded("b10434"))}, templates, "0.1.0")
    text = export(rendered, "prometheus")
    assert ('"10.0.0.2:8080"' in text, "launch-front" in text, "LaunchFrontDown" in export(rendered, "alerts")) == (
        front, front, front,
    )  # fmt: skip
    for check in (("config", "--syntax-only", "prometheus"), ("rules", "alerts")):
        (tmp_path / check[-1]).write_text(export(rendered, check[-1]))
        subprocess.run([promtool, "check", *check[:-1], tmp_path / check[-1]], check=True, capture_output=True)


def test_grafana(result: Rendered) -> None:
    """A dashboard of panels whose metrics the front and the runtime really have."""
    from launcher.route import pages
    from launcher.runtime import observing

    board = json.loads(export(result, "grafana"))
    source = "".join(Path(str(room.__file__)).read_text() for room in (pages, observing))
    assert len(board["panels"]) == 11
    for panel in board["panels"]:
        (target,) = panel["targets"]
        metric = re.search(r"([a-z_]+)\{", target["expr"])
        assert metric is not None
        known = metric[1].removesuffix("_bucket")
        assert known in source or f"launch_target_{known.removeprefix('launch_target_')}" == known


def test_the_router_takes_the_presets(
    llama_server: Path,
    tiny_models: Callable[..., Path],
    templates: dict[str, str],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> None:
    """The real llama-server in router mode gives its children exactly the planned flags, and one answers."""
    dialect = probe(llama_server, None)
    model = str(tiny_models("llama"))
    plan = fleet_plan(
        server_plan("alpha", model_path=model, n_ctx=256, n_ctx_per_slot=128, cache_ram_mib=0),
        server_plan("beta", model_path=model, tier="warm", kv_unified=True, flash_attention=False, load_mode="none"),
        deploy=ALL,
    )
    rendered = render_fleet(plan, {"default": (str(llama_server), dialect)}, templates, "0.1.0")
    (tmp_path / "router.ini").write_text(export(rendered, "router"))
    port = free_port()
    argv = (str(llama_server), "--models-preset", str(tmp_path / "router.ini"), "--port", str(port), "--offline")
    url = f"http://127.0.0.1:{port}"
    own = {"--host", "--port", "--alias"}
    with running(argv, url, tmp_path / "log"):
        models = {m["id"]: m["status"] for m in get_json(f"{url}/v1/models")["data"]}
        models.pop("default", None)  # what b10068 calls the section of defaults
        assert set(models) == {"alpha", "beta"}
        for name, status in models.items():
            assert pairs(status["args"], own, dialect) >= pairs(rendered.commands[name].words, own, dialect)
        deadline = time.monotonic() + 90
        while {m["id"]: m["status"]["value"] for m in get_json(f"{url}/v1/models")["data"]}["alpha"] != "loaded":
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.1)
        body = json.dumps({"model": "alpha", "prompt": "1", "max_tokens": 1})
        said = subprocess.run(
            ["curl", "-sf", "-d", body, "-H", "Content-Type: application/json", f"{url}/v1/completions"],
            capture_output=True,
            check=True,
            env=os.environ,
        )
        assert b"choices" in said.stdout


def pairs(words: Any, without: set[str], dialect: Dialect) -> set[tuple[Any, ...]]:
    """Flags by their first name, whether negated, with their values; the binary and flags in `without` left out."""
    groups: list[list[str]] = []
    for word in list(words)[1:]:
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    index = dialect.index()
    return {(index[f].names[0], f in index[f].negations, *values) for f, *values in groups if f not in without}


def test_missed_targets_have_an_alert(
    result: Rendered, request: pytest.FixtureRequest, promtool: str, tmp_path: Path
) -> None:
    """Where there are targets; a worker's speed is the orchestration's unless it has one of its own, and 0 is none."""
    from launcher.compiler import compile_fleet
    from launcher.render.fleet_manifest import targets_of

    assert "LaunchTargetMissed" not in export(result, "alerts")
    own = ("servers.mythomax_13b.tokens_per_second_min=0", "servers.gpt_oss_20b.tokens_per_second_min=35")
    compiled = compile_fleet(["hardware=sovereign", "profile=three_tier", "deploy.targets=[alerts]", *own])
    found = {(t.name, t.server): t.limit for t in targets_of(compiled.plan)}
    assert found == {
        ("swap_seconds", ""): 3,
        ("tokens_per_second", "qwen_coder_32b"): 20,
        ("tokens_per_second", "nemotron_30b"): 20,
        ("tokens_per_second", "gpt_oss_20b"): 35,
    }
    templates = request.getfixturevalue("templates")
    text = export(render_fleet(compiled.plan, compiled.engines, templates, "0.1.0"), "alerts")
    assert "launch_target_met" in text
    path = tmp_path / "alerts.yml"
    path.write_text(text)
    subprocess.run([promtool, "check", "rules", path], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("deployment", "uid"), [("epyc-full", "launch-epyc-full"), ("epyc-qwen2.5+v", "launch-epyc-qwen2-5-v")]
)
def test_a_dashboard_has_a_name_that_grafana_takes(deployment: str, uid: str, templates: dict[str, str]) -> None:
    """Of letters, digits, _ and -, 40 at most (pkg/util/shortid_generator.go); its title says what it is."""
    plan = msgspec.structs.replace(a_fleet(), deployment=deployment)
    engines = {"default": ("/opt/llama-server", recorded("b10434"))}
    dashboard = json.loads(export(render_fleet(plan, engines, templates, "0.1.0"), "grafana"))
    assert (dashboard["uid"], dashboard["title"]) == (uid, f"launch {deployment}")
