"""Expected speed: what a token touches, which source comes first, the documents' speeds as a table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launcher.compiler import with_speeds
from launcher.ir.config import HardwareConfig
from launcher.ir.measured import Measurement, Touched
from launcher.ir.plan import ServerPlan
from launcher.plan import expected, speeds, touched
from launcher.plan.checks.front import OUT_OF_REACH
from tests.plan.documents import EPYC, ROWS, SOVEREIGN, compiled, markdown

DOCS = Path(__file__).parents[2] / "docs/performance.md"


def planned(fleet: tuple[str, ...], name: str, *overrides: str) -> tuple[ServerPlan, Touched]:
    """One server of a fleet and what a token of it touches."""
    found = compiled((*fleet, *overrides))
    server = next(s for s in found.plan.servers if s.name == name)
    return server, touched(server)


def test_a_dense_model_is_read_whole() -> None:
    """All of it but the embedding, of which a token reads one row, and half of a slot's K/V."""
    server, found = planned(SOVEREIGN, "mythomax_13b")
    model = server.model
    embedding = next(t.size_bytes for t in model.tensors if t.name == "token_embd.weight")
    kv = sum(m.kv_bytes for m in server.memory)
    assert sum(found.bytes.values()) == pytest.approx(model.tensor_bytes - embedding + kv / 2, rel=1e-6)
    assert set(found.bytes) == {"cuda0"}
    assert 12e9 < found.weights < 13.1e9


def test_only_the_experts_that_are_used_count() -> None:
    """The active weights are those of the model's name, less embedding and output; in RAM where they are kept there."""
    _, eight = planned(EPYC, "frontdoor", "servers.frontdoor.experts_used=null")
    _, six = planned(EPYC, "frontdoor")
    assert 2.6e9 < eight.weights < 2.9e9  # 30B-A3B, 0.6 of them embedding and output
    assert 0.8 < six.bytes["ram"] / eight.bytes["ram"] < 0.95
    _, coder = planned(EPYC, "architect_general", "servers.architect_general.experts_used=null")
    assert 20e9 < coder.weights < 22e9  # 235B-A22B
    server, on_card = planned(SOVEREIGN, "gpt_oss_20b")
    settings = msgspec.structs.replace(server.settings, n_cpu_moe=12)
    split = touched(msgspec.structs.replace(server, settings=settings))
    assert sum(split.bytes.values()) == pytest.approx(sum(on_card.bytes.values()), rel=1e-6)
    assert split.bytes["ram"] > 0.2 * split.bytes["cuda0"]


SERVER, TOUCHED = planned(EPYC, "worker_vision")
HARDWARE = compiled(EPYC).plan.config.hardware
MEASURED = Measurement(
    key="other",
    hardware="epyc",
    server="x",
    model="m",
    quantization="q4_k_m",
    settings="",
    build="b10068",
    at="2026-11-29T12:00:00+00:00",
    prompt_tokens=256,
    n_predict=64,
    batches=5,
    load_average=0.5,
    decode=10.0,
    prompt=100.0,
    memory_bytes=1,
    touched=Touched(bytes={"ram": 2 * TOUCHED.bytes["ram"]}, weights=4 * TOUCHED.weights),
)


def of(**fields: object) -> Measurement:
    """A measurement with some fields changed."""
    return msgspec.structs.replace(MEASURED, **fields)


def stating(rate: int) -> HardwareConfig:
    """The machine with a bandwidth in its file."""
    return msgspec.structs.replace(HARDWARE, read_bandwidth_bytes=rate)


def test_the_nearest_source_is_taken() -> None:
    """Its own measurement, the newest; others of its quantization; any others; the hardware file; nothing."""
    own, later = of(key="own", decode=7.0), of(key="own", decode=8.0, at="2026-11-30T12:00:00+00:00")
    found = expected(SERVER, TOUCHED, HARDWARE, [MEASURED, later, own], "own")
    assert found is not None
    assert (found.source, found.decode, found.prompt) == ("measured", (8.0, 8.0), (100.0, 100.0))
    assert "2026-11-30, b10068" in found.basis
    f16 = of(key="f16", quantization="f16", decode=500.0)
    alike = expected(SERVER, TOUCHED, HARDWARE, [MEASURED, f16], "own")
    assert alike is not None
    assert (alike.source, alike.decode, alike.prompt) == ("calibrated", (15.0, 25.0), (300.0, 500.0))
    wider = msgspec.structs.replace(SERVER, config=msgspec.structs.replace(SERVER.config, quantization="q8_0"))
    wide = expected(wider, TOUCHED, HARDWARE, [MEASURED, f16], "own")
    assert wide is not None
    assert wide.decode == (15.0, 1250.0)
    drafted = expected(SERVER, TOUCHED, stating(TOUCHED.bytes["ram"] * 20), [of(drafts=True)], "own")
    assert drafted is not None
    assert (drafted.source, drafted.decode, drafted.prompt) == ("stated", (15.0, 25.0), None)
    assert expected(SERVER, TOUCHED, HARDWARE, [], "own") is None


def test_what_is_on_one_card_is_known_from_what_was_measured_there() -> None:
    """As in RAM; what was measured in RAM says nothing of a card, nor a card of RAM."""
    server, touches = planned(SOVEREIGN, "mythomax_13b")
    here = msgspec.structs.replace(of().touched, bytes={"cuda0": 2 * touches.bytes["cuda0"]})
    found = expected(server, touches, HARDWARE, [of(touched=here)], "")
    assert found is not None
    assert (found.source, found.decode) == ("calibrated", (15.0, 25.0))
    assert expected(server, touches, HARDWARE, [MEASURED], "") is None
    assert expected(SERVER, TOUCHED, HARDWARE, [of(touched=here)], "") is None


def test_load_times_are_measured_or_read_at_the_disks_speed() -> None:
    """The server's own last start, else its file by what is read a second, else nothing."""
    slow = (*EPYC, "hardware.read_speed_bytes=1GB")
    plan = compiled(slow).plan
    by_disk = {s.server: s.load_s for s in speeds(plan, [of(key="k", load_s=7.5)], {"frontdoor": "k"})}
    sizes = {s.name: s.model.file_bytes for s in plan.servers}
    assert by_disk["frontdoor"] == 7.5
    assert by_disk["worker_vision"] == pytest.approx(sizes["worker_vision"] / 1e9)
    assert {s.load_s for s in speeds(compiled(EPYC).plan, [MEASURED], {})} == {None}


def test_a_target_is_held_against_what_was_measured_here() -> None:
    """In place of what the hardware file states; who is fast enough, or is not wanted to be anything, is not named."""
    stated = compiled((*EPYC, "hardware.read_bandwidth_bytes=300GB"))
    late = {f.key: f for f in stated.findings if f.code == OUT_OF_REACH}
    assert "servers.worker_explore.tokens_per_second_min" in late
    assert "servers.worker_vision.tokens_per_second_min" not in late
    own = [of(key=name, decode=speed) for name, speed in (("worker_explore", 50.0), ("worker_vision", 12.0))]
    here = with_speeds(stated, speeds(stated.plan, own, {m.key: m.key for m in own}))
    now = {f.key: f for f in here.findings if f.code == OUT_OF_REACH}
    assert "servers.worker_explore.tokens_per_second_min" not in now
    found = now["servers.worker_vision.tokens_per_second_min"]
    assert found.message == "worker_vision should make 15 tokens/s, at most 12.0 are expected: 20% short"
    assert found.location is not None
    assert found.notes[0].startswith("measured: ")
    assert with_speeds(stated, stated.plan.speeds) is stated


def test_a_plan_shows_what_was_measured_on_its_hardware_alone() -> None:
    """Embedders have no speed; what was measured on other hardware says nothing."""
    found = compiled(EPYC)
    shown = speeds(found.plan, [MEASURED], {})
    assert {s.server for s in shown} == {s.name for s in found.plan.servers if not s.settings.embedding}
    assert speeds(found.plan, [of(hardware="dev")], {}) == ()


def test_who_shares_a_device_shares_its_rate() -> None:
    """All that are up after start, each an n-th; who waits on demand comes on top; an own node is not shared."""
    names = [s.name for s in compiled(EPYC).plan.servers if s.initial and not s.settings.embedding]
    anywhere = (*EPYC, *(f"servers.{name}.numa=null" for name in names))

    def shown(*overrides: str) -> dict[str, float | None]:
        """By server: how many times slower it is when all generate."""
        found = speeds(compiled((*anywhere, *overrides)).plan, [MEASURED], {})
        return {s.server: round(s.decode[0] / s.together[0], 6) if s.together else None for s in found}

    assert {shown()[name] for name in names} == {len(names)}
    demand = [f"servers.{name}.tier=warm" for name in names[1:]]
    assert [shown(*demand)[name] for name in names[:3]] == [None, 2, 2]
    apart = [f"servers.{name}.numa={{policy: bind, nodes: [{node}]}}" for node, name in enumerate(names[:2])]
    assert [shown(*apart, *demand[1:])[name] for name in names[:3]] == [None, None, 2]


def test_the_documents_speeds_stand_in_the_docs() -> None:
    """docs/performance.md has the table that `python -m tests.plan.documents` prints."""
    assert markdown() in DOCS.read_text(encoding="utf-8")
    assert len({(row.server, row.stated) for row in ROWS}) == 16
