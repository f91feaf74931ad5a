"""`model: auto`: who decides, how it is shown, and what happens when nobody does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.orchestrate.decision import RouterBackoff, parse_decision
from launcher.orchestrate.settings import settings_of
from tests.orchestrate.scripted import DIE, ORCHESTRATION, PASS, decides, fleet_table, scripted_fleet
from tests.route.fleet import front_unit, until


def decision(response: httpx.Response) -> dict[str, str]:
    """The decision header as a mapping."""
    return dict(part.split("=", 1) for part in response.headers["x-launch-decision"].split("; "))


async def never(_: Any) -> str:
    """An answer that does not come."""
    await asyncio.sleep(3600)
    return ""


async def test_the_router_decides(tmp_path: Path) -> None:
    """Its schema names every domain and worker; header, journal, scratchpad and metrics have the decision."""
    async with scripted_fleet(tmp_path, router=(decides("general", "talker", confidence=0.75),)) as fleet:
        response = await fleet.chat("What is the capital of France?")
        assert response.json()["choices"][0]["message"]["content"] == "hello"
        assert response.headers["x-launch-server"] == "talker"
        assert decision(response) == {
            "domain": "general",
            "model": "talker",
            "policy": "none",
            "confidence": "0.75",
            "source": "router",
        }
        question = fleet.router.chats[0]
        schema = question["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["recommended_model"]["enum"] == ["coder", "talker"]
        assert {"code", "essay", "general", "explore"} <= set(schema["properties"]["domain"]["enum"])
        assert [m["content"] for m in question["messages"]] == ["You sort.", "What is the capital of France?"]
        data = json.loads(fleet.rows("SELECT data FROM journal WHERE kind = 'decision'")[0][0])
        assert (data["model"], data["source"], data["confidence"]) == ("talker", "router", 0.75)
        assert fleet.rows("SELECT text FROM scratchpad")[0][0].startswith("## Routing decision\nmodel: talker")
        metrics = (await fleet.get("/metrics")).text
        labels = 'source="router",domain="general",model="talker",policy="none"'
        assert f"launch_auto_decisions_total{{{labels}}} 1" in metrics
        assert "launch_routing_seconds_count 1" in metrics


async def test_the_router_sees_what_its_slot_holds(tmp_path: Path) -> None:
    """Of a text beyond its slot, by its own count, it gets beginning and end; the answer is a decision all the same."""
    async with scripted_fleet(tmp_path, router=(decides("general", "talker"),)) as fleet:
        unit = fleet.front.view.table
        small = {**unit.targets, "router": msgspec.structs.replace(unit.targets["router"], n_ctx_per_slot=512)}
        fleet.front.replace_table(msgspec.structs.replace(unit, targets=small))
        words = [f"w{n}" for n in range(700)]
        found = await fleet.chat(" ".join(words))
        assert decision(found)["source"] == "router"
        shown = fleet.router.chats[0]["messages"][1]["content"]
        assert len(shown.split()) + fleet.router.chats[0]["max_tokens"] < 512
        assert (shown.split()[0], shown.split()[-1]) == ("w0", "w699")


async def test_rules_come_before_the_router(tmp_path: Path) -> None:
    """A word of a rule decides, as a whole word only; the router is not asked. Its domain's policy holds."""
    async with scripted_fleet(tmp_path, coder=("x", "[DONE]"), router=(decides("general", "talker"),)) as fleet:
        response = await fleet.chat("Please REFACTOR this.")
        assert decision(response) == {
            "domain": "code",
            "model": "coder",
            "policy": "block_by_block",
            "confidence": "1",
            "source": "rule",
        }
        assert (fleet.blocks, fleet.router.chats) == (["x"], [])
        assert decision(await fleet.chat("refactoring"))["source"] == "router"


async def test_a_task_type_comes_first(tmp_path: Path) -> None:
    """`X-Task-Type` names the pool, with `auto` and without a model; an unknown one is a 400."""
    async with scripted_fleet(tmp_path) as fleet:
        response = await fleet.chat("Refactor.", headers={"X-Task-Type": "explore"})
        assert (decision(response)["source"], response.headers["x-launch-server"]) == ("task_type", "talker")
        response = await fleet.chat("Refactor.", headers={"X-Task-Type": "cook"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_task_type")
        assert fleet.router.chats == []


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (("no json",), "router_malformed"),
        (('{"domain": "general"}',), "router_malformed"),
        ((decides("cooking", "talker"),), "router_malformed"),
        ((decides("general", "validator"),), "router_malformed"),
        ((decides("general", "talker", "sometimes"),), "router_malformed"),
        ((decides("general", "talker", confidence=7),), "router_malformed"),
        ((decides("general", "coder", confidence=0.25),), "router_unsure"),
        ((500,), "router_unavailable"),
        ((DIE,), "router_unavailable"),
        ((never,), "router_timeout"),
    ],
)
async def test_the_front_door_is_behind_the_router(tmp_path: Path, answers: tuple[Any, ...], why: str) -> None:
    """Whatever is wrong with the router, the default answers, in bounded time, and the header says why."""

    def unsure(orchestration: dict[str, Any]) -> None:
        """Ask for some confidence, and little patience."""
        orchestration |= {"confidence_min": 0.5, "router_timeout_s": 0.5 if why == "router_timeout" else 60.0}

    async with scripted_fleet(tmp_path, router=answers, change=unsure) as fleet:
        response = await fleet.chat()
        assert (response.status_code, response.headers["x-launch-server"]) == (200, "talker")
        assert (decision(response)["source"], decision(response)["why"]) == ("front_door", why)
        if why == "router_timeout":
            await until(lambda: fleet.router.dropped == 1)
        [told] = fleet.told
        assert (told.kind, told.name, told.details["why"], told.details["escalated"]) == (
            "decision",
            "talker",
            why,
            True,
        )


@pytest.mark.parametrize(
    ("headers", "model", "policy"),
    [
        ({}, "coder", "block_by_block"),
        ({"X-Validation-Policy": "final"}, "coder", "final"),
        ({"X-Validation-Policy": "none"}, "coder", "none"),
    ],
)
async def test_policy_by_request_then_domain(tmp_path: Path, headers: dict[str, str], model: str, policy: str) -> None:
    """The request's policy wins over the domain's, the domain's over what the router recommends."""
    async with scripted_fleet(tmp_path, router=(decides("code", "coder", "none"),), coder=("x", "[DONE]")) as fleet:
        found = decision(await fleet.chat(headers=headers))
        assert (found["model"], found["policy"]) == (model, policy)


async def test_the_routers_policy_holds_where_nobody_says_another(tmp_path: Path) -> None:
    """A domain without a policy (a task type) takes the router's."""
    async with scripted_fleet(tmp_path, router=(decides("explore", "talker", "final"),)) as fleet:
        assert decision(await fleet.chat())["policy"] == "final"
        assert fleet.blocks == ["hello"]


async def test_a_stream_passes_through(tmp_path: Path) -> None:
    """With policy `none` the worker's own stream arrives, with the decision before it."""
    async with scripted_fleet(tmp_path, router=(decides("general", "talker"),)) as fleet:
        response = await fleet.chat(stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert decision(response)["model"] == "talker"
        assert response.text.endswith("data: [DONE]\n\n")


async def test_other_apis_and_paths(tmp_path: Path) -> None:
    """Completions and Anthropic's messages are decided too, unvalidated; embeddings name their model themselves."""
    async with scripted_fleet(tmp_path, coder=("x",)) as fleet, httpx.AsyncClient(timeout=10) as client:
        for path, body in (
            ("/v1/completions", {"prompt": "Refactor it."}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "Refactor it."}]}),
        ):
            response = await client.post(fleet.url + path, json={"model": "auto", **body})
            assert (response.status_code, response.headers["x-launch-server"]) == (200, "coder")
            assert decision(response)["policy"] == "none"
        response = await client.post(f"{fleet.url}/v1/embeddings", json={"model": "auto", "input": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "auto_unsupported")
        response = await client.post(f"{fleet.url}/v1/messages", json={"model": "auto", "messages": []})
        assert decision(response)["why"] == "nothing_to_decide"


async def test_keys_bound_what_auto_may_choose(tmp_path: Path) -> None:
    """A key for `auto` may get any worker; one for `talker` and auto's name alone does not reach `coder`."""
    keys = tmp_path / "keys"
    keys.write_text("all-models models=auto\nsome-models models=talker\n")
    unit = front_unit(api_key_file=str(keys))
    async with scripted_fleet(tmp_path, router=(decides("general", "coder"),), coder=("x",), front=unit) as fleet:
        allowed = await fleet.chat(headers={"Authorization": "Bearer all-models"})
        assert allowed.headers["x-launch-server"] == "coder"
        narrow = await fleet.chat("Refactor.", headers={"Authorization": "Bearer some-models"})
        assert narrow.headers["x-launch-server"] == "talker"
        schema = fleet.router.chats[-1]["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["recommended_model"]["enum"] == ["talker"]
        for fields, more in (
            ({"model": "coder"}, {"X-Validation-Policy": "final"}),
            ({"model": "auto"}, {"X-Task-Type": "code"}),
            ({"model": "code"}, {"X-Validation-Policy": "block_by_block"}),
        ):
            refused = await fleet.chat(headers={"Authorization": "Bearer some-models"} | more, **fields)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


async def test_auto_is_listed_and_absent_without_orchestration(tmp_path: Path) -> None:
    """`/v1/models` has it; a fleet that orchestrates nothing answers 404, and 400 to a policy."""
    async with scripted_fleet(tmp_path) as fleet:
        assert (await fleet.get("/v1/models")).json()["data"][-1]["id"] == "auto"
        assert (await fleet.get("/v1/models/auto")).json()["id"] == "auto"
    async with scripted_fleet(tmp_path, orchestration=None) as fleet:
        assert "auto" not in (await fleet.get("/v1/models")).text
        assert (await fleet.chat()).json()["error"]["code"] == "model_not_found"
        refused = await fleet.chat(model="coder", headers={"X-Validation-Policy": "final"})
        assert refused.json()["error"]["code"] == "policy_unsupported"
        assert (await fleet.get("/v1/generations/x")).json()["error"]["code"] == "generation_not_found"


async def test_a_fleet_with_a_server_called_auto_keeps_it(tmp_path: Path) -> None:
    """The operator's own name wins."""
    async with scripted_fleet(tmp_path) as fleet:
        own = {**fleet.front.view.table.names, "auto": ("talker",)}
        fleet.front.replace_table(msgspec.structs.replace(fleet.front.view.table, names=own))
        response = await fleet.chat("Refactor.")
        assert "x-launch-decision" not in response.headers
        assert response.headers["x-launch-server"] == "talker"


async def test_the_fronts_journal_has_the_decision(tmp_path: Path) -> None:
    """The line of the worker's request says why it went there; other lines have no such field."""
    unit = front_unit(journal_file=str(tmp_path / "journal"))
    async with scripted_fleet(tmp_path, router=(decides("general", "talker"),), front=unit) as fleet:
        await fleet.chat()
        await fleet.chat(model="talker")
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    lines = [line for line in lines if line["path"].endswith("/completions")]  # not what was counted before
    assert [line["server"] for line in lines] == ["router", "talker", "talker"]
    assert "source=router" in lines[1]["decision"]
    assert "decision" not in lines[0].keys() | lines[2].keys()


SETTINGS = settings_of(fleet_table({"router": 1, "validator": 2, "coder": 3, "talker": 4}, ORCHESTRATION))


@given(
    st.one_of(
        st.text(),
        st.fixed_dictionaries(
            {},
            optional={
                "domain": st.sampled_from(["code", "general", "cooking", None]),
                "recommended_model": st.sampled_from(["coder", "talker", "router", 3]),
                "validation_policy": st.sampled_from(["none", "final", "block_by_block", "x"]),
                "confidence": st.sampled_from([0, 0.25, 0.5, 0.75, 1, True, "1"]),
                "more": st.none(),
            },
        ).map(json.dumps),
    )
)
def test_only_what_the_schema_allows_is_a_decision(text: str) -> None:
    """Reading a router's answer raises nothing, and takes exactly what its schema takes."""
    assert SETTINGS is not None
    workers = ("coder", "talker")
    try:
        valid = jsonschema.Draft202012Validator(SETTINGS.schema(workers)).is_valid(json.loads(text))
    except ValueError:
        valid = False
    if valid and json.loads(text)["confidence"] is not True:
        assert parse_decision(text, SETTINGS, workers) is not None
    elif not valid:
        assert parse_decision(text, SETTINGS, workers) is None


async def test_a_late_router_makes_no_request_dearer(tmp_path: Path) -> None:
    """The front door answers by the policy of what it serves, unvalidated where nobody says one; the router rests."""

    def strict(orchestration: dict[str, Any]) -> None:
        """Everything is judged by default; nothing says how the front door's own task types are."""
        orchestration["validation"]["policy"] = "block_by_block"
        orchestration["router_timeout_s"] = 0.2

    async with scripted_fleet(tmp_path, router=(never, decides("general", "talker")), change=strict) as fleet:
        late = await fleet.chat("What is the capital of France?")
        assert (decision(late)["why"], decision(late)["policy"]) == ("router_timeout", "none")
        resting = await fleet.chat("And of Spain?")
        assert (decision(resting)["why"], decision(resting)["policy"]) == ("router_resting", "none")
        assert (len(fleet.router.chats), fleet.validator.chats) == (1, [])
        asked = await fleet.chat("And of Italy?", headers={"X-Validation-Policy": "final"})
        assert (decision(asked)["policy"], len(fleet.validator.chats)) == ("final", 1)


async def test_the_front_door_is_checked_as_what_it_serves(tmp_path: Path) -> None:
    """Its pool's task type has a policy, which holds whatever is wrong with the router."""

    def served(orchestration: dict[str, Any]) -> None:
        """The front door's task type is judged, other things are not."""
        orchestration["policies"]["explore"] = "final"

    async with scripted_fleet(tmp_path, router=("no json",), change=served) as fleet:
        assert decision(await fleet.chat())["policy"] == "final"
        assert len(fleet.validator.chats) == 1


def test_the_router_is_asked_again_by_one_request_after_its_rest() -> None:
    """Nobody while it rests, one when it is over, all once it answered."""
    patience = RouterBackoff(30)
    assert patience.asks(1)
    patience.observed(11, late=True)
    assert [patience.asks(at) for at in (12, 40, 41, 42, 70, 71)] == [False, False, True, False, False, True]
    patience.observed(72, late=False)
    assert patience.asks(73)


async def test_overload_sheds_validation(tmp_path: Path) -> None:
    """While as many answers are being validated as may be, one more is only where the request says so."""

    def narrow(orchestration: dict[str, Any]) -> None:
        """One at a time."""
        orchestration["validation"]["shed_above"] = 1

    judged = asyncio.Event()

    async def holds(_: Any) -> str:
        """A verdict that comes when it may."""
        await judged.wait()
        return PASS

    async with scripted_fleet(tmp_path, coder=("x",), validator=(holds,), change=narrow) as fleet:
        first = asyncio.ensure_future(fleet.chat("Refactor this.", max_tokens=1))
        await until(lambda: fleet.validator.open == 1)
        shed = await fleet.chat("Refactor that.")
        assert (decision(shed)["policy"], decision(shed)["why"]) == ("none", "validation_shed")
        asked = asyncio.ensure_future(fleet.chat("Refactor.", headers={"X-Validation-Policy": "final"}))
        await until(lambda: fleet.validator.open == 2)
        judged.set()
        assert [decision(response)["policy"] for response in (await first, await asked)] == ["block_by_block", "final"]
        assert decision(await fleet.chat("Refactor it."))["policy"] == "block_by_block"
