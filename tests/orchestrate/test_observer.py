"""What the runtime counts beside serving: the seed document's metrics by their exact names, and ours."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from launcher.ir.events import Happened
from launcher.ir.fleet import DeviceBudget, TargetUnit
from launcher.ir.host import Card, HostGpu
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.route import Front, StaticUpstreams
from launcher.route.pages import metrics_text
from launcher.runtime.observing import Observer
from launcher.supervise import events
from tests.orchestrate.test_pool import fleet_of, section
from tests.supervise.conftest import routes

MIB = 1024**2
LINE = re.compile(r'[a-z_]+(\{([a-z_]+="(?:[^"\\]|\\.)*",?)*\})? [0-9.e+-]+')


def observer(directory: Path) -> Observer:
    """Of a fleet with two GPU workers and a pool; nothing is started."""
    fleet = fleet_of(directory, "ab", 10 * MIB)
    table = msgspec.structs.replace(routes(fleet, 9), orchestration=section("ab", models_max=1))
    with_files = tuple(msgspec.structs.replace(unit, model=f"{unit.model} q4_1") for unit in fleet.servers)
    fleet = msgspec.structs.replace(fleet, servers=with_files)  # metrics name the model, as the front's do
    process = ProcessStatus(
        name="a", kind="server", state="ready", port=9, rung="2/4: q3", restarts=3, planned_bytes={"ram": 7}
    )
    return Observer(fleet, table, lambda: (process,), emit=lambda _: None)


def test_the_seeds_metrics_have_their_names(tmp_path: Path) -> None:
    """A swap, failures, an out-of-memory: counted, in a text that a scraper reads."""
    seen = observer(tmp_path)
    for event in (
        events.Swapped(name="a", instead_of=("b",), seconds=0.7),
        events.ServerFailed(name="b", code="supervise/crashed", cause="it crashed"),
        events.RungTaken(name="a", rung="1/4: q3", why="out of memory"),
        events.RungTaken(name="a", rung="", why="there is room again"),
        events.SlotsRestored(name="a", slots=2, tokens=80),
    ):
        seen(event)
    text = seen.metrics()
    lines = text.splitlines()
    for expected in (
        'model_swap_duration_seconds_bucket{source="disk",le="0.5"} 0',
        'model_swap_duration_seconds_bucket{source="disk",le="1"} 1',
        'model_swap_duration_seconds_sum{source="disk"} 0.7',
        'model_swap_duration_seconds_count{source="disk"} 1',
        'model_swap_duration_seconds_count{source="pool"} 0',
        'model_load_failures_total{model="a"} 1',
        'model_load_failures_total{model="b"} 1',
        'launch_out_of_memory_total{server="a"} 1',
        'launch_server_rung{server="a"} 2',
        'launch_server_restarts_total{server="a"} 3',
        'launch_server_memory_bytes{server="a",device="ram",kind="planned"} 7',
        'launch_slot_tokens_restored_total{server="a"} 80',
        "launch_warm_pool_hits_total 0",
        f"launch_warm_pool_budget_bytes {10 * MIB}",
        "# TYPE vram_used_bytes gauge",
        "# TYPE model_swap_duration_seconds histogram",
    ):
        assert expected in lines
    used = next(float(line.split()[1]) for line in lines if line.startswith("ram_used_bytes "))
    assert used > 10 * MIB
    assert all(line.startswith("# ") or LINE.fullmatch(line) for line in lines)
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_tokens_per_second_carry_the_model(tmp_path: Path) -> None:
    """The front's own part has the seed's fifth name, and what the runtime adds comes after it."""
    fleet = fleet_of(tmp_path, "ab", MIB)
    front = Front(routes(fleet, 9), StaticUpstreams())
    front.view.targets["a"].tokens.per_second = 21.5
    text = metrics_text(front.view.targets, StaticUpstreams().state, {}, {})
    assert 'inference_tokens_per_second{model="a",server="a"} 21.5' in text
    assert front.more_metrics() == ""
    front.close()


def test_status_says_what_is_in_ram(tmp_path: Path) -> None:
    """Before the pool has looked nothing is claimed."""
    seen = observer(tmp_path)
    process = ProcessStatus(name="a", kind="server", state="ready", port=9)
    status = FleetStatus(deployment="d", input_digest="", runtime_pid=1, front=None, ready=True, processes=(process,))
    assert seen.status(status).processes[0].in_ram_percent is None


def test_a_swap_from_the_pool_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whether the worker's files were in RAM when it began; both are the document's one metric."""
    seen = observer(tmp_path)
    monkeypatch.setattr(seen.pool, "residency", lambda name: (100.0, "locked" if name == "a" else ""))
    for name, seconds in (("a", 0.2), ("b", 4.0), ("a", 0.3)):
        seen(events.ServerStarting(name=name, pid=1, port=9, log_file=""))
        seen(events.Swapped(name=name, instead_of=(), seconds=seconds))
    lines = seen.metrics().splitlines()
    assert 'model_swap_duration_seconds_count{source="pool"} 2' in lines
    assert 'model_swap_duration_seconds_count{source="disk"} 1' in lines
    assert 'model_swap_duration_seconds_sum{source="pool"} 0.5' in lines


def test_a_missed_target_is_an_event(tmp_path: Path) -> None:
    """Once when it is missed and once when it is met again, with both figures; a swap's at once."""
    fleet = fleet_of(tmp_path, "ab", 10 * MIB)
    table = msgspec.structs.replace(routes(fleet, 9), orchestration=section("ab", models_max=1))
    wanted = (
        TargetUnit(name="swap_seconds", server="", limit=3.0),
        TargetUnit(name="tokens_per_second", server="a", limit=20.0),
        TargetUnit(name="first_token_seconds", server="a", limit=0.5),
    )
    now = [ProcessStatus(name="a", kind="server", state="ready", port=9)]
    told: list[Happened] = []
    seen = Observer(msgspec.structs.replace(fleet, targets=wanted), table, lambda: now, emit=told.append)
    seen.check_targets()
    assert told == []
    seen(events.Swapped(name="a", instead_of=("b",), seconds=3.5))
    assert [(t.kind, t.name, t.message) for t in told] == [("target", "", "swap seconds: missed")]
    assert told[0].cause == "3.5 measured, at most 3 wanted: 0.5 too much"
    assert told[0].details == {"target": "swap_seconds", "limit": 3.0, "measured": 3.5, "met": False}
    for speed, first in ((25.0, 0.4), (15.0, 0.4), (15.5, 0.9), (30.0, 0.1), (31.0, 0.1)):
        now[0] = msgspec.structs.replace(now[0], tokens_per_second=speed, first_token_s=first)
        seen.check_targets()
    assert [(t.name, t.message) for t in told[1:]] == [
        ("a", "tokens per second: missed"),
        ("a", "first token seconds: missed"),
        ("a", "tokens per second: met again"),
        ("a", "first token seconds: met again"),
    ]
    assert told[1].cause == "15 measured, at least 20 wanted: 5 short"
    assert told[3].cause == "30 measured, at least 20 wanted: 10 to spare"
    lines = seen.metrics().splitlines()
    assert 'launch_target_met{target="first_token_seconds",server="a"} 1' in lines


def test_targets_are_met_or_missed(tmp_path: Path) -> None:
    """Nothing is said before anything was measured; a bucket stands at the target; a reload brings others."""
    fleet = fleet_of(tmp_path, "ab", 10 * MIB)
    table = msgspec.structs.replace(routes(fleet, 9), orchestration=section("ab", models_max=1))
    wanted = (
        TargetUnit(name="swap_seconds", server="", limit=3.0),
        TargetUnit(name="tokens_per_second", server="a", limit=20.0),
        TargetUnit(name="tokens_per_second", server="b", limit=20.0),
    )
    fast, slow = (ProcessStatus(name=n, kind="server", state="ready", port=9, tokens_per_second=v) for n, v in RATES)
    running: list[ProcessStatus] = []
    seen = Observer(msgspec.structs.replace(fleet, targets=wanted), table, lambda: running, emit=lambda _: None)
    blank = FleetStatus(deployment="d", input_digest="", runtime_pid=1, front=None, ready=True, processes=())
    assert [(t.met, t.measured) for t in seen.status(blank).targets] == [(None, None)] * 3
    assert "launch_target_met{" not in seen.metrics()
    running += (fast, slow)
    seen(events.Swapped(name="a", instead_of=("b",), seconds=2.9))
    now = seen.status(msgspec.structs.replace(blank, processes=tuple(running))).targets
    assert [(t.met, t.measured) for t in now] == [(True, 2.9), (True, 25.0), (False, 19.0)]
    lines = seen.metrics().splitlines()
    for expected in (
        'model_swap_duration_seconds_bucket{source="disk",le="2.5"} 0',
        'model_swap_duration_seconds_bucket{source="disk",le="3"} 1',
        'launch_target_met{target="swap_seconds",server=""} 1',
        'launch_target_met{target="tokens_per_second",server="b"} 0',
        'launch_target_limit{target="tokens_per_second",server="b"} 20',
        'launch_target_measured{target="tokens_per_second",server="b"} 19',
    ):
        assert expected in lines
    seen(events.Swapped(name="b", instead_of=("a",), seconds=3.1))
    assert seen.status(blank).targets[0].met is False
    seen.take_over(fleet, table)
    assert seen.status(blank).targets == ()
    assert 'le="3"' not in seen.metrics()


RATES = (("a", 25.0), ("b", 19.0))


async def test_memory_of_the_fleets_cards_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every vendor's that the fleet has, by whatever name; a card that is none of its is not counted."""

    def card(name: str, used: int) -> Card:
        gpu = HostGpu(name=name, backend=name[:-1], model="", vram_bytes=100, free_bytes=100 - used)
        return Card(gpu=gpu)

    cards = (card("cuda0", 7), card("cuda1", 50), card("rocm0", 20), card("rocm1", 3))
    monkeypatch.setattr("launcher.hardware.cards.read_cards", lambda: cards)
    fleet = fleet_of(tmp_path, "ab", MIB)
    gpus = (DeviceBudget(name=n, kind="gpu", capacity_bytes=1, budget_bytes=1) for n in ("rocm0", "big"))
    fleet = msgspec.structs.replace(fleet, devices=(*fleet.devices, *gpus))
    seen = Observer(fleet, routes(fleet, 9), lambda: (), emit=lambda _: None)
    assert not any(line.startswith("vram_used_bytes") for line in seen.metrics().splitlines())
    seen(events.FleetReady(seconds=1, front=None, ready=()))
    async with asyncio.timeout(10):
        while "vram_used_bytes 73" not in seen.metrics():  # noqa: ASYNC110 - a thread changes it
            await asyncio.sleep(0.01)
    await seen.close()
