"""Laws that every plan obeys, whatever the config."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.ir.config import CpuConfig, DraftConfig, NgramConfig, NumaConfig, NumaNodeConfig, ServerConfig
from launcher.ir.plan import DeviceMemory, FleetPlan
from launcher.plan import estimate, settle
from launcher.sizes import GIB

from .fleets import GEMMA3_270M, HYBRID, MLA, QWEN3_30B, TINY, hardware, model_file, planned, server, with_fields

ARCHITECTURES = {
    "tiny": TINY,
    "hybrid": HYBRID,
    "latent": MLA,
    "sliding": with_fields(GEMMA3_270M, n_layer=6, n_vocab=320),
    "experts": with_fields(QWEN3_30B, n_layer=3, n_vocab=320),
    "encoder": with_fields(TINY, arch="bert", causal=False, n_ctx_train=512),
}
MODELS = tuple(model_file(arch, name=name) for name, arch in ARCHITECTURES.items())
COMPONENTS = ("model", "kv", "recurrent", "output", "compute", "draft", "projector", "overhead")
CPU = CpuConfig(
    physical_cores=8,
    logical_cores=16,
    features=("avx2",),
    nodes=(
        NumaNodeConfig(id=0, cpus="0-3,8-11", ram_bytes=32 * GIB),
        NumaNodeConfig(id=1, cpus="4-7,12-15", ram_bytes=32 * GIB),
    ),
)
HOST = hardware(gpus={"cuda0": 4 * GIB, "cuda1": 2 * GIB}, cpu=CPU)
KV_TYPES = st.sampled_from(["f32", "f16", "q8_0", "q4_0"])

server_fields = st.fixed_dictionaries(
    {
        "model": st.sampled_from(sorted(ARCHITECTURES)),
        "tier": st.sampled_from(["hot", "warm", "cold"]),
        "slots": st.none() | st.integers(1, 256),
        "n_ctx": st.none() | st.integers(0, 100_000),
        "kv_unified": st.none() | st.booleans(),
        "n_batch": st.integers(1, 4096),
        "n_ubatch": st.integers(1, 4096),
        "flash_attention": st.sampled_from(["auto", "on", "off"]),
        "cache_type_k": KV_TYPES,
        "cache_type_v": KV_TYPES,
        "swa_full": st.booleans(),
        "embedding": st.booleans(),
        "cache_ram_mib": st.integers(-1, 8192),
        "load_mode": st.sampled_from(["mmap", "mlock", "mmap+mlock", "none", "dio"]),
        "repack": st.booleans(),
        "experts_used": st.none() | st.integers(0, 200),
        "devices": st.sampled_from([(), ("cuda0",), ("cuda0", "cuda1"), ("nonsense",)]),
        "n_gpu_layers": st.integers(0, 20) | st.sampled_from(["all", "auto"]),
        "n_cpu_moe": st.integers(0, 10),
        "tensor_split": st.lists(st.floats(0, 10), max_size=2).map(tuple),
        "kv_offload": st.booleans(),
        "threads": st.none() | st.integers(1, 64),
        "cpus": st.sampled_from([None, "0-3", "2-9", "what"]),
        "numa": st.none()
        | st.builds(
            NumaConfig,
            policy=st.sampled_from(["interleave", "preferred", "bind"]),
            nodes=st.lists(st.integers(0, 2), unique=True).map(tuple),
        ),
        "draft": st.none() | st.just(DraftConfig(model="tiny", quantization="q8_0")),
        "ngram": st.none() | st.builds(NgramConfig, kind=st.sampled_from(["simple", "mod", "cache"])),
        "exclusive": st.sampled_from([None, None, "a", "b"]),
        "default": st.booleans(),
        "after": st.lists(st.sampled_from(["s0", "s1", "s2", "s3"]), max_size=2).map(tuple),
        "projector": st.booleans(),
    }
)
fleets = st.lists(server_fields.map(lambda fields: server(**fields)), max_size=4)


def plan_of(servers: list[ServerConfig], **fields: Any) -> FleetPlan:
    """The plan of servers named s0, s1, and so on."""
    return planned({f"s{i}": s for i, s in enumerate(servers)}, *MODELS, hardware=HOST, **fields)


def check_identity(memory: DeviceMemory) -> None:
    """Components add up to committed and file; a peak is not below committed."""
    assert sum(getattr(memory, f"{c}_bytes") for c in COMPONENTS) == memory.committed_bytes + memory.file_bytes
    assert memory.peak_bytes >= memory.committed_bytes >= 0
    assert min(memory.file_bytes, memory.growth_bytes, memory.locked_bytes) >= 0


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(fleets)
def test_any_fleet_is_planned(servers: list[ServerConfig]) -> None:
    """Never an exception; identities hold; the worst set covers the HOT set; findings are sorted and repeatable."""
    plan = plan_of(servers)
    assert len(plan.servers) == len(servers)
    for memory in (m for s in plan.servers for m in s.memory):
        check_identity(memory)
    for device in plan.devices:
        assert device.peak_bytes >= device.planned_bytes >= 0
        assert not device.nodes or sum(n.planned_bytes for n in device.nodes) == device.planned_bytes
        assert not device.nodes or sum(n.peak_bytes for n in device.nodes) == device.peak_bytes
    order = {"error": 0, "warning": 1, "note": 2}
    keys = [(order[f.severity], f.key) for f in plan.findings]
    assert keys == sorted(keys)
    assert msgspec.json.encode(plan) == msgspec.json.encode(plan_of(servers))


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(fleets)
def test_totals_are_sums_of_parts(servers: list[ServerConfig]) -> None:
    """Of the HOT set: servers started at boot, one of each exclusive group."""
    plan = plan_of(servers)
    groups = {}
    for s in sorted(plan.servers, key=lambda s: not s.default):
        if s.tier == "hot" and s.config.exclusive:
            groups.setdefault(s.config.exclusive, s.name)
    hot = [
        s for s in plan.servers if s.tier == "hot" and (not s.config.exclusive or groups[s.config.exclusive] == s.name)
    ]
    ram = [m for s in hot for m in s.memory if m.device == "ram"]
    assert plan.totals.hot_ram_bytes == sum(m.planned_bytes for m in ram) == plan.devices[0].planned_bytes
    assert plan.totals.kv_bytes == sum(m.kv_bytes for s in hot for m in s.memory)
    assert plan.totals.threads == sum(s.settings.threads for s in hot)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(fleets)
def test_an_exclusive_group_counts_its_largest_member(servers: list[ServerConfig]) -> None:
    """Never two members of one group at once, on any device."""
    plan = plan_of(servers)
    for device in plan.devices:
        alone, groups = 0, dict[str, int]()
        for s in (s for s in plan.servers if s.tier != "cold"):
            size = sum(m.resident_peak_bytes for m in s.memory if m.device == device.name)
            if s.config.exclusive:
                groups[s.config.exclusive] = max(groups.get(s.config.exclusive, 0), size)
            else:
                alone += size
        assert device.peak_bytes == alone + sum(groups.values())


def ram_and_gpu(config: ServerConfig) -> tuple[int, int]:
    """Peaks on host and card, of the model that the config names."""
    model = next(m for m in MODELS if m.model == config.model)
    memory = {m.device: m.peak_bytes for m in estimate(model, settle(config, model, HOST).settings)}
    return memory["ram"], memory.get("cuda0", 0)


@given(
    model=st.sampled_from(sorted(ARCHITECTURES)),
    n=st.integers(256, 100_000),
    more=st.integers(0, 100_000),
    slots=st.integers(1, 8),
)
def test_memory_grows_with_context(model: str, n: int, more: int, slots: int) -> None:
    """A larger context never takes less."""
    small, large = (ram_and_gpu(server(model=model, n_ctx=c, slots=slots)) for c in (n, n + more))
    assert small <= large


@given(
    model=st.sampled_from(sorted(ARCHITECTURES)),
    slots=st.integers(1, 64),
    more=st.integers(0, 64),
    per_slot=st.integers(256, 4096),
)
def test_memory_grows_with_slots(model: str, slots: int, more: int, per_slot: int) -> None:
    """More slots of the same context never take less."""
    fields = {"model": model, "n_ctx": None, "n_ctx_per_slot": per_slot, "n_batch": 512, "n_ubatch": 512}
    small, large = (ram_and_gpu(server(**fields, slots=s)) for s in (slots, slots + more))
    assert small <= large


@given(model=st.sampled_from(sorted(ARCHITECTURES)), layers=st.integers(0, 6))
def test_device_memory_grows_with_layers(model: str, layers: int) -> None:
    """One more layer never takes less of the card's weights and KV."""
    found = next(m for m in MODELS if m.model == model)

    def on_card(count: int) -> tuple[int, int]:
        config = server(model=model, devices=("cuda0",), n_gpu_layers=count)
        card = estimate(found, settle(config, found, HOST).settings)[1]
        return card.model_bytes, card.kv_bytes + card.recurrent_bytes

    few, many = on_card(layers), on_card(layers + 1)
    assert few[0] <= many[0]
    assert few[1] <= many[1]
