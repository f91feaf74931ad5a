"""Co-residency: the sets are those, and only those, that fit and into which nothing more fits."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ir.config import ServerConfig, ServiceConfig
from launcher.ir.plan import FleetPlan, Residency
from launcher.plan.devices import device_plans
from launcher.plan.memory.weights import WeightTables
from launcher.plan.server import plan_server
from launcher.plan.together import residency
from launcher.sizes import GIB, MIB

from .fleets import catalog, fleet, hardware, model_file, planned, server

KINDS = st.fixed_dictionaries(
    {
        "tier": st.sampled_from(["hot", "warm", "warm", "cold"]),
        "exclusive": st.sampled_from([None, None, "x", "y"]),
        "n_ctx": st.integers(1, 60_000),
        "model": st.sampled_from(["tiny", "other"]),
        "load_mode": st.sampled_from(["mmap", "none"]),
        "n_gpu_layers": st.sampled_from([0, "all"]),
    }
)
BESIDE = st.builds(
    lambda tier, group, ram_mib, vram_mib: ServiceConfig(
        command=("x",),
        tier=tier,
        exclusive=group if tier == "warm" else None,
        ram_bytes=ram_mib * MIB,
        vram_bytes={"cuda0": vram_mib * MIB},
    ),
    st.sampled_from(["hot", "warm", "cold"]),
    st.sampled_from([None, "x", "y"]),
    st.integers(0, 300),
    st.integers(0, 60),
)
MODELS = (model_file(), model_file(name="other"))


def table(plan: FleetPlan) -> Residency | None:
    """The only host's table."""
    return plan.residency[0] if plan.residency else None


def fleet_of(fields: list[dict[str, Any]], beside: list[ServiceConfig], ram_mib: int, vram_mib: int) -> FleetPlan:
    """Servers s0, s1 … and services t0, t1 … on a host of that size."""
    servers = {f"s{i}": server(devices=("cuda0",), **given) for i, given in enumerate(fields)}
    host = hardware(gpus={"cuda0": vram_mib * MIB}, ram_bytes=ram_mib * MIB)
    return planned(servers, *MODELS, hardware=host, services={f"t{i}": given for i, given in enumerate(beside)})


def taken(plan: FleetPlan, names: set[str]) -> dict[str, int]:
    """What these servers and services take by device: a plan of them alone, all up from boot, pages of a file once."""
    config = plan.config

    def up(entries: Mapping[str, ServerConfig | ServiceConfig]) -> dict[str, Any]:
        kept = {n: s for n, s in entries.items() if n in names}
        return {n: msgspec.structs.replace(s, tier="hot", exclusive=None) for n, s in kept.items()}

    alone = planned(up(config.servers), *MODELS, hardware=config.hardware, services=up(config.services))
    return {d.name: d.peak_bytes for d in alone.devices}


@settings(max_examples=40, deadline=None)
@given(st.lists(KINDS, max_size=4), st.lists(BESIDE, max_size=2), st.integers(100, 800), st.integers(20, 200))
def test_the_sets_are_those_that_brute_force_finds(
    fields: list[dict[str, Any]], beside: list[ServiceConfig], ram_mib: int, vram_mib: int
) -> None:
    """Every subset is planned alone: a set of the table fits, and no superset does; no whole set is missing."""
    plan = fleet_of(fields, beside, ram_mib, vram_mib)
    found = table(plan)
    config: dict[str, ServerConfig | ServiceConfig] = {**plan.config.servers, **plan.config.services}
    choices = [n for n, s in config.items() if s.tier == "warm" or (s.tier == "hot" and s.exclusive)]
    if not choices:
        assert found is None
        return
    assert found is not None
    always = {n for n, s in config.items() if s.tier == "hot" and not s.exclusive}
    assert set(found.always) == always
    budgets = {d.name: d.budget_bytes for d in plan.devices}

    def fits(names: set[str]) -> bool:
        return all(size <= budgets[device] for device, size in taken(plan, names | always).items())

    fitting = [set(c) for r in range(len(choices) + 1) for c in combinations(choices, r) if fits(set(c))]
    whole = [s for s in fitting if s and not any(s < other for other in fitting)]
    assert sorted(map(sorted, whole)) == sorted(sorted(s.servers) for s in found.sets)
    assert set(found.never) == {n for n in choices if not fits({n})}
    for row in found.sets:
        expected = taken(plan, {*row.servers} | always)
        assert {d: b for d, b in row.bytes.items() if b} == {d: b for d, b in expected.items() if b}
        groups = [config[n].exclusive for n in row.servers if config[n].exclusive]
        assert row.allowed == (len(groups) == len(set(groups)))


def test_nothing_comes_and_goes() -> None:
    """Where all servers start at boot there is no table."""
    assert planned({"a": server(), "b": server(tier="cold")}).residency == ()


def test_a_long_table_is_cut_and_says_so() -> None:
    """Forty equal servers, of which ten fit: as many sets as there are ways to choose ten."""
    servers = {f"s{i}": server(tier="warm", n_ctx=8192, load_mode="none") for i in range(40)}
    plan = planned(servers, hardware=hardware(ram_bytes=GIB))
    found = table(plan)
    assert found is not None
    assert not found.complete
    assert 1 <= len(found.sets) <= 64


def test_a_thousand_and_more_servers_on_demand_have_a_table() -> None:
    """As many as one likes: no step is a call within a call (3,000 were a RecursionError)."""
    given = fleet({"s": server(tier="warm", slots=1, n_ctx=256)}, hardware=hardware(ram_bytes=10_000 * GIB))
    one, _ = plan_server(given, catalog(*MODELS), "s", given.servers["s"], WeightTables())
    assert one is not None
    every = [msgspec.structs.replace(one, name=f"s{i}") for i in range(1500)]
    found = residency(every, (), device_plans(given, (), ()), standing={})
    assert found is not None
    assert len(found.sets[0].servers) == 1500
