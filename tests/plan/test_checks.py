"""Every check, both ways: what triggers it and what does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from launcher.errors import Finding
from launcher.ir.catalog import ModelFile, ProjectorFile
from launcher.ir.config import (
    CpuConfig,
    DraftConfig,
    NgramConfig,
    NumaConfig,
    NumaNodeConfig,
    OrchestrationConfig,
    RungConfig,
    ServerConfig,
    ServiceConfig,
    StatedTotals,
    WarmPoolConfig,
)
from launcher.ir.plan import FleetPlan
from launcher.plan.checks import CHECKS
from launcher.render.spellings import expert_key
from launcher.sizes import GIB, MIB

from .fleets import (
    HYBRID,
    MLA,
    QWEN3_30B,
    TINY,
    codes,
    declared,
    hardware,
    model_file,
    only,
    planned,
    server,
    with_fields,
)

BIG = with_fields(TINY, n_layer=24, n_embd=2048, n_head=16, n_head_kv=8, n_ff=8192, n_ctx_train=131072)
BIG_FILES = (
    model_file(BIG, name="big"),
    model_file(BIG, name="big", quantization="q4", kind="q4_1"),
    model_file(BIG, name="big", quantization="f16", kind="f16"),
)
EXPERTS = model_file(with_fields(QWEN3_30B, n_layer=2, n_vocab=320), name="experts")
DRAFT = DraftConfig(model="draft", quantization="q8_0")
PROJECTOR = ProjectorFile(model="tiny", path="/p.gguf", tensor_bytes=MIB, compute_bytes=MIB, source="declared")


def found(plan: FleetPlan, code: str) -> list[Finding]:
    """Findings of that code."""
    return [f for f in plan.findings if f.code == code]


def override(config: ServerConfig, text: str) -> ServerConfig:
    """`config` with the overrides of one fix applied, decoded as the config stage would."""
    fields = dict(item.partition("=")[::2] for item in text.split())
    tree = msgspec.to_builtins(config) | {
        k.rpartition(".")[2]: None if v == "null" else v == "true" if v in {"true", "false"} else v
        for k, v in fields.items()
    }
    return msgspec.convert(tree, ServerConfig, strict=False)


def test_checks_are_documented_by_their_codes() -> None:
    """Every check's docstring starts with the codes that it yields."""
    assert all((check.__doc__ or "").startswith("`") for check in CHECKS)


# --- budgets ------------------------------------------------------------------------------------------------


def big_fleet(config: ServerConfig, ram_bytes: int = 64 * GIB) -> FleetPlan:
    """One server of a model of 1.7 GiB, which has a smaller file in the catalogue and a published one beside it."""
    entry = declared("big", BIG, {"q8_0": 0, "q4": 0, "f16": 0, "q2": 300 * MIB})
    host = hardware(ram_bytes=ram_bytes, features=("avx2",))
    return planned({"a": config}, *BIG_FILES, models={"big": entry}, hardware=host)


BIG_SERVER = server(model="big", n_ctx=32768, slots=2)


def test_ram_over_budget_names_the_biggest_and_prices_fixes() -> None:
    """The fixes are sorted by what they lose, and each saves what it says."""
    before = only(big_fleet(BIG_SERVER), "a").memory[0].resident_peak_bytes
    (finding,) = found(big_fleet(BIG_SERVER, before - GIB), "plan/ram-over-budget")
    assert finding.severity == "error"
    assert finding.notes[0].startswith("a needs ")
    assert "GiB model" in finding.notes[0]
    assert [fix.override for fix in finding.fixes] == [
        "servers.a.cache_type_k=q8_0 servers.a.cache_type_v=q8_0",
        "servers.a.n_ctx=16384",
        "servers.a.quantization=q4",
        "servers.a.quantization=q2",
    ]
    for fix in finding.fixes[:3]:
        after = only(big_fleet(override(BIG_SERVER, fix.override)), "a").memory[0].resident_peak_bytes
        saved = before - after
        assert (f"{saved / GIB:.1f} GiB" if saved >= GIB else f"{saved / MIB:.0f} MiB") in fix.effect
    assert finding.fixes[3].effect.startswith("saves about ")


def test_doing_without_a_service_is_a_way_out() -> None:
    """The last one, beside doing without a server; a builtin one, and one that never starts, are none."""
    ocr = ServiceConfig(command=("ocr",), port=9100, ram_bytes=15 * GIB)
    idle = ServiceConfig(command=("idle",), port=9101, ram_bytes=15 * GIB, tier="cold")
    fields = {"services": {"ocr": ocr, "idle": idle}, "hardware": hardware(ram_bytes=10 * GIB)}
    (finding,) = found(planned({"a": server()}, **fields), "plan/ram-over-budget")
    assert [(f.override, f.effect) for f in finding.fixes][-1] == (
        "services.ocr.tier=cold",
        "saves 15.0 GiB, enough",
    )
    assert not any("idle" in fix.override for fix in finding.fixes)


def test_a_fix_that_says_enough_is_enough() -> None:
    """Applied, the plan fits; one that does not say so leaves it over."""
    budget = only(big_fleet(BIG_SERVER), "a").memory[0].resident_peak_bytes - 850 * MIB
    (finding,) = found(big_fleet(BIG_SERVER, budget), "plan/ram-over-budget")
    verdicts = set()
    for fix in finding.fixes[:3]:
        left = found(big_fleet(override(BIG_SERVER, fix.override), budget), "plan/ram-over-budget")
        assert ("enough" in fix.effect) is not bool(left)
        verdicts.add(bool(left))
    assert verdicts == {True, False}


def test_repacked_copies_are_the_first_thing_to_give_up() -> None:
    """No quality is lost without them."""
    entry = model_file(BIG, name="big", quantization="q4", kind="q4_k")
    host = hardware(ram_bytes=GIB, features=("avx2",))
    plan = planned({"a": server(model="big", quantization="q4")}, entry, hardware=host)
    (finding,) = found(plan, "plan/ram-over-budget")
    assert finding.fixes[0].override == "servers.a.repack=false"


def test_ram_that_fits_is_not_mentioned() -> None:
    """Nothing to say."""
    assert not big_fleet(BIG_SERVER).findings


def test_the_worst_set_must_fit_too() -> None:
    """A WARM server that fits only alone."""
    servers = {"a": server(), "b": server(tier="warm", load_mode="none")}
    one = planned({"a": server()}).devices[0].peak_bytes
    plan = planned(servers, hardware=hardware(ram_bytes=one + MIB))
    (finding,) = found(plan, "plan/ram-over-budget")
    assert "all that the tiers allow" in finding.message


def test_vram_over_budget_and_target() -> None:
    """Above the target share an error, below it a note, within it nothing."""
    config = {"devices": ("cuda0",), "n_gpu_layers": "all"}
    peak = planned({"a": server(**config)}, hardware=hardware(gpus={"cuda0": GIB})).devices[1].peak_bytes
    sizes = {int(peak / 0.96): "error plan/vram-over-budget", int(peak / 0.5): "note plan/vram-target"}
    for vram, code in sizes.items():
        assert code in codes(planned({"a": server(**config)}, hardware=hardware(gpus={"cuda0": vram})))
    assert not planned({"a": server(**config)}, hardware=hardware(gpus={"cuda0": int(peak / 0.93)})).findings


def test_an_unused_card_has_no_target() -> None:
    """A host may have one that this fleet does not use."""
    assert not planned({"a": server()}, hardware=hardware(gpus={"cuda0": GIB})).findings


def test_prompt_caches_beyond_the_budget() -> None:
    """A warning with a limit for each server that fits."""
    servers = {"a": server(cache_ram_mib=8192), "b": server(cache_ram_mib=8192)}
    plan = planned(servers, hardware=hardware(ram_bytes=2 * GIB))
    (finding,) = found(plan, "plan/prompt-cache-over-budget")
    changed = {n: override(c, f.override) for (n, c), f in zip(servers.items(), finding.fixes, strict=True)}
    assert not planned(changed, hardware=hardware(ram_bytes=2 * GIB)).findings or all(
        f.code != "plan/prompt-cache-over-budget"
        for f in planned(changed, hardware=hardware(ram_bytes=2 * GIB)).findings
    )
    assert not found(planned(servers), "plan/prompt-cache-over-budget")


def test_unlimited_prompt_cache() -> None:
    """-1 is warned of; embedders have none."""
    assert codes(planned({"a": server(cache_ram_mib=-1)})) == ["warning plan/prompt-cache-unlimited"]
    embedder = server(cache_ram_mib=-1, embedding=True, n_ctx=8192, n_ubatch=8192, n_batch=8192)
    assert not planned({"a": embedder}).findings


def test_stated_totals_are_compared() -> None:
    """Notes where documents and plan differ; nothing where they agree."""
    plan = planned({"a": server()})
    ram, kv = plan.totals.hot_ram_bytes, plan.totals.kv_bytes
    agreeing = StatedTotals(hot_ram_bytes=ram, kv_reserve_bytes=kv, servers=1)
    assert not planned({"a": server()}, stated=agreeing).findings
    wrong = StatedTotals(hot_ram_bytes=2 * ram, kv_reserve_bytes=20 * kv, servers=9, source="the book")
    found_codes = codes(planned({"a": server()}, stated=wrong))
    assert found_codes == ["note plan/total-mismatch", "note plan/kv-reserve", "note plan/port-unused"]


def orchestrated(ladder: tuple[RungConfig, ...], **fields: Any) -> FleetPlan:
    """A fleet with a router, one worker and an out-of-memory ladder."""
    wide = with_fields(TINY, key_length=32, value_length=32)
    orchestration = OrchestrationConfig(router="a", workers=("b",), oom_ladder=ladder, **fields)
    servers = {"a": server(), "b": server(model="worker", n_ctx=8192)}
    return planned(servers, model_file(), model_file(wide, name="worker"), orchestration=orchestration)


def test_every_rung_is_smaller_than_the_one_before() -> None:
    """A rung that saves nothing is warned of."""
    good = (RungConfig(n_ctx=4096), RungConfig(n_ctx=4096, cache_type_k="q8_0", cache_type_v="q8_0"))
    assert not orchestrated(good).findings
    (finding,) = orchestrated((RungConfig(n_ctx=4096), RungConfig(n_ctx=8192))).findings
    assert (finding.code, finding.key) == ("plan/ladder-order", "orchestration.oom_ladder.1")


def test_warm_pool_beside_the_worst_set() -> None:
    """Files that are kept in RAM must fit."""
    assert not orchestrated((), warm_pool=WarmPoolConfig(ram_bytes=GIB)).findings
    assert codes(orchestrated((), warm_pool=WarmPoolConfig(ram_bytes=64 * GIB))) == [
        "warning plan/warm-pool-over-budget"
    ]


# --- contexts -----------------------------------------------------------------------------------------------


def test_embedder_slots_below_the_model() -> None:
    """The seed's -c 512 -np 4: 128 tokens a slot, padded to 256."""
    bert = model_file(with_fields(TINY, arch="bert", causal=False, n_ctx_train=512), name="bge")
    embedder = {"model": "bge", "embedding": True, "slots": 4}
    (finding,) = planned({"a": server(**embedder, n_ctx=512)}, bert).findings
    assert (finding.code, finding.severity, finding.key) == ("plan/slot-context", "warning", "servers.a.n_ctx")
    assert "256 tokens (512 over 4 slots is 128, padded" in finding.message
    assert finding.fixes[0].override == "servers.a.n_ctx=2048"
    assert not planned({"a": server(**embedder, n_ctx=2048)}, bert).findings


def test_embedding_batch_below_the_slot() -> None:
    """A text must fit into one micro-batch."""
    embedder = {"embedding": True, "n_ctx": 8192, "n_batch": 8192}
    (finding,) = planned({"a": server(**embedder, n_ubatch=512)}).findings
    assert finding.code == "plan/embedding-batch"
    assert finding.fixes[0].override == "servers.a.n_ubatch=8192"
    assert not planned({"a": server(**embedder, n_ubatch=8192)}).findings


def test_quantised_v_needs_flash_attention() -> None:
    """K alone does not."""
    wide = model_file(with_fields(TINY, key_length=32, value_length=32))
    off = {"flash_attention": "off"}
    assert codes(planned({"a": server(cache_type_v="q8_0", **off)}, wide)) == ["error plan/flash-attention-required"]
    assert not planned({"a": server(cache_type_k="q8_0", **off)}, wide).findings
    assert not planned({"a": server(cache_type_v="q8_0")}, wide).findings


def test_heads_are_whole_blocks() -> None:
    """Heads of 16 cannot be q8_0, which has blocks of 32."""
    plan = planned({"a": server(cache_type_k="q8_0")})
    assert codes(plan) == ["error plan/cache-type-block"]
    assert plan.findings[0].key == "servers.a.cache_type_k"


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "severity"), [(None, None), (4, None), (8, None), (3, "warning"), (0, "error"), (129, "error")]
)
def test_experts(used: int | None, severity: str | None) -> None:
    """Between the coherent minimum and all there are."""
    plan = planned({"a": server(model="experts", experts_used=used)}, EXPERTS)
    assert [f.severity for f in found(plan, "plan/moe-experts")] == ([severity] if severity else [])


def test_experts_of_a_dense_model() -> None:
    """Refused; and the override key is the architecture's where there are some."""
    assert codes(planned({"a": server(experts_used=2)})) == ["error plan/moe-experts"]
    plan = planned({"a": server(model="experts", experts_used=6)}, EXPERTS)
    assert expert_key(plan.servers[0]) == "qwen3moe.expert_used_count"
    assert plan.servers[0].settings.n_expert_used == 6


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, True),
        ({"n_vocab": 320 + 128}, True),
        ({"n_vocab": 320 + 129}, False),
        ({"tokenizer": "llama"}, False),
        ({"bos_token_id": 2}, False),
        ({"bos_token_id": 1}, True),
    ],
)
def test_draft_vocabulary(fields: dict[str, Any], fits: bool) -> None:
    """Sizes within 128, the same tokenizer, the same BOS."""
    target = model_file(with_fields(TINY, bos_token_id=1))
    draft = model_file(with_fields(TINY, n_layer=1, **fields), name="draft")
    plan = planned({"a": server(draft=DRAFT)}, target, draft)
    assert codes(plan) == ([] if fits else ["error plan/draft-vocabulary"])


@pytest.mark.parametrize(
    ("model", "fields", "refused"),
    [
        (model_file(), {}, False),
        (model_file(HYBRID), {}, False),
        (model_file(MLA), {}, False),
        (model_file(), {"projector": True}, False),
        (model_file(), {"embedding": True, "n_ctx": 8192, "n_batch": 8192, "n_ubatch": 8192}, True),
    ],
    ids=["dense", "hybrid", "mla", "multimodal", "embedding"],
)
def test_speculation(model: ModelFile, fields: dict[str, Any], refused: bool) -> None:
    """By draft or n-grams: of every model that writes (F4)."""
    draft = model_file(with_fields(TINY, n_layer=1), name="draft")
    for given in ({"draft": DRAFT}, {"ngram": NgramConfig()}):
        plan = planned({"a": server(**fields, **given)}, model, draft, projectors={"tiny": PROJECTOR})
        assert codes(plan) == (["error plan/speculation-unsupported"] if refused else [])


def test_projector() -> None:
    """Missing is an error, of unknown compute a note."""
    assert codes(planned({"a": server(projector=True)})) == ["error plan/projector-missing"]
    assert not planned({"a": server(projector=True)}, projectors={"tiny": PROJECTOR}).findings
    unknown = msgspec.structs.replace(PROJECTOR, compute_bytes=0)
    assert codes(planned({"a": server(projector=True)}, projectors={"tiny": unknown})) == [
        "note plan/projector-compute"
    ]


def test_files_served_twice() -> None:
    """Shared pages are a note, copies a warning, taking turns nothing."""
    assert codes(planned({"a": server(), "b": server()})) == ["note plan/file-shared"]
    plan = planned({"a": server(load_mode="mlock"), "b": server()})
    assert codes(plan) == ["warning plan/model-duplicated"]
    assert plan.findings[0].fixes[0].override == "servers.a.load_mode=mmap+mlock"
    turns = {"exclusive": "g", "load_mode": "none"}
    assert not planned({"a": server(**turns), "b": server(**turns)}).findings


# --- processes ----------------------------------------------------------------------------------------------


def test_port_conflicts() -> None:
    """One address twice; unless they take turns or bind different hosts."""
    other = model_file(name="other")

    def pair(first: dict[str, Any], second: dict[str, Any], **fields: Any) -> list[str]:
        return codes(
            planned({"a": server(**first), "b": server(model="other", **second)}, model_file(), other, **fields)
        )

    both = ["error plan/port-conflict"] * 2
    assert pair({"port": 9000}, {"port": 9000}) == [*both, "note plan/port-unused"]
    assert pair({"port": 8000}, {}, ports={"b": 9001}) == both
    anywhere = pair({"port": 9000, "host": "0.0.0.0"}, {"port": 9000}, ports={})
    assert anywhere == [*both, "warning plan/host-without-key"]
    assert pair({"port": 9000, "host": "127.0.0.2"}, {"port": 9000}, ports={}) == []
    turns = {"port": 9000, "exclusive": "g"}
    assert pair(turns, turns, ports={}) == []
    assert "error plan/port-conflict" in pair({}, {}, ports={"a": 9000, "b": 9000})


def test_service_ports() -> None:
    """A service on a server's port; our own front is the front, not its rival."""
    service = ServiceConfig(command=("x",), port=9001)
    assert codes(planned({"a": server()}, services={"s": service})) == ["error plan/port-conflict"] * 2
    assert not planned({"a": server()}, services={"s": ServiceConfig(builtin="front")}).findings


def test_documented_ports_that_nothing_uses() -> None:
    """The seed's 8112."""
    (finding,) = planned({"a": server()}, ports={"a": 9001, "b": 8112}).findings
    assert (finding.code, finding.severity, finding.key) == ("plan/port-unused", "note", "ports.b")
    assert "8112 (b)" in finding.message


def test_threads_against_cores() -> None:
    """In all: servers that may be busy at once, one of an exclusive group; and in a server's own cpuset."""
    other = model_file(name="other")
    both = {"a": server(threads=6), "b": server(model="other", threads=6)}
    (finding,) = planned(both, model_file(), other).findings
    assert (finding.code, finding.severity) == ("cpu/oversubscribed", "warning")
    assert "12 threads" in finding.message
    turns = {n: msgspec.structs.replace(s, exclusive="g") for n, s in both.items()}
    assert not planned(turns, model_file(), other).findings
    (narrow,) = planned({"a": server(threads=6, cpus="0-3,8-11")}).findings
    assert (narrow.code, narrow.key) == ("cpu/oversubscribed", "servers.a.threads")
    assert narrow.fixes[0].override == "servers.a.threads=4"


def test_cpusets_on_several_nodes() -> None:
    """They need a memory policy."""
    nodes = tuple(NumaNodeConfig(id=i, cpus=f"{4 * i}-{4 * i + 3}", ram_bytes=GIB) for i in (0, 1))
    host = hardware(cpu=CpuConfig(physical_cores=8, logical_cores=8, nodes=nodes))
    assert codes(planned({"a": server(cpus="2-5")}, hardware=host)) == ["warning cpu/cpuset-straddles"]
    assert not planned({"a": server(cpus="0-3")}, hardware=host).findings
    policy = NumaConfig(policy="interleave")
    assert not planned({"a": server(cpus="2-5", numa=policy)}, hardware=host).findings


def test_cores_beyond_count() -> None:
    """A number with some zeros too many is no list of that length: it would fill the memory."""
    host = hardware(cpu=CpuConfig(physical_cores=8, logical_cores=10**15))
    assert not planned({"a": server(cpus="0-3")}, hardware=host).findings


def test_memlock() -> None:
    """Locked bytes of a process against its limit, shared or not."""
    locked = {"a": server(load_mode="mmap+mlock"), "b": server(load_mode="mmap+mlock")}
    plan = planned(locked, hardware=hardware(memlock_bytes=1000))
    assert [f.key for f in found(plan, "plan/memlock-limit")] == ["servers.a.load_mode", "servers.b.load_mode"]
    assert not found(planned(locked, hardware=hardware(memlock_bytes=GIB)), "plan/memlock-limit")
    assert not found(planned({"a": server()}, hardware=hardware(memlock_bytes=1000)), "plan/memlock-limit")


def test_timeouts() -> None:
    """An inner timeout that could only fire after the outer one."""
    (finding,) = planned({"a": server(start_timeout_s=30, stall_timeout_s=60)}).findings
    assert (finding.code, finding.key) == ("plan/timeout-order", "servers.a.stall_timeout_s")
    assert not planned({"a": server(start_timeout_s=60, stall_timeout_s=60)}).findings
    slow = OrchestrationConfig(router="a", workers=("b",), router_timeout_s=600)
    assert codes(planned({"a": server()}, orchestration=slow)) == ["warning plan/timeout-order"]


def test_devices_and_layers_go_together() -> None:
    """Devices without layers, layers without devices."""
    host = hardware(gpus={"cuda0": 1 << 40})
    assert "warning plan/gpu-unused-layers" in codes(planned({"a": server(devices=("cuda0",))}, hardware=host))
    assert codes(planned({"a": server(n_gpu_layers=5)})) == ["warning plan/gpu-unused-layers"]
    whole = server(devices=("cuda0",), n_gpu_layers="all")
    assert "warning plan/gpu-unused-layers" not in codes(planned({"a": whole}, hardware=host))
