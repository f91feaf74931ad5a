"""Every profile composes on the machines it is for, and what it names exists."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

CONF = Path(__file__).parents[2] / "conf"

MATCHING = [
    ("dev", "dev"),
    ("epyc_dev", "epyc"),
    ("hot_only", "epyc"),
    ("full", "epyc"),
    ("three_tier", "sovereign"),
    ("three_tier_small", "dev"),
]
PAIRS = pytest.mark.parametrize(("profile", "hardware"), MATCHING)


def addressable(config):
    """Every name that a request may use."""
    names = set(config.servers)
    for server in config.servers.values():
        names |= {*server.roles, *server.aliases}
    return names


@PAIRS
def test_profile_composes_and_decodes(fleet, profile, hardware):
    """The composed tree is a FleetConfig without an unknown or missing key."""
    config = fleet(f"profile={profile}", f"hardware={hardware}")
    assert (config.profile.name, config.hardware.name) == (profile, hardware)
    assert config.servers


@PAIRS
def test_servers_use_what_exists(fleet, profile, hardware):
    """Models, their files, quantizations, tiers, engines, devices and predecessors are all there."""
    config = fleet(f"profile={profile}", f"hardware={hardware}")
    for name, server in config.servers.items():
        used = [server] if server.draft is None else [server, server.draft]
        for part in used:
            assert part.quantization in config.models[part.model].files, name
            assert part.quantization in config.quantizations
        assert server.tier in config.tiers
        assert server.engine in config.engines
        assert set(server.devices) <= set(config.hardware.gpus)
        assert set(server.after) <= set(config.servers) - {name}
        assert (server.n_ctx is None) != (server.n_ctx_per_slot is None)
        assert server.projector is (config.models[server.model].projector is not None)


@PAIRS
def test_everything_has_a_port_of_its_own(fleet, profile, hardware):
    """Servers and services listen on different ports, but for servers that take turns."""
    config = fleet(f"profile={profile}", f"hardware={hardware}")
    names = [*config.servers, *(n for n, s in config.services.items() if s.builtin is None)]
    taken: dict[int, list[str]] = {config.runtime.front.port: ["front"]}
    for name in names:
        taken.setdefault(config.ports[name], []).append(name)
    for sharing in taken.values():
        groups = {config.servers[n].exclusive if n in config.servers else None for n in sharing}
        assert len(sharing) == 1 or (len(groups) == 1 and groups != {None}), sharing
    for name, service in config.services.items():
        if service.builtin == "front":
            assert config.ports[name] == config.runtime.front.port


@PAIRS
def test_routing_leads_to_servers_that_run(fleet, profile, hardware):
    """No pool, fallback, escalation, timeout or default dangles, and escalation ends."""
    config = fleet(f"profile={profile}", f"hardware={hardware}")
    names, routing = addressable(config), config.routing
    assert routing.default in names
    for pool in routing.pools.values():
        assert set(pool.servers) <= names
    for name, targets in routing.fallback.items():
        assert {name, *targets} <= names
    assert {*routing.escalation.chain, *routing.escalation.chain.values()} <= names
    assert set(routing.timeouts_s) <= names
    for start in routing.escalation.chain:
        seen = [start]
        while (following := routing.escalation.chain.get(seen[-1])) is not None:
            assert following not in seen
            seen.append(following)
    for role, timeout_s in routing.timeouts_s.items():
        servers = [s for n, s in config.servers.items() if role in {n, *s.roles, *s.aliases}]
        assert all(timeout_s <= s.request_timeout_s for s in servers), role


@PAIRS
def test_hooks_do_one_thing(fleet, profile, hardware):
    """A hook has exactly one action; one that is enabled needs no code that is not ours."""
    config = fleet(f"profile={profile}", f"hardware={hardware}")
    for hook in config.hooks.values():
        assert len([x for x in (hook.http, hook.command, hook.python) if x]) == 1
        assert hook.http if hook.enabled else hook.description


def test_one_vision_server_can_be_left_out(fleet):
    """The contract's own example override leaves nothing dangling."""
    config = fleet("profile=hot_only", "hardware=epyc", "~servers.worker_vision")
    rest = {*config.routing.fallback, *config.routing.escalation.chain, *config.routing.timeouts_s}
    assert "worker_vision" not in rest
    assert not any("worker_vision" in s.after for s in config.servers.values())


def test_a_profile_picks_its_engine_and_the_command_line_wins(fleet):
    """The EPYC runs its own build unless somebody says otherwise."""
    assert fleet("profile=hot_only", "hardware=epyc").engines["default"].binary.startswith("/opt/")
    assert fleet("profile=hot_only", "hardware=epyc", "engine=embedded").engines["default"].binary.startswith("pkg://")


@PAIRS
def test_plain_hydra_composes_it(profile, hardware):
    """Ordinary Hydra accepts conf/ as it lies there; only the catalogue, which our loader always adds, is absent."""
    amends_models = profile == "three_tier"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        tree = compose("config", [f"profile={profile}", f"hardware={hardware}"])
    assert tree.servers
    assert ("models" in tree) is amends_models
