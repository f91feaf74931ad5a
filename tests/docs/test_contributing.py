"""What the documentation shows is done here."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from launcher.engine import recorded
from launcher.ir.config import DeployConfig
from launcher.plan import plan_fleet
from launcher.render import exports
from launcher.render.fleet import render_fleet
from launcher.route import Front, answers
from launcher.supervise.scheduler import Resident, choose_victims
from tests.cases.case import read_case
from tests.cli.conftest import Cli, cli
from tests.plan import fleets
from tests.ports import free_port
from tests.render.conftest import templates
from tests.render.plan_factory import fleet_plan, server_plan
from tests.route.fleet import FakeFleet, ask, get, running, table, target

__all__ = ["cli", "templates"]
ROOT = Path(__file__).parents[2]


def test_two_yaml_files_add_a_model_and_a_server(cli: Cli) -> None:
    """The files shown in CONTRIBUTING are written as shown, and the commands below them plan."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```yaml\n# (mine/\S+)\n(.*?)```", text, re.DOTALL)
    assert [path for path, _ in blocks] == ["mine/model/tiny_chat.yaml", "mine/server/tiny.yaml"]
    for path, body in blocks:
        (cli.home / path).parent.mkdir(parents=True, exist_ok=True)
        (cli.home / path).write_text(body)
    assert "launch --config-dir mine plan profile=dev +server=tiny" in text
    plan = cli.json("--config-dir", "mine", "plan", "profile=dev", "+server=tiny")
    tiny = next(s for s in plan["servers"] if s["name"] == "tiny")
    assert (tiny["port"], tiny["slots"], tiny["n_ctx_per_slot"], tiny["source"]) == (8137, 2, 2048, "gguf")
    assert {f["code"] for f in plan["findings"]} <= {"cpu/oversubscribed", "plan/file-shared"}


def test_the_example_cases_are_cases() -> None:
    """The two cases shown in CONTRIBUTING are files of the suite, one that triggers the code that the other misses."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = dict(re.findall(r"```yaml\n# (tests/cases/\S+)\n(.*?)```", text, re.DOTALL))
    assert len(blocks) == 2
    for path, body in blocks.items():
        assert (ROOT / path).read_text() == body
    triggers, misses = (read_case(ROOT / path) for path in blocks)
    assert {e.code for e in triggers.expected} == set(misses.near_misses)


def test_the_example_check_checks() -> None:
    """The function shown in CONTRIBUTING finds slots without threads in a planned fleet, nothing where all is well."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(r"```python\n(from collections.*?)```", text, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), namespace)  # noqa: S102 - our own text

    def fixes(threads: int) -> list[str]:
        """What the example proposes for four slots on `threads` threads."""
        fleet = fleets.fleet({"a": fleets.server(slots=4, threads=threads)})
        checks = (namespace["check_slot_threads"],)
        plan = plan_fleet(fleet, fleets.catalog(), deployment="d", input_digest="", checks=checks)
        return [fix.override for finding in plan.findings for fix in finding.fixes]

    assert fixes(threads=1) == ["servers.a.threads=4"]
    assert fixes(threads=4) == []


async def test_the_example_endpoint_answers() -> None:
    """The row shown in CONTRIBUTING is a page of the front."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(r"```python\n(def _load.*?)```", text, re.DOTALL)
    namespace = vars(answers) | {"PAGES": dict(answers.PAGES)}
    exec(compile(source, "CONTRIBUTING.md", "exec"), namespace)  # noqa: S102 - our own text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PAGES", namespace["PAGES"])
        async with running(Front(table(target("m", free_port())), FakeFleet())) as port:
            answer = await ask(port, get("/load"))
            assert (answer.status, answer.body) == (200, b'{"in_flight":0}')


@pytest.mark.parametrize(
    ("begins", "path"),
    [
        ("    n_cpu_ffn", "launcher/ir/config/servers.py"),
        ('    Meaning("n_cpu_ffn"', "launcher/render/spellings.py"),
        ('        "qwen3moe": Traits', "launcher/ir/architectures.py"),
        ('        "sycl": Backend', "launcher/ir/backends.py"),
    ],
)
def test_the_example_rows_are_rows(begins: str, path: str) -> None:
    """A row shown in CONTRIBUTING stands in the file that it names."""
    (row,) = re.findall(rf"```\n({re.escape(begins)}.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert row in (ROOT / path).read_text()


def test_every_place_that_is_named_is_there() -> None:
    """Files and directories by their paths; names in backticks beside them are somewhere in the source."""
    text = re.sub(r"```.*?```", "", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    paths = set(re.findall(r"`((?:launcher|tests|templates|conf|docs)/[\w./-]+)`", text))
    assert [
        path for path in sorted(paths) if not re.search("upstreams|NAME", path) and not (ROOT / path).exists()
    ] == []
    source = "\n".join(path.read_text() for folder in ("launcher", "tests") for path in (ROOT / folder).rglob("*.py"))
    names = set(re.findall(r"`([A-Z][A-Z_]{4,}|[A-Z][a-z]+[A-Z]\w+)`", text)) - {"NAME"}
    assert len(names) > 15
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", source)] == []


def test_the_example_target_is_rendered(templates: dict[str, str]) -> None:
    """The template and the row shown in CONTRIBUTING give a file beside the others."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (template,) = re.findall(r"   ```jinja\n(.*?)   ```", text, re.DOTALL)
    (source,) = re.findall(r"   ```python\n(   def _upstreams.*?)   ```", text, re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "EXPORTS", dict(exports.EXPORTS))
        exec(compile(textwrap.dedent(source), "CONTRIBUTING.md", "exec"), vars(exports))  # noqa: S102 - our own text
        plan = fleet_plan(server_plan("a", port=8081), deploy=DeployConfig(targets=("upstreams",)))  # type: ignore[arg-type]
        given = templates | {"exports/upstreams.txt.j2": textwrap.dedent(template)}
        files = render_fleet(
            plan, {"default": ("/opt/llama-server", recorded("b10434"))}, given, "0.1.0"
        ).deployment.files
    (found,) = [f.text for f in files if f.path == "exports/upstreams.txt"]
    assert found.split() == ["a", "127.0.0.1:8081", f"slots={plan.servers[0].settings.slots}"]


def test_the_example_policy_evicts() -> None:
    """By the property shown in CONTRIBUTING the one that was idle for longest goes, whatever it costs to reload."""
    (source,) = re.findall(
        r"```python\n(@property\ndef keep_value.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), namespace)  # noqa: S102 - our own text
    running = (
        Resident(name="dear", needs={"ram": 10}, idle_s=100, reload_s=1000),
        Resident(name="cheap", needs={"ram": 10}, idle_s=50, reload_s=1),
    )
    assert choose_victims({"ram": 10}, running, {"ram": 20}) == ("cheap",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resident, "keep_value", namespace["keep_value"])
        assert choose_victims({"ram": 10}, running, {"ram": 20}) == ("dear",)
