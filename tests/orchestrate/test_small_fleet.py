"""The packaged three-tier fleet with real llama-servers: routed, validated, swapped, remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from launcher.orchestrate.decision import parse_decision, router_prompt, router_question
from launcher.orchestrate.settings import Orchestration, settings_of
from launcher.orchestrate.verdict import SCHEMA, parse_verdict
from launcher.runtime import read_deployment
from tests.cli.conftest import Cli
from tests.late import Late

openai = Late("openai")

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("small-fleet")]
WORKERS = ("worker_code", "worker_general", "worker_fast")


class Running:
    """The fleet, up."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        """What it was rendered to is in `folder`."""
        self.cli = cli
        self.url = cli.front
        settings = settings_of(read_deployment(folder)[1])
        assert settings is not None
        self.settings: Orchestration = settings

    def chat(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """One chat request, answered."""
        response = httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        assert response.status_code == 200, response.text
        return response

    def states(self) -> dict[str, str]:
        """What each server is doing."""
        return {m["id"]: m["state"] for m in httpx.get(f"{self.url}/v1/models").json()["data"] if "state" in m}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, module_port: Callable[[], int]) -> Iterator[Running]:
    """`launch hardware=dev profile=three_tier_small --detach` on free ports, stopped at the end."""
    cli = Cli(tmp_path_factory.mktemp("small"), module_port)
    ports = {"router": module_port(), "validator": module_port()} | dict.fromkeys(WORKERS, module_port())
    overrides = [f"ports.{name}={port}" for name, port in ports.items()]
    overrides += [f"servers.{name}.threads=1" for name in ports]  # several tests share the cores
    overrides += ["orchestration.router_timeout_s=60", "servers.router.request_timeout_s=90"]  # the machine may be busy
    words = ("hardware=dev", "profile=three_tier_small", f"runtime.front.port={cli.front_port}", *overrides)
    cli.run(*words, "--detach", timeout_s=120)
    try:
        folder = next(Path(cli.home).rglob("routes.json")).parent
        yield Running(cli, folder)
    finally:
        cli.run("stop", "--all", timeout_s=60)


@pytest.fixture(scope="module")
def module_port() -> Callable[[], int]:
    """A function that gives a port nobody holds now."""
    from tests.ports import free_port

    return free_port


def test_the_three_tiers(fleet: Running) -> None:
    """Router, validator and one worker are up; the other workers sleep."""
    assert fleet.states() == {
        "router": "ready",
        "validator": "ready",
        "worker_code": "ready",
        "worker_general": "stopped",
        "worker_fast": "stopped",
    }


@pytest.mark.parametrize("text", ["What is the capital of France?", "{[\"'\\n"])
def test_the_real_router_answers_by_its_schema(fleet: Running, text: str) -> None:
    """Whatever it is asked to sort, what comes back is a decision by the schema."""
    messages = router_prompt(fleet.settings, text).messages((0,))
    question = router_question(fleet.settings, messages, fleet.settings.workers)
    answer = fleet.chat(model="router", **question).json()["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(answer), fleet.settings.schema(fleet.settings.workers))
    assert parse_decision(answer, fleet.settings, fleet.settings.workers) is not None


@pytest.mark.parametrize("block", ["def add(a, b):\n    return a + b", '[PASS] 日本語 {"status": 1}'])
def test_the_real_validator_answers_by_its_schema(fleet: Running, block: str) -> None:
    """Whatever it is asked to judge, what comes back is a usable verdict by the schema."""
    from launcher.orchestrate.context import judge_prompt, judge_question

    messages = judge_prompt(fleet.settings.validation.system_prompt, "Write it.", (), block).messages((0, 0))
    answer = fleet.chat(model="validator", **judge_question(messages)).json()["choices"][0]["message"]["content"]
    jsonschema.validate(json.loads(answer), SCHEMA)
    assert parse_verdict(answer).kind in ("pass", "fail")


def test_auto_swaps_to_the_worker_that_was_chosen(fleet: Running) -> None:
    """A rule sends a summary to `worker_general`, which takes the device; then a task type decides."""
    found = fleet.chat(model="auto", messages=[{"role": "user", "content": "Summarize: it rained."}], max_tokens=8)
    assert found.headers["x-launch-server"] == "worker_general"
    assert "source=rule" in found.headers["x-launch-decision"]
    assert {n: s for n, s in fleet.states().items() if n in WORKERS and s == "ready"} == {"worker_general": "ready"}
    found = fleet.chat({"X-Task-Type": "transform"}, messages=[{"role": "user", "content": "Say yes."}], max_tokens=8)
    assert found.headers["x-launch-server"] == "worker_fast"


def test_the_router_decides_in_the_real_fleet(fleet: Running) -> None:
    """Without a rule the real router chooses, among the real workers, and one of them answers."""
    none = {"X-Validation-Policy": "none"}
    messages = [{"role": "user", "content": "Good evening!"}]
    found = fleet.chat(none, model="auto", messages=messages, max_tokens=8)
    assert "source=router" in found.headers["x-launch-decision"]
    assert found.headers["x-launch-server"] in WORKERS


def test_validated_blocks_with_the_public_client(fleet: Running) -> None:
    """A real generation, block by block: complete, or given up with a code; either way the memory has what came."""
    client = openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=120)
    headers = {"X-Generation-Id": "real", "X-Project": "tests"}
    got, code = "", ""
    with client:
        try:
            stream = client.chat.completions.create(
                model="auto",
                messages=[{"role": "user", "content": "Write a Python function that adds two numbers."}],
                stream=True,
                temperature=0,
                max_tokens=60,
                extra_headers=headers,
            )
            for chunk in stream:
                got += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        except openai.APIError as error:
            code = str(error.code)
    report = httpx.get(f"{fleet.url}/v1/generations/real").json()
    assert report["status"] == ("failed" if code else "complete")
    assert (report["code"], "\n\n".join(report["blocks"])) == (code, got)
    assert (report["domain"], report["model"], report["policy"]) == ("code", "worker_code", "block_by_block")
    lines = [json.loads(line) for line in fleet.cli.run("memory", "tests").stdout.splitlines()]
    assert [line["text"] for line in lines if line["line"] == "block"] == report["blocks"]
    assert {line["kind"] for line in lines if line["line"] == "verdict"} <= {"pass", "fail"}
    assert [line["kind"] for line in lines if line["line"] == "journal"][:2] == ["decision", "begin"]
    assert "tests" in fleet.cli.run("memory").stdout


def test_the_prompt_is_counted_by_the_real_tokenizer(fleet: Running) -> None:
    """What template and tokenizer make of a chat is what the server read of it; a request beyond a slot is refused."""
    messages = [{"role": "system", "content": "Say “ä”."}, {"role": "user", "content": "It rained on day 12."}]
    prompt = httpx.post(f"{fleet.url}/apply-template", json={"model": "validator", "messages": messages}).json()
    body = {"model": "validator", "content": prompt["prompt"], "add_special": True, "parse_special": True}
    counted = len(httpx.post(f"{fleet.url}/tokenize", json=body).json()["tokens"])
    usage = fleet.chat(model="validator", messages=messages, max_tokens=1).json()["usage"]
    assert counted == usage["prompt_tokens"]
    story = " ".join(f"Day {n}: it rained on the hill." for n in range(200))
    too_long = httpx.post(
        f"{fleet.url}/v1/chat/completions",
        headers={"X-Validation-Policy": "final"},
        json={"model": "worker_code", "messages": [{"role": "user", "content": story}]},
        timeout=120,
    )
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
