"""Every flag that a shipped profile renders for a build is accepted by that build, and means what the plan says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.compiler import Compilation, compile_fleet
from launcher.engine import probe, recorded
from launcher.ir.plan import ServerPlan
from tests.engine.builds import EXTRA, VERSIONS, on_tiny_models, real_build
from tests.tinymodels.picture import png
from tests.tinymodels.running import RunningServer

RUN = ("b10068", "b10434", *EXTRA)
"""Builds that are started. b10092 is held to its help alone: its wheel needs AMX, and the CPU library that lets b10434
run everywhere is too new for it (hybrids abort)."""
pytestmark = pytest.mark.xdist_group("builds")
FLEETS = {
    "hot_only": (("hardware=epyc", "profile=hot_only"), 14),
    "three_tier": (("hardware=sovereign", "profile=three_tier"), 3),
}
PROMPT = "one two three one two three one two three one two"

Started = dict[str, tuple[ServerPlan, RunningServer]]


def compiled_for(build: str, *overrides: str) -> Compilation:
    """A shipped fleet, without errors, with the binary of a build."""
    binary = real_build(build)
    compiled = compile_fleet([*overrides, f"engines.default.binary={binary}", f"engines.default.dialect={build}"])
    compiled.require()
    return compiled


def serving(server: ServerPlan, compiled: Compilation, tiny_models: Callable[..., Path]) -> RunningServer:
    """The server of the plan, with every flag of its command line and its environment, on a tiny model."""
    words, _ = on_tiny_models(server, compiled, tiny_models)
    env = {**os.environ, "GGML_NO_BACKTRACE": "1", **compiled.commands[server.name].env}
    return RunningServer(Path(compiled.engines[server.config.engine][0]), *words, flags=(), env=env)


@pytest.fixture(scope="module", params=[(build, fleet) for build in RUN for fleet in FLEETS], ids="-".join)
def started(request: pytest.FixtureRequest, tiny_models: Callable[..., Path]) -> Iterator[tuple[Started, int]]:
    """All servers of a fleet that are up after start, at once, on one build."""
    build, name = request.param
    overrides, count = FLEETS[name]
    compiled = compiled_for(build, *overrides)
    with ExitStack() as stack:
        yield {s.name: (s, stack.enter_context(serving(s, compiled, tiny_models))) for s in boot_set(compiled)}, count


def boot_set(compiled: Compilation) -> list[ServerPlan]:
    """Servers that are up after start: HOT ones, and of an exclusive group its default."""
    return [s for s in compiled.plan.servers if s.initial]


def answers(plan: ServerPlan, server: RunningServer) -> None:
    """A token, or an embedding; where images are read, also about one."""
    assert server.get("/health")[0] == 200
    if plan.settings.embedding:
        status, body = server.post("/v1/embeddings", {"input": "hello"})
        assert status == 200
        assert len(body["data"][0]["embedding"]) > 0
        return
    status, body = server.post("/completion", {"prompt": PROMPT, "n_predict": 8, "temperature": 0, "ignore_eos": True})
    assert status == 200, body
    assert body["tokens_predicted"] == 8
    if plan.projector_path:
        content = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": png(64, 64)}}]
        status, body = server.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": content}], "max_tokens": 2, "ignore_eos": True},
        )
        assert status == 200, body
        assert body["usage"]["completion_tokens"] == 2


def shows_the_plan(plan: ServerPlan, server: RunningServer) -> None:
    """Slots, the context of each, the name and what it can read, as /props and /slots show them."""
    props = server.get("/props")[1]
    slots = server.get("/slots")[1]
    assert props["total_slots"] == len(slots) == plan.settings.slots
    assert {slot["n_ctx"] for slot in slots} == {plan.settings.n_ctx_per_slot}
    assert props["default_generation_settings"]["n_ctx"] == plan.settings.n_ctx_per_slot
    assert props["modalities"]["vision"] is bool(plan.projector_path)
    assert server.get("/v1/models")[1]["data"][0]["id"] == plan.name


def speculates(plan: ServerPlan, server: RunningServer) -> bool:
    """Whether the plan has a draft or n-grams; then tokens are drafted."""
    if plan.draft is None and plan.settings.ngram is None:
        return False
    status, body = server.post("/completion", {"prompt": PROMPT, "n_predict": 48, "temperature": 0, "ignore_eos": True})
    assert status == 200
    assert body["timings"].get("draft_n", 0) > 0, (plan.name, body["timings"])
    return True


def test_all_are_ready_and_answer(started: tuple[Started, int]) -> None:
    """A token, or an embedding, from each, while all are up."""
    servers, count = started
    assert len(servers) == count
    for plan, server in servers.values():
        answers(plan, server)
    assert all(server.process.poll() is None for _, server in servers.values())


def test_slots_and_contexts_are_the_plan(started: tuple[Started, int]) -> None:
    """What /props and /slots show is what was planned."""
    for plan, server in started[0].values():
        shows_the_plan(plan, server)


def test_speculation_speculates(started: tuple[Started, int]) -> None:
    """Tokens are drafted wherever the plan has a draft or n-grams: 5 of the EPYC's 14, none of three tiers."""
    assert sum([speculates(plan, server) for plan, server in started[0].values()]) == (
        5 if len(started[0]) == 14 else 0
    )


def test_expert_overrides_apply(started: tuple[Started, int]) -> None:
    """The same command line once more with a talkative log: the number in use is the plan's, not the file's 2."""
    for plan, server in started[0].values():
        if plan.config.experts_used is None:
            continue
        binary, *words = server.argv[:-4]
        with RunningServer(Path(binary), *words, "-lv", "4", flags=()) as talkative:
            used = re.search(r"n_expert_used\s+= (\d+)", talkative.log())
        assert used, plan.name
        assert int(used[1]) == plan.config.experts_used


@pytest.mark.parametrize("build", RUN)
def test_all_others_are_accepted(build: str, tiny_models: Callable[..., Path]) -> None:
    """Every server of every shipped profile that is not started above: each as above, one after another."""
    seen = 0
    for overrides in (
        ("hardware=epyc", "profile=full"),
        ("hardware=sovereign", "profile=three_tier"),
        ("hardware=epyc", "profile=epyc_dev"),
        ("hardware=dev", "profile=dev"),
    ):
        compiled = compiled_for(build, *overrides)
        above = {s.name for s in boot_set(compiled)} if "dev" not in overrides[1] else set()
        for plan in compiled.plan.servers:
            if plan.name in above:
                continue
            with serving(plan, compiled, tiny_models) as server:
                answers(plan, server)
                shows_the_plan(plan, server)
                speculates(plan, server)
            seen += 1
    assert seen == 2 + 3 + 1 + 1


@pytest.mark.parametrize("build", [*VERSIONS, *EXTRA])
def test_servers_are_started_with_exactly_the_rendered_flags(build: str, tiny_models: Callable[..., Path]) -> None:
    """Only values differ, and only of paths, threads, devices, host and port; the last two stand at the end."""
    for overrides in (*(words for words, _ in FLEETS.values()), ("hardware=epyc", "profile=full")):
        compiled = compiled_for(build, *overrides)
        for plan in compiled.plan.servers:
            argv = compiled.commands[plan.name].argv
            rendered = argv[argv.index(compiled.engines[plan.config.engine][0]) + 1 :]
            words, changed = on_tiny_models(plan, compiled, tiny_models)
            ours = [*words, "--host", "127.0.0.1", "--port", "0"]
            assert sorted(_but_values(rendered, changed)) == sorted(_but_values(ours, changed))
            assert set(changed) <= MAY_CHANGE


MAY_CHANGE = {"--model", "--mmproj", "--spec-draft-model", "--threads", "--threads-batch", "--device"}


def _but_values(words: Sequence[str], flags: tuple[str, ...]) -> list[str]:
    """`words` without the values of `flags`, of the host and of the port."""
    behind = {*flags, "--host", "--port"}
    return [word for before, word in pairwise(["", *words]) if before not in behind]


@pytest.mark.parametrize("build", [*VERSIONS, *EXTRA])
def test_recorded_dialects_are_the_builds(build: str) -> None:
    """Probing the build gives what is recorded, but for its name."""
    found, kept = probe(real_build(build), None), recorded(build)
    assert found.flags == kept.flags
    assert build in EXTRA or found.digest == kept.digest  # one that was compiled elsewhere has other bytes
    assert found.architectures == kept.architectures
