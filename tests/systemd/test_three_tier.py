"""The three-tier fleet, small, with real models: routed, swapped, judged and remembered the same under both owners."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.systemd.conftest import FRONT, Fleet
from tests.systemd.scenarios import Children, Run, Units

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(900), pytest.mark.slow]

WORDS = ("hardware=dev", "profile=three_tier_small", "deploy.launch=/usr/local/bin/launch")
SLOW = ("orchestration.router_timeout_s=60", "servers.router.request_timeout_s=90")
THREADS = tuple(
    f"servers.{name}.threads=1" for name in ("router", "validator", "worker_code", "worker_general", "worker_fast")
)
WORKERS = ("worker_code", "worker_general", "worker_fast")


def asked(run: Run, words: str, *headers: str, **body: Any) -> tuple[str, dict[str, str]]:
    """What a chat with `auto` is answered, and the headers."""
    text = json.dumps({"model": "auto", "messages": [{"role": "user", "content": words}], "max_tokens": 8} | body)
    more = [part for header in ("content-type: application/json", *headers) for part in ("-H", header)]
    command = ("curl", "-s", "-i", "-m", "120", *more, "-d", text, f"{FRONT}/v1/chat/completions")
    head, _, answer = run.host.run(*command, timeout_s=130).stdout.partition("\n\n")
    lines = (line.partition(": ") for line in head.splitlines())
    return answer, {name.lower(): value for name, _, value in lines}


def seen(run: Run) -> dict[str, Any]:
    """What the fleet does; what its models write does not count."""
    _, rule = asked(run, "Summarize: it rained.")
    states = {p["name"]: p["state"] for p in run.status()["processes"] if p["name"] in WORKERS}
    _, task = asked(run, "Say yes.", "X-Task-Type: transform", model="worker_fast")
    _, router = asked(run, "Good evening!", "X-Validation-Policy: none")
    generation = ("X-Generation-Id: real", "X-Project: tests")
    stream, _ = asked(run, "Write a Python function that adds.", *generation, stream=True, temperature=0, max_tokens=40)
    report = run.fleet.ask(FRONT, "/v1/generations/real")[1]
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    got = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))
    memory = [json.loads(line) for line in run.host.run("launch", "memory", "tests").stdout.splitlines()]
    assert router["x-launch-server"] in WORKERS
    assert report["status"] in ("complete", "failed")
    assert {line["kind"] for line in memory if line["line"] == "verdict"} <= {"pass", "fail"}
    return {
        "rule": (rule["x-launch-server"], "source=rule" in rule["x-launch-decision"], states),
        "task": task["x-launch-server"],
        "router": "source=router" in router["x-launch-decision"],
        "generation": (report["domain"], report["model"], report["policy"]),
        "streamed what was committed": got == "\n\n".join(report["blocks"]),
        "remembered": [line["text"] for line in memory if line["line"] == "block"] == report["blocks"],
        "journal": [line["kind"] for line in memory if line["line"] == "journal"][:2],
    }


def test_the_three_tiers_under_both_owners(fleet: Fleet) -> None:
    """A rule, a task type, the real router, a validated stream, and the memory of a project."""
    words = (*WORDS, *SLOW, *THREADS)
    fleet.host.run("launch", "up", *words, "--detach", timeout_s=300)
    children = seen(Children(fleet))
    fleet.host.run("launch", "stop", "--all", timeout_s=120)
    fleet.host.run("launch", "install", *words, timeout_s=300)
    assert seen(Units(fleet)) == children
    assert children["rule"] == (
        "worker_general", True, {"worker_code": "stopped", "worker_general": "ready", "worker_fast": "stopped"}
    )  # fmt: skip
    assert children["task"] == "worker_fast"
    assert children["generation"] == ("code", "worker_code", "block_by_block")
    assert children["streamed what was committed"]
    assert children["remembered"]
    assert children["journal"] == ["decision", "begin"]
