"""What the two seed documents say, as tables, against what the packaged config has."""

from __future__ import annotations

import itertools

import pytest

from launcher.sizes import GIB

# port, name, roles, model, quantization, slots, whole context, experts, draft, its quantization and length, n-grams
HOT = [
    (8080, "frontdoor", "frontdoor", "qwen3_coder_30b_a3b", "q4_k_m", 2, 32768, 6, ("0_75b", "q4_0", 16), True),
    (
        8081,
        "coder_escalation",
        "coder_escalation worker_summarize",
        "qwen2_5_coder_32b",
        "q4_k_m",
        1,
        32768,
        None,
        ("0_5b", "q8_0", 24),
        True,
    ),
    (
        8082,
        "worker_explore",
        "worker_explore worker_general worker_math",
        "qwen2_5_7b",
        "f16",
        2,
        8192,
        None,
        ("0_5b", "q8_0", 24),
        True,
    ),
    (
        8083,
        "architect_general",
        "architect_general",
        "qwen3_235b_a22b",
        "q4_k_m",
        1,
        16384,
        4,
        ("0_6b", "q8_0", 16),
        False,
    ),
    (
        8084,
        "architect_coding",
        "architect_coding",
        "qwen3_coder_480b_a35b",
        "q4_k_m",
        1,
        8192,
        3,
        ("0_75b", "q4_0", 16),
        False,
    ),
    (8085, "ingest_long_context", "ingest_long_context", "qwen3_next_80b_a3b", "q4_k_m", 1, 32768, 4, None, False),
    (8086, "worker_vision", "worker_vision", "qwen2_5_vl_7b", "q4_k_m", 2, 8192, None, None, False),
    (8087, "vision_escalation", "vision_escalation", "qwen3_vl_30b_a3b", "q4_k_m", 1, 16384, 4, None, False),
]


@pytest.fixture
def hot(fleet):
    """The always-resident EPYC fleet."""
    return fleet("profile=hot_only", "hardware=epyc")


@pytest.fixture
def full(fleet):
    """The whole EPYC fleet."""
    return fleet("profile=full", "hardware=epyc")


@pytest.fixture
def workstation(fleet):
    """The three-tier fleet."""
    return fleet("profile=three_tier", "hardware=sovereign")


@pytest.mark.parametrize("row", HOT, ids=lambda row: row[1])
def test_hot_server_is_as_documented(hot, row):
    """Port, roles, model, slots, context, experts and speculation of 8080-8087."""
    port, name, roles, model, quantization, slots, n_ctx, experts, draft, ngram = row
    server = hot.servers[name]
    assert hot.ports[name] == port
    assert server.roles == tuple(roles.split())
    assert (server.model, server.quantization) == (model, quantization)
    assert (server.slots, server.n_ctx, server.experts_used) == (slots, n_ctx, experts)
    assert (server.ngram is not None) is ngram
    if draft is None:
        assert server.draft is None
    else:
        assert server.draft.model.endswith(draft[0])
        assert (server.draft.quantization, server.draft.n_max) == draft[1:]


def test_there_are_fourteen_hot_servers(hot):
    """8080-8087 and six embedders; the document's 9 is stated, not used."""
    assert sorted(hot.ports[name] for name in hot.servers) == [*range(8080, 8088), *range(8090, 8096)]
    assert hot.stated.servers == 9
    assert (hot.stated.hot_ram_bytes, hot.stated.kv_reserve_bytes) == (538 * 10**9, 460 * 10**9)
    assert {s.tier for s in hot.servers.values()} == {"hot"}


def test_embedders_hold_a_text_of_the_models_length(hot):
    """Six equal servers of four slots, each with 512 tokens, whole prompts in one batch."""
    embedders = [s for n, s in hot.servers.items() if n.startswith("embedder_")]
    assert len(embedders) == 6
    assert len(set(map(repr, embedders))) == 1
    server = embedders[0]
    assert (server.slots, server.n_ctx_per_slot, server.threads, server.pooling) == (4, 512, 4, "cls")
    assert server.embedding
    assert min(server.n_batch, server.n_ubatch) >= server.slots * server.n_ctx_per_slot
    assert server.roles == ("embedder",)


def test_architects_keep_keys_in_eight_bits(hot):
    """K cache q8_0 for both architects and nobody else; flash attention wherever a cache is quantised."""
    assert {n for n, s in hot.servers.items() if s.cache_type_k == "q8_0"} == {"architect_general", "architect_coding"}
    assert all(s.flash_attention == "on" for s in hot.servers.values())
    assert all(s.cache_type_v == "f16" for s in hot.servers.values())


def test_memory_policy_of_the_big_three(hot):
    """235B on node 0; 480B and 80B on node 1."""
    nodes = {n: hot.servers[n].numa.nodes for n in ("architect_general", "architect_coding", "ingest_long_context")}
    assert nodes == {"architect_general": (0,), "architect_coding": (1,), "ingest_long_context": (1,)}
    assert all(s.numa.policy == "preferred" for s in hot.servers.values())


def test_serial_roles(hot):
    """The five of SERIAL_ROLES have one slot, each with its reason."""
    limits = hot.routing.slots_max
    assert set(limits) == {
        "coder_escalation",
        "worker_summarize",
        "architect_general",
        "architect_coding",
        "ingest_long_context",
    }
    assert all(limit.slots == 1 and limit.reason for limit in limits.values())


def test_failures_that_the_fleet_survives(hot):
    """Embedder, worker and vision may fail; any other server is needed."""
    needed = {n for n, s in hot.servers.items() if s.fatal}
    assert needed == {
        "frontdoor",
        "coder_escalation",
        "architect_general",
        "architect_coding",
        "ingest_long_context",
    }


def test_start_timeouts(hot):
    """180 s in general, 120 and 90 for vision and the 7B, 60 for the embedders."""
    expected = {"vision_escalation": 120, "worker_vision": 90, "worker_explore": 90}
    for name, server in hot.servers.items():
        assert server.start_timeout_s == expected.get(name, 60 if name.startswith("embedder") else 180)


def test_big_models_load_one_after_another(hot):
    """The edges between big models make the documented order, with nothing loading beside the architects."""
    order = ["frontdoor", "coder_escalation", "worker_explore", "vision_escalation"]
    order += ["architect_general", "architect_coding", "ingest_long_context"]
    for earlier, later in itertools.pairwise(order):
        assert earlier in hot.servers[later].after


def test_warm_workers(full, hot):
    """Two burst workers of 1.5B on 8102 and 8112, 300 s idle, a second one above 4 requests."""
    assert set(full.servers) - set(hot.servers) == {"worker_fast_1", "worker_fast_2"}
    for name, port in (("worker_fast_1", 8102), ("worker_fast_2", 8112)):
        server = full.servers[name]
        assert (full.ports[name], server.slots, server.n_ctx, server.threads) == (port, 4, 16384, 16)
        assert (server.model, server.quantization, server.tier) == ("qwen2_5_coder_1_5b", "q4_k_m", "warm")
    warm = full.tiers["warm"]
    assert (warm.start, warm.idle_timeout_s, warm.expansion_threshold) == ("demand", 300, 4)
    assert (full.tiers["hot"].start, full.tiers["cold"].start) == ("boot", "never")


def test_task_types(full, hot):
    """Comprehension to the 7B; coding and boilerplate to the fast pool, or to the coder without one."""
    for config, fast in ((full, ("worker_fast_1", "worker_fast_2")), (hot, ("coder_escalation",))):
        pools = config.routing.pools
        assert pools["explore"].task_types == ("explore", "summarize", "understand")
        assert pools["explore"].servers == ("worker_explore",)
        assert set(pools["fast"].task_types) == {"code_impl", "refactor", "test_gen", "boilerplate", "transform"}
        assert pools["fast"].servers == fast


def test_escalation_fallback_and_breaker(full):
    """The chains and numbers that the operators use."""
    chain = full.routing.escalation.chain
    assert {chain[r] for r in ("frontdoor", "worker_explore", "worker_math", "worker_fast")} == {"coder_escalation"}
    assert (chain["coder_escalation"], chain["ingest_long_context"]) == ("architect_coding", "architect_general")
    assert (full.routing.escalation.max_retries, full.routing.escalation.max_escalations) == (2, 2)
    assert full.routing.fallback == {
        "architect_general": ("architect_coding", "coder_escalation"),
        "architect_coding": ("architect_general", "coder_escalation"),
        "coder_escalation": ("frontdoor",),
        "worker_math": ("worker_general",),
    }
    breaker = full.routing.breaker
    assert (breaker.failures, breaker.open_s, breaker.open_max_s) == (3, 30, 300)


def test_answer_timeouts(full):
    """Workers 60 s, fast and coding workers 30, front door 180, coder 120, ingest 300, architects 600."""
    expected = {"worker_explore": 60, "worker_fast": 30, "worker_coder": 30, "frontdoor": 180, "coder_escalation": 120}
    expected |= {"ingest_long_context": 300, "architect_general": 600, "architect_coding": 600}
    assert {role: full.routing.timeouts_s[role] for role in expected} == expected


def test_services_and_hooks(hot):
    """API, two retrieval containers and OCR, with their RAM and threads; four steps after all are ready."""
    ports = {"orchestrator": 8000, "nextplaid-code": 8088, "nextplaid-docs": 8089, "document_formalizer": 9001}
    assert {name: hot.ports[name] for name in hot.services} == ports
    assert hot.services["nextplaid-code"].ram_bytes == 1_200_000_000
    assert hot.services["nextplaid-docs"].ram_bytes == 200_000_000
    assert hot.services["document_formalizer"].threads == 8 * 12
    assert all("--int8" in hot.services[n].container.args for n in ("nextplaid-code", "nextplaid-docs"))
    assert list(hot.hooks) == ["embedder_warmup"]  # the other three call the document's own Python: docs/running.md
    assert hot.hooks["embedder_warmup"].body == {"content": "test embedding warmup"}


def test_epyc_host(hot):
    """96 cores and 192 threads over two sockets and nodes, 1,130 GB, 135 of them kept free, no AMX."""
    hardware = hot.hardware
    assert (hardware.cpu.sockets, hardware.cpu.physical_cores, hardware.cpu.logical_cores) == (2, 96, 192)
    assert hardware.ram_bytes == sum(n.ram_bytes for n in hardware.cpu.nodes) == 1130 * 10**9
    assert hardware.ram_reserve_bytes == 135 * 10**9
    assert not [f for f in hardware.cpu.features if f.startswith("amx")]


def test_epyc_development_mode(fleet):
    """One 0.5B model with four slots over 4,096 tokens on the front door's port."""
    config = fleet("profile=epyc_dev", "hardware=epyc")
    server = config.servers["frontdoor"]
    assert (config.ports["frontdoor"], server.quantization, server.slots) == (8080, "q8_0", 4)
    assert (server.n_ctx, server.threads) == (4096, 16)


def test_workstation_servers(workstation):
    """Router 8001, validator 8002, four workers in turn on 8000, all on the GPU, 4K a request, batches of 512."""
    assert {n: workstation.ports[n] for n in ("router", "validator")} == {"router": 8001, "validator": 8002}
    router, validator = workstation.servers["router"], workstation.servers["validator"]
    assert (router.n_ctx, router.threads, router.n_gpu_layers, router.quantization) == (2048, 6, 0, "q8_0")
    assert (validator.n_ctx, validator.threads, validator.n_gpu_layers, validator.quantization) == (
        4096,
        6,
        0,
        "q4_k_m",
    )
    workers = {n: workstation.servers[n] for n in workstation.orchestration.workers}
    assert {n: s.quantization for n, s in workers.items()} == {
        "qwen_coder_32b": "q4_k_m",
        "nemotron_30b": "q4_k_m",
        "gpt_oss_20b": "mxfp4",
        "mythomax_13b": "q5_k_m",
    }
    for name, server in workers.items():
        assert (workstation.ports[name], server.exclusive, server.n_gpu_layers) == (8000, "gpu", "all")
        assert (server.n_ctx_per_slot or server.n_ctx // server.slots, server.n_batch, server.threads) == (4096, 512, 4)
    assert [n for n, s in workers.items() if s.default] == ["qwen_coder_32b"]
    assert workstation.runtime.front.port == 8080


def test_workstation_orchestration(workstation):
    """Three corrections a block, a pool of two to three models in 60-80 GB, swaps in 3 s, 20 tok/s."""
    orchestration = workstation.orchestration
    assert (orchestration.validation.policy, orchestration.validation.max_corrections) == ("block_by_block", 3)
    pool = orchestration.warm_pool
    assert (pool.models_min, pool.models_max) == (2, 3)
    assert 60 * 10**9 <= pool.ram_bytes <= 80 * 10**9
    assert pool.predict == {"coding_architecture": "nemotron_30b", "reasoning": "qwen_coder_32b"}
    assert pool.patterns[0][-1] == "nemotron_30b"
    assert (orchestration.swap_target_s, orchestration.tokens_per_second_min) == (3, 20)
    assert set(orchestration.prompts) == {"router", *orchestration.workers}


def test_oom_ladder_starts_with_a_smaller_file(workstation):
    """First Q3, then less context in 8-bit K/V, then fewer layers; the last rung needs no other file."""
    *smaller, last = workstation.orchestration.oom_ladder
    assert {r.quantization for r in smaller} == {"q3_k_m"}
    written = [{f for f in r.__struct_fields__ if getattr(r, f) is not None} for r in smaller]
    assert all(a < b for a, b in itertools.pairwise(written))
    assert last.quantization is None
    assert last.n_gpu_layers < smaller[-1].n_gpu_layers


def test_workstation_host(workstation):
    """Six cores and one named card of 24 GB with the document's target of 90-95 %."""
    (gpu,) = workstation.hardware.gpus.values()
    assert (workstation.hardware.cpu.physical_cores, gpu.target_min, gpu.target_max) == (6, 0.90, 0.95)
    assert gpu.model
    assert 23 * GIB < gpu.vram_bytes <= 24 * GIB
    pool = workstation.orchestration.warm_pool.ram_bytes
    biggest = sorted((_file(workstation, n) for n in workstation.orchestration.workers), reverse=True)[:3]
    assert sum(biggest) <= pool
    resident = _file(workstation, "router") + 2 * _file(workstation, "validator")
    assert pool + resident < workstation.hardware.ram_bytes - workstation.hardware.ram_reserve_bytes


def test_the_vault_has_the_documents_paths(workstation):
    """Router, validator and the first worker are where the document's commands look for them."""
    paths = [
        workstation.models[s.model].files[s.quantization].path
        for s in (workstation.servers[n] for n in ("qwen_coder_32b", "router", "validator"))
    ]
    assert paths == [
        "workers/qwen-coder-32b-q4_k_m.gguf",
        "router/granite-micro-3b-q8.gguf",
        "validator/granite-h-small-q4_k_m.gguf",
    ]
    assert workstation.hardware.model_dir == "/mnt/models"


def _file(config, name):
    """Published size of a server's model file, bytes."""
    server = config.servers[name]
    return config.models[server.model].files[server.quantization].bytes
