"""Every flag that a shipped profile renders for a build is accepted by that build, and means what the plan says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher.compiler import Compilation, compile_fleet
from launcher.engine import probe, recorded
from launcher.ir.plan import ServerPlan
from tests.engine.builds import VERSIONS, on_tiny_models, real_build
from tests.tinymodels.running import RunningServer

pytestmark = pytest.mark.xdist_group("builds")
FLEETS = {
    "hot_only": (("hardware=epyc", "profile=hot_only"), 14),
    "three_tier": (("hardware=sovereign", "profile=three_tier"), 3),
}
PROMPT = "one two three one two three one two three one two"

Started = dict[str, tuple[ServerPlan, RunningServer]]


@pytest.fixture(scope="module", params=[(build, fleet) for build in VERSIONS for fleet in FLEETS], ids="-".join)
def started(request: pytest.FixtureRequest, tiny_models: Callable[..., Path]) -> Iterator[tuple[Started, int]]:
    """All servers of a fleet that are up after start, at once, on one build."""
    build, name = request.param
    binary = real_build(build)
    overrides, count = FLEETS[name]
    compiled = compile_fleet([*overrides, f"engines.default.binary={binary}", f"engines.default.dialect={build}"])
    compiled.require()
    with ExitStack() as stack:
        running: Started = {}
        for server in up_after_start(compiled):
            words, _ = on_tiny_models(server, compiled, tiny_models)
            running[server.name] = (server, stack.enter_context(RunningServer(binary, *words, flags=())))
        yield running, count


def up_after_start(compiled: Compilation) -> list[ServerPlan]:
    """HOT servers; of an exclusive group its default."""
    tiers = compiled.plan.tiers
    return [s for s in compiled.plan.servers if tiers[s.tier].start == "boot" and (not s.exclusive or s.default)]


def test_all_are_ready_and_answer(started: tuple[Started, int]) -> None:
    """A token, or an embedding, from each."""
    servers, count = started
    assert len(servers) == count
    for plan, server in servers.values():
        assert server.get("/health")[0] == 200
        if plan.embedding:
            status, body = server.post("/v1/embeddings", {"input": "hello"})
            assert status == 200
            assert len(body["data"][0]["embedding"]) > 0
        else:
            status, body = server.post("/completion", {"prompt": PROMPT, "n_predict": 8, "temperature": 0})
            assert status == 200, body
            assert body["tokens_predicted"] == 8


def test_slots_and_contexts_are_the_plan(started: tuple[Started, int]) -> None:
    """What /props and /slots show is what was planned."""
    for plan, server in started[0].values():
        props = server.get("/props")[1]
        slots = server.get("/slots")[1]
        assert props["total_slots"] == len(slots) == plan.slots
        assert {slot["n_ctx"] for slot in slots} == {plan.n_ctx_per_slot}
        assert props["default_generation_settings"]["n_ctx"] == plan.n_ctx_per_slot
        assert server.get("/v1/models")[1]["data"][0]["id"] == plan.name


def test_speculation_speculates(started: tuple[Started, int]) -> None:
    """Tokens are drafted wherever the plan has a draft or n-grams."""
    for plan, server in started[0].values():
        if plan.draft is None and plan.ngram is None:
            continue
        status, body = server.post("/completion", {"prompt": PROMPT, "n_predict": 48, "temperature": 0})
        assert status == 200
        assert body["timings"].get("draft_n", 0) > 0, (plan.name, body["timings"])


def test_expert_overrides_apply(started: tuple[Started, int]) -> None:
    """The same command line once more with a talkative log: the number in use is the plan's, not the file's 2."""
    for plan, server in started[0].values():
        if plan.expert_override is None:
            continue
        binary, *words = server.argv[:-4]
        with RunningServer(Path(binary), *words, "-lv", "4", flags=()) as talkative:
            used = re.search(r"n_expert_used\s+= (\d+)", talkative.log())
        assert used, plan.name
        assert int(used[1]) == plan.expert_override[1]


@pytest.mark.parametrize("build", VERSIONS)
def test_all_others_are_accepted(build: str, tiny_models: Callable[..., Path]) -> None:
    """Every server of every shipped profile that is not started above: each starts and answers, one after another."""
    binary = real_build(build)
    seen = 0
    for overrides in (
        ("hardware=epyc", "profile=full"),
        ("hardware=sovereign", "profile=three_tier"),
        ("hardware=epyc", "profile=epyc_dev"),
        ("hardware=dev", "profile=dev"),
    ):
        compiled = compile_fleet([*overrides, f"engines.default.binary={binary}", f"engines.default.dialect={build}"])
        compiled.require()
        above = {s.name for s in up_after_start(compiled)} if "dev" not in overrides[1] else set()
        for plan in compiled.plan.servers:
            if plan.name in above:
                continue
            words, _ = on_tiny_models(plan, compiled, tiny_models)
            with RunningServer(binary, *words, flags=()) as server:
                status, body = server.post("/completion", {"prompt": PROMPT, "n_predict": 2, "temperature": 0})
                assert status == 200, body
            seen += 1
    assert seen == 2 + 3 + 1 + 1


@pytest.mark.parametrize("build", VERSIONS)
def test_recorded_dialects_are_the_builds(build: str) -> None:
    """Probing the build gives what is recorded, but for its name."""
    found, kept = probe(real_build(build), None), recorded(build)
    assert found.flags == kept.flags
    assert found.digest == kept.digest
    assert found.architectures == kept.architectures
