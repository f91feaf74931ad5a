"""`launch plan`, `render`, `config`, `check` and `inspect` as whole processes."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from launcher.ir.answers import json_schema
from tests.cli.conftest import Cli

EPYC = ("hardware=epyc", "profile=hot_only")
SOVEREIGN = ("hardware=sovereign", "profile=three_tier")
HOT_PORTS = {*range(8080, 8088), *range(8090, 8096)}


def test_the_epyc_fleet_is_planned_on_any_machine(cli: Cli) -> None:
    """All servers and services of the second document, totals that add up, a document of the published schema."""
    plan = cli.json("plan", *EPYC)
    jsonschema.validate(plan, json_schema("launch.plan/v1"))
    assert {s["port"] for s in plan["servers"]} == HOT_PORTS
    assert {s["port"] for s in plan["services"]} == {8000, 8088, 8089, 9001}
    planned = sum(m["committed_bytes"] + m["file_bytes"] for s in plan["servers"] for m in s["memory"])
    services = sum(s["ram_bytes"] for s in plan["services"])
    (ram,) = plan["hardware"]["devices"]
    assert planned + services == ram["planned_bytes"] == plan["totals"]["hot_ram_bytes"]
    assert not [f for f in plan["findings"] if f["severity"] == "error"]


def test_the_workstation_is_planned_on_any_machine(cli: Cli) -> None:
    """Router, validator and one worker at a time on the card, within the documented target."""
    plan = cli.json("plan", *SOVEREIGN)
    assert {(s["name"], s["port"]) for s in plan["servers"]} >= {("router", 8001), ("validator", 8002)}
    card = next(d for d in plan["hardware"]["devices"] if d["kind"] == "gpu")
    assert 0.90 * card["capacity_bytes"] <= card["peak_bytes"] <= 0.95 * card["capacity_bytes"]


def test_text_shows_servers_bars_and_findings(cli: Cli) -> None:
    """Every server, who is asked beside them, a bar for RAM, findings with their place; no colour in a pipe."""
    cloud = "+upstreams.cloud={url: 'https://api.example.com/v1', models: {big: vendor/big}, ram_bytes: 1GiB}"
    text = cli.run("plan", *EPYC, cloud).stdout
    assert re.search(r"^cloud +https://api\.example\.com/v1 +16 +1\.0G RAM +big$", text, re.MULTILINE)
    assert ", 1 upstream; " in text
    assert all(name in text for name in ("frontdoor", "architect_coding", "embedder_5", "nextplaid-docs"))
    assert "note[plan/total-mismatch]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("overrides", "exit_code", "code", "place", "remedy"),
    [
        (("servers.frontdoor.slots=four",), 2, "config/type", "<command line>:3", "integer"),
        (("servers.frontdor.slots=4",), 2, "config/unknown-key", "<command line>:3", "servers.frontdoor.slots=4"),
        (("hardware=epic",), 2, "config/unknown-option", "<command line>:3", "hardware=epyc"),
        (("servers.frontdoor.model=qwen3_coder_30b",), 2, "config/dangling", "<command line>:3", "qwen3_coder_30b_a3b"),
        (("ports.frontdoor=8081",), 4, "plan/port-conflict", "<command line>:3", "8081"),
        (("hardware.ram_bytes=256GiB",), 4, "plan/ram-over-budget", "<command line>:3", "fix:"),
        (("servers.frontdoor.slots=",), 2, "config/type", "<command line>:3", "slots"),
        (("a b=c",), 2, "config/override", "<command line>:3", "KEY=VALUE"),
        (("servers.frontdoor.extra_args=[--lookup]",), 5, "engine/unknown-flag", "<command line>:3", "--lookup"),
        (("include_warm=[architect_general]",), 2, "config/duplicate-server", "<command line>:3", "include_warm"),
        (("engines.default.dialect=b1",), 5, "engine/unknown-dialect", "<command line>:3", "b11434"),
    ],
)
def test_mistakes_are_findings_at_their_place(
    cli: Cli, overrides: tuple[str, ...], exit_code: int, code: str, place: str, remedy: str
) -> None:
    """Each has its code, its location, a remedy, the exit code of its class, and no traceback."""
    done = cli.run("plan", *EPYC, *overrides, code=exit_code)
    text = done.stdout + done.stderr
    assert any(line.startswith(place) for line in text.splitlines() if f"error[{code}]" in line)
    assert remedy in text


def test_a_duplicate_key_is_refused_where_it_stands(cli: Cli) -> None:
    """PyYAML would keep the last one silently."""
    (cli.home / "mine/server").mkdir(parents=True)
    (cli.home / "mine/server/twice.yaml").write_text("model: smollm2_135m\nquantization: q4_1\ntier: hot\nmodel: x\n")
    done = cli.run("plan", "profile=dev", "+server=twice", "--config-dir", "mine", code=2)
    assert "mine/server/twice.yaml:4:1: error[config/duplicate-key]" in done.stderr


def test_an_unreadable_config_dir_is_said(cli: Cli) -> None:
    """A directory that is not there, and a file where a directory should be."""
    assert "config/unreadable" in cli.run("plan", "--config-dir", "nowhere", "profile=dev", code=2).stderr
    (cli.home / "file").write_text("")
    assert "config/unreadable" in cli.run("plan", "--config-dir", "file", "profile=dev", code=2).stderr


def test_an_empty_config_dir_is_refused(cli: Cli) -> None:
    """An unset variable in a script does not mean the current directory."""
    assert "the name is empty" in cli.run("plan", "--config-dir", "", "profile=dev", code=2).stderr
    assert "the name is empty" in cli.run("--config-dir=", "plan", "profile=dev", code=2).stderr
    for words in (
        *(("plan", "-f", ""), ("remove", "x", "-f", ""), ("render", *cli.dev, "-o", "")),
        *(("install", *cli.dev, "--root", ""), ("sweep", "assistant", *cli.dev, "--csv=")),
    ):
        assert "the name is empty" in cli.run(*words, code=2).stderr


def test_a_truncated_model_is_refused_by_its_size(cli: Cli, smollm2: Path) -> None:
    """One byte short is enough, and the finding is at the path that was given."""
    short = cli.home / "short.gguf"
    short.write_bytes(smollm2.read_bytes()[:-1])
    done = cli.run("plan", "profile=dev", f"models.smollm2_135m.files.q4_1.path={short}", code=3)
    assert "<command line>:2" in done.stdout + done.stderr
    assert "error[catalog/truncated]" in done.stdout + done.stderr


def test_a_plan_that_failed_still_prints_its_json(cli: Cli) -> None:
    """The findings are in the document, with locations and fixes; the exit code is the class's."""
    plan = cli.json("plan", *EPYC, "hardware.ram_bytes=256GiB", code=4)
    jsonschema.validate(plan, json_schema("launch.plan/v1"))
    finding = next(f for f in plan["findings"] if f["code"] == "plan/ram-over-budget")
    assert finding["location"] == {"file": "<command line>", "line": 3, "column": 1}
    assert finding["fixes"]


def test_a_config_error_prints_json_too(cli: Cli) -> None:
    """Scripts get findings even when there is nothing to plan."""
    document = cli.json("plan", "hardware=epic", code=2)
    assert [f["code"] for f in document["findings"]] == ["config/unknown-option"]


def test_the_epyc_fleet_does_not_start_here(cli: Cli) -> None:
    """An error before anything starts: missing RAM and files are named, nothing is left behind."""
    done = cli.run(*EPYC, code=5)
    assert "of RAM are missing" in done.stderr
    assert "/mnt/raid0/llm/models/Qwen3-Coder-30B-A3B-Q4_K_M.gguf" in done.stderr
    left = {p.name for p in (cli.home / "state").rglob("*") if p.is_file() and "dialects" not in p.parts}
    assert left == {"starting.lock"}  # empty, and locked by nobody: see launcher.files.state


def test_render_is_deterministic_and_check_sees_every_change(cli: Cli) -> None:
    """Twice the same bytes; an edited, a missing and an extra file each make `--check` exit 8."""
    cli.run("render", *EPYC, "-o", "one")
    cli.run("render", *EPYC, "-o", "two")
    files = {p.relative_to(cli.home / "one"): p.read_bytes() for p in (cli.home / "one").rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(cli.home / "two"): p.read_bytes() for p in (cli.home / "two").rglob("*") if p.is_file()
    }
    assert not [path for path, text in files.items() if str(cli.home).encode() in text]
    cli.run("render", *EPYC, "-o", "one", "--check")
    unit = cli.home / "one/epyc-hot_only/systemd/launch-frontdoor.service"
    unit.write_text(unit.read_text() + "# by hand\n")
    cli.run("render", *EPYC, "-o", "one", "--check", code=8)
    assert "-# by hand" in cli.run("render", *EPYC, "-o", "one", "--diff").stdout
    unit.unlink()
    cli.run("render", *EPYC, "-o", "one", "--check", code=8)
    assert not unit.exists()
    cli.run("render", *EPYC, "-o", "one")
    cli.run("render", *EPYC, "-o", "one", "--check")


def test_config_shows_where_each_value_was_written(cli: Cli) -> None:
    """Files and command line alike."""
    document = cli.json("config", "hardware=dev", "profile=dev", "servers.assistant.slots=3")
    assert document["config"]["servers"]["assistant"]["slots"] == 3
    assert document["origins"]["servers.assistant.slots"] == "<command line>:3:1"
    assert "assistant.yaml" in document["origins"]["servers.assistant.model"]
    text = cli.run("config", "hardware=dev", "profile=dev").stdout
    assert "servers.assistant.model: smollm2_135m" in text
    assert "models.mythomax" not in text
    below = cli.run("config", "servers.assistant", "hardware=dev", "profile=dev").stdout
    assert {line.split(":")[0].rpartition(".")[0] for line in below.splitlines()} == {"servers.assistant"}
    assert "models.mythomax" in cli.run("config", "models", "hardware=dev", "profile=dev").stdout
    assert "servers" in cli.run("config", "serverz", "hardware=dev", "profile=dev", code=2).stderr


def test_inspect_reads_a_model_and_sizes_it(cli: Cli, smollm2: Path) -> None:
    """Architecture, memory with the given fields, a document of the published schema; bad fields are findings."""
    document = cli.json("inspect", str(smollm2), "n_ctx=4096", "slots=2")
    jsonschema.validate(document, json_schema("launch.inspect/v1"))
    assert (document["architecture"], document["n_ctx_per_slot"]) == ("llama", 2048)
    assert document["memory"][0]["kv_bytes"] == 90 << 20
    assert "slotz" in cli.run("inspect", str(smollm2), "slotz=2", code=2).stderr
    assert "catalog/missing-file" in cli.run("inspect", "nowhere.gguf", code=3).stderr


def test_a_bare_launch_prints_help(cli: Cli) -> None:
    """With examples, and every command."""
    text = cli.run(code=None).stdout
    assert "hardware=epyc profile=hot_only" in text
    assert all(name in text for name in ("plan", "render", "status", "explain"))


def test_an_unknown_command_is_a_usage_error(cli: Cli) -> None:
    """Exit code 2 with the usage, no traceback."""
    assert "nonsense" in cli.run("nonsense", code=2).stderr
    assert "--nonsense" in cli.run("plan", "--nonsense", code=2).stderr
