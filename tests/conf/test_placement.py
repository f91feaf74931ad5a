"""Threads, cores and memory of the EPYC fleet, beyond what the documents say."""

from __future__ import annotations

import pytest

ALWAYS_BUSY = ("frontdoor", "coder_escalation", "worker_explore", "worker_vision")


@pytest.fixture
def config(fleet):
    """The whole EPYC fleet."""
    return fleet("profile=full", "hardware=epyc")


def cpus(text):
    """The CPUs of a Linux list."""
    spans = (part.split("-") for part in text.split(","))
    return {cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1)}


def test_a_thread_for_each_core_of_the_cpuset(config):
    """No server has more threads than its set has physical cores, and every set has both siblings of a core."""
    for name, server in config.servers.items():
        cores = {cpu for cpu in cpus(server.cpus) if cpu < 96}
        assert cpus(server.cpus) == cores | {cpu + 96 for cpu in cores}, name
        assert server.threads <= len(cores), name


def test_a_cpuset_lies_in_the_node_of_its_memory(config):
    """No set straddles nodes, and memory is preferred where the threads are."""
    nodes = {node.id: cpus(node.cpus) for node in config.hardware.cpu.nodes}
    for name, server in config.servers.items():
        (node,) = server.numa.nodes
        assert cpus(server.cpus) <= nodes[node], name


def test_busy_servers_share_no_core(config):
    """Front door, coder, explore, vision and embedders have 96 threads on 96 cores."""
    sets = [cpus(config.servers[n].cpus) for n in ALWAYS_BUSY]
    embedders = [s for n, s in config.servers.items() if n.startswith("embedder_")]
    sets.append(cpus(embedders[0].cpus))
    assert sum(map(len, sets)) == len(set.union(*sets)) == 192
    assert sum(s.threads for s in (*embedders, *(config.servers[n] for n in ALWAYS_BUSY))) == 96


def test_hot_models_are_pinned_and_big_ones_not_copied(config):
    """HOT mappings are locked; a file of more than 40 GB is never repacked into a second copy."""
    for name, server in config.servers.items():
        assert server.load_mode == ("mmap+mlock" if server.tier == "hot" else "mmap"), name
        size = config.models[server.model].files[server.quantization].bytes
        assert size < 40 * 10**9 or not server.repack, name


def test_files_fit_beside_the_reserve(config):
    """Every file once, a copy for each repacked one, all prompt caches full: within the budget and within each node."""
    need, by_node = 0, {0: 0, 1: 0}
    seen = set()
    for server in config.servers.values():
        for model, quantization in ((server.model, server.quantization), *_draft(server)):
            size = config.models[model].files[quantization].bytes or 10**9
            first = (model, quantization) not in seen
            seen.add((model, quantization))
            total = size * first + size * server.repack * (quantization != "f16")
            need += total
            by_node[server.numa.nodes[0]] += total
        need += server.cache_ram_mib * 2**20
    services = sum(s.ram_bytes for s in config.services.values())
    assert need + services < config.hardware.ram_bytes - config.hardware.ram_reserve_bytes
    for node in config.hardware.cpu.nodes:
        assert by_node[node.id] < 0.9 * node.ram_bytes


def test_waived_warnings_have_reasons(fleet):
    """A waiver says why."""
    for overrides in (("profile=hot_only", "hardware=epyc"), ("profile=three_tier", "hardware=sovereign")):
        for waiver in fleet(*overrides).waive:
            assert isinstance(waiver, dict)
            assert all(len(reason) > 20 for reason in waiver.values())


def _draft(server):
    """The draft's file, if there is one."""
    return () if server.draft is None else ((server.draft.model, server.draft.quantization),)
