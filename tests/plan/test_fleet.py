"""The fleet as a whole: order, sharing, exclusive groups, tiers, services, nodes, waivers."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from launcher.ir.catalog import FilePart, ProjectorFile
from launcher.ir.config import (
    CpuConfig,
    DraftConfig,
    FrontConfig,
    NumaConfig,
    NumaNodeConfig,
    RuntimeConfig,
    ServiceConfig,
)
from launcher.plan import apply_waivers, plan_fleet
from launcher.plan.fleet import topological
from launcher.plan.server import start_timeout_s
from launcher.sizes import GIB, MIB

from .fleets import TINY, catalog, codes, fleet, hardware, model_file, only, planned, server, with_fields


def test_servers_start_as_listed_after_what_they_name() -> None:
    """Edges first, then the order of the config."""
    plan = planned({"c": server(after=("a",)), "b": server(), "a": server()})
    assert [s.name for s in plan.servers] == ["b", "a", "c"]


@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True), max_size=8
    )
)
def test_topological_order(after: dict[str, list[str]]) -> None:
    """Every name once; without cycles each after what it names; cycles and unknown names are findings."""
    order, findings = topological(after)
    assert sorted(order) == sorted(after)
    if not any(f.code == "plan/start-cycle" for f in findings):
        assert all(order.index(o) < order.index(n) for n, others in after.items() for o in others if o in after)
    unknown = sum(1 for others in after.values() for o in others if o not in after)
    assert sum(1 for f in findings if f.code == "plan/start-unknown") == unknown


def test_a_cycle_is_an_error() -> None:
    """And the plan still has an order."""
    plan = planned({"a": server(after=("b",)), "b": server(after=("a",))})
    assert "error plan/start-cycle" in codes(plan)
    assert len(plan.servers) == 2


def test_big_models_load_one_after_another() -> None:
    """Each waits for the last big one; small ones, and those on demand, wait for nobody."""
    size = model_file().file_bytes
    runtime = RuntimeConfig(parallel_start_below_bytes=size)
    small = model_file(with_fields(TINY, n_layer=1), name="small")
    servers = {
        "a": server(),
        "s": server(model="small"),
        "b": server(after=("s",)),
        "w": server(tier="warm"),
        "c": server(after=("b",)),
    }
    plan = planned(servers, model_file(), small, runtime=runtime)
    assert {s.name: s.after for s in plan.servers} == {"a": (), "s": (), "b": ("s", "a"), "w": (), "c": ("b",)}


def test_a_mapped_file_is_counted_once() -> None:
    """At the first by name; the others name who they share with."""
    plan = planned({"b": server(), "a": server(), "c": server(load_mode="none")})
    a, b, c = (only(plan, n).memory[0] for n in "abc")
    assert a.file_bytes > 0
    assert (a.shared_with, b.shared_with, c.shared_with) == (("b",), ("a",), ())
    assert (b.file_bytes, b.model_bytes) == (0, 0)
    assert c.model_bytes > 0


def test_one_inode_is_one_file() -> None:
    """Two paths to one file share their pages."""
    other = model_file(name="other", path="/elsewhere.gguf")
    part = FilePart(path="/elsewhere.gguf", size_bytes=1, inode=(1, 2))
    one = FilePart(path="/here.gguf", size_bytes=1, inode=(1, 2))
    models = [
        type(m)(**{f: getattr(m, f) for f in m.__struct_fields__} | {"parts": (p,)})
        for m, p in ((model_file(), one), (other, part))
    ]
    plan = planned({"a": server(), "b": server(model="other")}, *models)
    assert only(plan, "b").memory[0].shared_with == ("a",)


def test_a_server_on_demand_does_not_carry_pages_of_the_hot_set() -> None:
    """The first by name among those that are up at boot does."""
    plan = planned({"a": server(tier="warm"), "b": server()})
    assert only(plan, "a").memory[0].file_bytes == 0
    assert only(plan, "b").memory[0].file_bytes > 0


def test_members_of_exclusive_groups_own_their_pages() -> None:
    """They may be down when others need the pages."""
    plan = planned({"a": server(exclusive="g"), "b": server(exclusive="g"), "c": server(exclusive="h")})
    assert all(s.memory[0].file_bytes > 0 for s in plan.servers)


def test_a_draft_shares_the_pages_of_its_model() -> None:
    """A draft is a mapped file like any other."""
    draft = DraftConfig(model="tiny", quantization="q8_0")
    big = model_file(with_fields(TINY, n_layer=4), name="big")
    plan = planned({"a": server(), "b": server(model="big", draft=draft)}, model_file(), big)
    memory = only(plan, "b").memory[0]
    assert memory.shared_with == ("a",)
    assert memory.file_bytes == memory.model_bytes > 0
    assert memory.draft_bytes > 0
    assert only(plan, "b").draft_path == "/models/tiny-q8_0.gguf"


def test_exclusive_groups_start_their_default() -> None:
    """Planned has the default, peak the largest."""
    big = model_file(with_fields(TINY, n_layer=40), name="big")
    group = {"exclusive": "gpu", "port": 9000}
    plan = planned({"a": server(model="big", **group), "b": server(default=True, **group)}, model_file(), big)
    a, b = (only(plan, n).memory[0] for n in "ab")
    assert plan.devices[0].planned_bytes == b.planned_bytes
    assert plan.devices[0].peak_bytes == a.resident_peak_bytes > b.resident_peak_bytes
    assert plan.totals.threads == 1


def test_tiers_decide_what_counts() -> None:
    """HOT after start, WARM at worst, COLD never."""
    plan = planned({"h": server(), "w": server(tier="warm", load_mode="none"), "c": server(tier="cold")})
    hot, warm = (only(plan, n).memory[0] for n in "hw")
    assert plan.devices[0].planned_bytes == hot.planned_bytes
    assert plan.devices[0].peak_bytes == hot.resident_peak_bytes + warm.resident_peak_bytes
    assert plan.totals.warm_ram_bytes == warm.planned_bytes


def test_included_warm_servers_are_hot() -> None:
    """include_warm moves them to the tier that starts at boot."""
    plan = planned({"h": server(), "w": server(tier="warm")}, include_warm=("w",))
    assert only(plan, "w").tier == "hot"
    assert plan.totals.warm_ram_bytes == 0


def test_services_count_in_ram() -> None:
    """By their tier; our own front takes its port from runtime.front."""
    services = {
        "api": ServiceConfig(builtin="front"),
        "index": ServiceConfig(command=("x",), port=8088, ram_bytes=GIB),
        "burst": ServiceConfig(command=("x",), port=8089, ram_bytes=GIB, tier="warm"),
    }
    plan = planned({"a": server()}, services=services, runtime=RuntimeConfig(front=FrontConfig(port=8123)))
    memory = only(plan, "a").memory[0]
    assert plan.devices[0].planned_bytes == memory.planned_bytes + GIB
    assert plan.devices[0].peak_bytes == memory.resident_peak_bytes + 2 * GIB
    assert {s.name: s.port for s in plan.services} == {"api": 8123, "index": 8088, "burst": 8089}
    assert not plan.findings


def two_nodes(ram_bytes: int) -> Any:
    """A host of two nodes of that size."""
    nodes = tuple(NumaNodeConfig(id=i, cpus=f"{4 * i}-{4 * i + 3}", ram_bytes=ram_bytes) for i in (0, 1))
    return hardware(cpu=CpuConfig(physical_cores=8, logical_cores=8, nodes=nodes))


def test_nodes_get_what_policies_say() -> None:
    """Interleave splits, bind and preferred stay, and what preferred cannot hold spills over."""
    nothing = planned({"a": server()}, hardware=two_nodes(GIB))
    whole = nothing.devices[0].planned_bytes
    assert [n.planned_bytes for n in nothing.devices[0].nodes] == [whole - whole // 2, whole // 2]
    bound = planned({"a": server(numa=NumaConfig(policy="bind", nodes=(1,)))}, hardware=two_nodes(GIB))
    assert [n.planned_bytes for n in bound.devices[0].nodes] == [0, whole]
    assert [n.servers for n in bound.devices[0].nodes] == [{}, {"a": whole}]
    preferred = server(numa=NumaConfig(policy="preferred", nodes=(1,)))
    spilled = planned({"a": preferred}, hardware=two_nodes(8 * MIB))
    assert [n.servers for n in spilled.devices[0].nodes] == [{"a": whole - 8 * MIB}, {"a": 8 * MIB}]
    assert "note plan/node-over-budget" in codes(spilled)


def test_binding_more_than_a_node_has_is_an_error() -> None:
    """Policy bind never spills."""
    plan = planned({"a": server(numa=NumaConfig(policy="bind", nodes=(1,)))}, hardware=two_nodes(8 * MIB))
    assert "error plan/node-over-budget" in codes(plan)


def test_nodes_hold_the_worst_set_and_what_is_locked() -> None:
    """A WARM server counts in the peak, of an exclusive group the larger member; only locking modes lock."""
    bind = NumaConfig(policy="bind", nodes=(1,))
    servers = {
        "a": server(numa=bind, load_mode="mmap+mlock"),
        "b": server(numa=bind, tier="warm", exclusive="x", n_ctx=512),
        "c": server(numa=bind, tier="warm", exclusive="x", n_ctx=8192),
    }
    plan = planned(servers, hardware=two_nodes(GIB))
    a, c = only(plan, "a").memory[0], only(plan, "c").memory[0]
    near, far = plan.devices[0].nodes
    assert (near.peak_bytes, near.locked_bytes) == (0, 0)
    assert (far.planned_bytes, far.locked_bytes) == (a.planned_bytes, a.locked_bytes)
    assert a.locked_bytes > 0
    assert far.peak_bytes == a.resident_peak_bytes + c.resident_peak_bytes


def test_a_node_that_only_the_worst_set_overfills_is_an_error() -> None:
    """What starts on demand is bound, too."""
    bind = NumaConfig(policy="bind", nodes=(1,))
    alone = planned({"a": server(numa=bind)}, hardware=two_nodes(GIB)).devices[0].nodes[1].peak_bytes
    both = {"a": server(numa=bind), "b": server(numa=bind, tier="warm", load_mode="none")}
    plan = planned(both, hardware=two_nodes(alone + MIB))
    (found,) = [f for f in plan.findings if f.code == "plan/node-over-budget"]
    assert (found.severity, "when all that the tiers allow is up" in found.message) == ("error", True)


def test_more_locked_than_a_node_has_is_a_warning() -> None:
    """Unbound memory falls back to other nodes, and is locked there."""
    half = only(planned({"a": server(load_mode="mlock")}), "a").memory[0].locked_bytes // 2
    sizes = ((0, half - 1), (1, GIB))
    nodes = tuple(NumaNodeConfig(id=i, cpus=f"{4 * i}-{4 * i + 3}", ram_bytes=size) for i, size in sizes)
    host = hardware(cpu=CpuConfig(physical_cores=8, logical_cores=8, nodes=nodes))
    locked = planned({"a": server(load_mode="mlock")}, hardware=host)
    assert "warning plan/node-over-budget" in codes(locked)
    assert codes(planned({"a": server()}, hardware=host)) == []


def test_server_plan_leaves_nothing_to_the_binary() -> None:
    """Slots, threads, layers, attention and experts are settled."""
    projector = ProjectorFile(model="tiny", path="/p.gguf", tensor_bytes=MIB, compute_bytes=2 * MIB, source="declared")
    plan = planned(
        {"a": server(slots=None, threads=None, n_gpu_layers="all", projector=True)}, projectors={"tiny": projector}
    )
    (found,) = plan.servers
    settings = found.settings
    assert (settings.slots, settings.kv_unified, settings.threads, settings.threads_batch) == (4, True, 8, 8)
    assert (settings.n_gpu_layers, settings.flash_attention, found.projector_path) == (0, True, "/p.gguf")
    assert (found.modalities, found.model.n_params > 0, found.model.tensor_bytes > 0) == (("text", "image"), True, True)
    assert found.memory[0].projector_bytes == 3 * MIB
    assert [part.path for part in found.model.parts] == ["/models/tiny-q8_0.gguf"]


def test_threads_are_the_cores_of_the_cpuset() -> None:
    """Siblings count once."""
    plan = planned({"a": server(threads=None, cpus="0-3,8-11"), "b": server(threads=None, cpus="0,x")})
    assert only(plan, "a").settings.threads == 4
    assert "error plan/cpu-list" in codes(plan)


def test_dangling_references_are_errors_not_exceptions() -> None:
    """A model without a file, an unknown tier, draft, device or port."""
    servers = {
        "model": server(model="nothing"),
        "tier": server(tier="lukewarm"),
        "draft": server(draft=DraftConfig(model="no", quantization="q8_0")),
        "device": server(devices=("cuda7",)),
        "port": server(),
    }
    plan = planned(servers, ports={"draft": 9001, "device": 9002})
    found = {f.key for f in plan.findings if f.severity == "error"}
    assert found == {
        "servers.model.quantization",
        "servers.tier.tier",
        "servers.draft.draft",
        "servers.device.devices",
        "servers.port.port",
    }
    assert {s.name for s in plan.servers} == {"draft", "device", "port"}


def test_an_empty_fleet_is_a_plan() -> None:
    """Of nothing to run, one thing is to be said."""
    plan = planned({})
    assert (plan.servers, plan.devices[0].planned_bytes) == ((), 0)
    assert [f.code for f in plan.findings] == ["plan/no-servers"]


SLOT_CONTEXT = {"embedding": True, "slots": 4, "n_ctx": 2048, "n_ubatch": 512}
"""A server that yields plan/slot-context and nothing else."""


def test_a_waiver_with_a_reason_removes_a_warning() -> None:
    """On the server for its own keys, on the fleet for all."""
    reason = {"plan/slot-context": "short texts only"}
    assert codes(planned({"a": server(**SLOT_CONTEXT)})) == ["warning plan/slot-context"]
    assert not planned({"a": server(**SLOT_CONTEXT, waive=(reason,))}).findings
    assert not planned({"a": server(**SLOT_CONTEXT)}, waive=(reason,)).findings
    elsewhere = planned({"a": server(**SLOT_CONTEXT), "ab": server(waive=(reason,))})
    assert "warning plan/slot-context" in codes(elsewhere)
    assert "note plan/waiver-unused" in codes(elsewhere)


def test_a_waiver_without_a_reason_is_not_applied() -> None:
    """The warning stays, and a note says why."""
    plan = planned({"a": server(**SLOT_CONTEXT, waive=("plan/slot-context",))})
    assert codes(plan) == ["warning plan/slot-context", "note plan/waiver-unused"]
    assert plan.findings[1].key == "servers.a.waive.0"


def test_an_error_cannot_be_waived() -> None:
    """It stays, and a warning says so."""
    plan = planned({"a": server(experts_used=3, waive=({"plan/moe-experts": "please"},))})
    assert codes(plan) == ["error plan/moe-experts", "warning config/waiver-of-error"]


def test_waivers_of_other_stages_are_left_to_them() -> None:
    """An engine warning's waiver is not called unused here, and works on that stage's findings."""
    waive = ({"engine/deprecated-flag": "known"},)
    assert not planned({"a": server(waive=waive)}).findings
    assert apply_waivers(fleet({"a": server(waive=waive)}), ()) == ()


def test_catalog_lookup_is_by_model_and_quantization() -> None:
    """The same model in two quantizations is two files."""
    other = model_file(quantization="f16", kind="f16", embedding="f16")
    plan = planned({"a": server(), "b": server(quantization="f16")}, model_file(), other)
    assert only(plan, "a").memory[0].model_bytes < only(plan, "b").memory[0].model_bytes
    assert catalog(other).get("tiny", "q8_0") is None


def test_large_models_start_one_after_another_with_a_pause() -> None:
    """The second of two waits for the first, and `cooldown_s` more; small ones wait for nobody."""
    small, large = model_file(name="small"), model_file(name="large")
    part = msgspec.structs.replace(large.parts[0], size_bytes=9 * GIB)
    large = msgspec.structs.replace(large, parts=(part,))
    servers = {n: server(model=m, load_mode="none") for n, m in (("a", "large"), ("b", "small"), ("c", "large"))}
    whole = msgspec.structs.replace(fleet(servers, hardware=hardware()), runtime=RuntimeConfig(cooldown_s=5))
    plan = plan_fleet(whole, catalog(small, large), deployment="d", input_digest="")
    assert {s.name: (s.after, s.cooldown_s) for s in plan.servers} == {"a": ((), 0), "b": ((), 0), "c": (("a",), 5)}


def test_a_start_that_nobody_limits_is_as_long_as_reading_takes() -> None:
    """F20: 270 GB from a hard disk take longer than three minutes; from a fast medium not."""
    assert start_timeout_s(270 * 10**9, None) == 60 + 2 * 1350
    assert start_timeout_s(270 * 10**9, 3 * 10**9) == 240
    assert start_timeout_s(10**9, None) == 180
