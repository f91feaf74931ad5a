"""What the documentation shows is done here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import plan_fleet
from launcher.route import Front, answers
from tests.cases.case import read_case
from tests.cli.conftest import Cli, cli
from tests.plan import fleets
from tests.ports import free_port
from tests.route.fleet import FakeFleet, ask, get, running, table, target

__all__ = ["cli"]
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
