"""What the compiler says of the packaged fleets as they are shipped."""

from __future__ import annotations

import pytest

from launcher.catalog import build
from launcher.plan import apply_waivers, plan_fleet


@pytest.fixture
def plan(fleet):
    """A function from overrides to the plan and all findings of catalogue and plan."""

    def planned(*overrides: str):
        config = fleet(*overrides)
        catalog, findings = build(config)
        result = plan_fleet(config, catalog, deployment="test", input_digest="")
        return result, apply_waivers(config, (*findings, *result.findings))

    return planned


@pytest.mark.parametrize(
    ("profile", "hardware"),
    [
        ("dev", "dev"),
        ("epyc_dev", "epyc"),
        ("hot_only", "epyc"),
        ("full", "epyc"),
        ("three_tier", "sovereign"),
        ("three_tier_small", "dev"),
    ],
)
def test_packaged_fleets_have_nothing_worse_than_notes(plan, profile, hardware):
    """Each packaged fleet fits its machine and breaks no rule but those it waives with a reason."""
    _, findings = plan(f"profile={profile}", f"hardware={hardware}")
    assert [f for f in findings if f.severity != "note"] == []


def test_the_documents_totals_are_noted(plan):
    """538 GB, 460 GB for K/V and 9 servers are said to differ; the unused ports are named."""
    _, findings = plan("profile=hot_only", "hardware=epyc")
    said = {(f.code, f.key) for f in findings}
    assert ("plan/total-mismatch", "stated.hot_ram_bytes") in said
    assert ("plan/kv-reserve", "stated.kv_reserve_bytes") in said
    assert any(code == "plan/port-unused" and key == "ports" for code, key in said)


def test_the_epyc_has_room_for_its_prompt_caches(plan):
    """HOT models, their copies and contexts, and every prompt cache full, stay inside the budget."""
    result, _ = plan("profile=full", "hardware=epyc")
    ram = result.devices[0]
    growth = sum(m.growth_bytes for s in result.servers for m in s.memory if m.device == "ram")
    assert ram.peak_bytes + growth <= ram.budget_bytes


def test_the_card_is_used_as_the_document_wants(plan):
    """The biggest worker takes 90-95 % of the card."""
    result, _ = plan("profile=three_tier", "hardware=sovereign")
    card = next(d for d in result.devices if d.name == "cuda0")
    assert 0.90 <= card.peak_bytes / card.capacity_bytes <= 0.95


@pytest.mark.parametrize("server", ["architect_general", "architect_coding", "ingest_long_context"])
def test_a_repacked_copy_is_what_the_big_ones_avoid(plan, server):
    """Repacking one of the big three adds more anonymous memory than half its file."""
    plain, _ = plan("profile=hot_only", "hardware=epyc")
    copied, _ = plan("profile=hot_only", "hardware=epyc", f"servers.{server}.repack=true")
    more = copied.devices[0].planned_bytes - plain.devices[0].planned_bytes
    file = next(m.file_bytes for s in plain.servers if s.name == server for m in s.memory)
    assert more > file / 2


def test_a_burst_worker_can_be_included_by_its_documented_name(plan):
    """`include_warm=[worker_fast_1]` adds 8102 to the HOT set of hot_only; whose tasks it gets is another override."""
    words = ("profile=hot_only", "hardware=epyc", "include_warm=[worker_fast_1]")
    result, findings = plan(*words)
    worker = next(s for s in result.servers if s.name == "worker_fast_1")
    assert (worker.port, worker.tier) == (8102, "hot")
    (unasked,) = [f for f in findings if f.severity != "note"]
    assert unasked.code == "plan/no-task"
    _, findings = plan(*words, unasked.fixes[0].override)
    assert [f for f in findings if f.severity != "note"] == []
