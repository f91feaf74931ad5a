"""Over budget, every way out saves what it says, and what is called enough is enough: on fleets drawn at random."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from launcher.errors import Finding
from launcher.ir.config import FleetConfig, ServerConfig
from launcher.ir.plan import FleetPlan
from launcher.plan import plan_fleet
from launcher.sizes import GIB, MIB, gib, parse_size
from tests.cases.test_random_fleets import EXAMPLES, base

OVER = "plan/ram-over-budget"
SERVER = st.fixed_dictionaries(
    {
        "model": st.sampled_from(("dense", "dense", "small", "experts", "hybrid", "encoder")),
        "tier": st.sampled_from(("hot", "hot", "warm")),
        "slots": st.sampled_from((1, 2, 4)),
        "n_ctx_per_slot": st.sampled_from((512, 8192, 16384)),
        "load_mode": st.sampled_from(("mmap", "mmap+mlock", "none")),
        "exclusive": st.sampled_from((None, None, "turns")),
        "repack": st.booleans(),
    }
)
FLEETS = st.dictionaries(st.sampled_from(("a", "b", "c", "d", "e")), SERVER, min_size=1)


def fleet_of(servers: dict[str, dict[str, Any]]) -> FleetConfig:
    """The base of all cases with other servers."""
    plain = {"quantization": "q8_0", "threads": 1, "cache_ram_mib": 0}
    made = {
        name: msgspec.convert(
            plain | fields | {"port": 9001 + i, "embedding": fields["model"] == "encoder"}, ServerConfig
        )
        for i, (name, fields) in enumerate(servers.items())
    }
    return msgspec.structs.replace(base().composed.fleet, servers=made)


def with_budget(fleet: FleetConfig, budget: int) -> FleetConfig:
    """The fleet on a machine with so much RAM for it."""
    ram = budget + fleet.hardware.ram_reserve_bytes
    return msgspec.structs.replace(fleet, hardware=msgspec.structs.replace(fleet.hardware, ram_bytes=ram))


def with_overrides(fleet: FleetConfig, override: str) -> FleetConfig:
    """The fleet with `servers.NAME.FIELD=VALUE …` applied."""
    servers = dict(fleet.servers)
    for word in override.split():
        key, _, value = word.partition("=")
        _, name, field = key.split(".")
        fields = {f: getattr(servers[name], f) for f in ServerConfig.__struct_fields__} | {field: yaml.safe_load(value)}
        servers[name] = msgspec.convert(fields, ServerConfig)
    return msgspec.structs.replace(fleet, servers=servers)


def planned(fleet: FleetConfig) -> FleetPlan:
    """Its plan."""
    return plan_fleet(fleet, base().catalog, deployment="random", input_digest="")


def need(plan: FleetPlan) -> int:
    """The most that the RAM is to hold."""
    return max(plan.devices[0].planned_bytes, plan.devices[0].peak_bytes)


def over(plan: FleetPlan) -> Finding | None:
    """What is said of the budget."""
    return next((f for f in plan.findings if f.code == OVER), None)


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(servers=FLEETS, share=st.sampled_from((0.3, 0.6, 0.8, 0.95, 0.99)))
def test_ways_out_save_what_they_say(servers: dict[str, dict[str, Any]], share: float) -> None:
    """Each within the roundings of what is shown; one that says `enough` ends the finding, another does not."""
    fleet = fleet_of(servers)
    before = need(planned(fleet))
    budget = int(before * share)
    assume(budget > 0)
    tight = with_budget(fleet, budget)
    found = over(planned(tight))
    assert found
    for fix in found.fixes:
        words = fix.effect.removesuffix(", enough").split()
        if words[1] == "about":
            continue
        after = planned(with_overrides(tight, fix.override))
        saved = before - need(after)
        assert abs(saved - parse_size("".join(words[1:]))) <= (GIB // 20 if saved >= GIB else MIB), fix
        assert fix.effect.endswith(", enough") is (over(after) is None), (fix, gib(saved))
    assert len(found.fixes) <= 19


def test_changes_that_are_enough_together_are_proposed_together() -> None:
    """Neither server alone can give that much up without being given up; both can, and the first list says so."""
    one = {"model": "dense", "tier": "hot", "slots": 4, "n_ctx_per_slot": 16384, "load_mode": "mmap", "repack": False}
    other = one | {"model": "experts"}
    fleet = fleet_of({"a": one, "b": other})
    tight = with_budget(fleet, need(planned(fleet)) // 2)
    found = over(planned(tight))
    assert found
    assert not any(fix.effect.endswith("enough") for fix in found.fixes[:-1] if "tier=" not in fix.override)
    assert {word.split(".")[1] for word in found.fixes[-1].override.split()} == {"a", "b"}
    assert "tier" not in found.fixes[-1].override
    assert over(planned(with_overrides(tight, found.fixes[-1].override))) is None
