"""Filling devices: what is chosen fits, and brute force over every combination finds nothing better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise, product
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig, GpuConfig, HardwareConfig, RoutingConfig, ServerConfig
from launcher.ir.plan import FleetPlan
from launcher.plan import plan_fleet
from launcher.plan.memory.weights import WeightTables
from launcher.plan.server import price, settled_price
from launcher.plan.solve import solve
from launcher.plan.solve.frontier import Candidate, best
from launcher.plan.solve.options import IN_ORDER, Option
from launcher.plan.speed import token_seconds, touched_by
from launcher.sizes import GIB, MIB

from .fleets import (
    LLAMA_8B,
    QWEN3_30B,
    TINY,
    catalog,
    declared,
    fleet,
    hardware,
    model_file,
    only,
    planned,
    server,
    with_fields,
)

DENSE = with_fields(TINY, n_layer=5, n_embd=256, n_head=8, n_head_kv=4, n_ff=1024, n_ctx_train=4096)
MIXED = with_fields(QWEN3_30B, n_layer=4, n_embd=256, n_head=8, n_expert=8, n_ff_exp=256, n_vocab=320, n_ctx_train=3072)
KINDS = {"q4_k": "q4_k", "q8_0": "q8_0"}
FILES = tuple(
    model_file(arch, name=name, quantization=q, kind=q)
    for name, arch in (("dense", DENSE), ("mixed", MIXED))
    for q in KINDS
)
MODELS = {name: declared(name, arch, dict.fromkeys(KINDS, 0)) for name, arch in (("dense", DENSE), ("mixed", MIXED))}


def cards(*vram_bytes: int) -> HardwareConfig:
    """A host with cards of these sizes, all of which may be used."""
    gpus = {
        f"cuda{i}": GpuConfig(backend="cuda", vram_bytes=size, target_max=1, process_bytes=0)
        for i, size in enumerate(vram_bytes)
    }
    return msgspec.structs.replace(hardware(), gpus=gpus)


def leaving_open(model: str = "dense", **fields: Any) -> ServerConfig:
    """A server that leaves its layers open."""
    given: dict[str, Any] = {"devices": ("cuda0",), "n_gpu_layers": "auto", "quantization": "q4_k", "n_ctx": None}
    return server(model=model, **(given | {"n_ctx_per_slot": 1024} | fields))


def peaks(config: FleetConfig, files: Catalog, one: ServerConfig, tables: WeightTables) -> dict[str, int]:
    """Peak bytes by device of one server."""
    return {m.device: m.resident_peak_bytes for m in price(config, files, one, tables) or ()}


def order_of(config: FleetConfig) -> list[list[str]]:
    """Server names by group, each group where its first member stands."""
    groups: dict[str, list[str]] = {}
    for name, one in config.servers.items():
        groups.setdefault(one.exclusive or f"server {name}", []).append(name)
    return list(groups.values())


def with_options(one: ServerConfig, options: Iterable[Option | None]) -> ServerConfig:
    """`one` with what the options set."""
    for option in options:
        one = msgspec.structs.replace(one, **option.changes) if option else one
    return one


def brute_force(config: FleetConfig, files: Catalog) -> dict[str, ServerConfig] | None:
    """The best of every combination that fits the cards, by what is documented; nothing is left out.

    For each step in turn: least sum of costs, then fewest bytes with the later steps at their least, then the options
    of the servers in order.
    """
    tables = WeightTables()
    groups = order_of(config)
    order = [name for members in groups for name in members]
    offers = {n: [tuple(s(config, files, config.servers[n], len(order))) or (None,) for s in IN_ORDER] for n in order}
    taken: dict[str, dict[tuple[int, ...], dict[str, int]]] = {}
    for n in order:
        taken[n] = {}
        for picks in product(*(range(len(options)) for options in offers[n])):
            options = [o[p] for o, p in zip(offers[n], picks, strict=True)]
            taken[n][picks] = peaks(config, files, with_options(config.servers[n], options), tables)

    def used(chosen: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        return {
            d: sum(max(taken[n][chosen[n]].get(d, 0) for n in members) for members in groups)
            for d in config.hardware.gpus
        }

    found: tuple[Any, dict[str, tuple[int, ...]]] | None = None
    for combination in product(*(taken[name] for name in order)):
        chosen = dict(zip(order, combination, strict=True))
        if any(size > config.hardware.gpus[d].vram_bytes for d, size in used(chosen).items()):
            continue
        worth = []
        for i in range(len(IN_ORDER)):
            picks = tuple(chosen[n][i] for n in order)
            so_far = {n: (*chosen[n][: i + 1], *(len(o) - 1 for o in offers[n][i + 1 :])) for n in order}
            cost = sum(option.cost if (option := offers[n][i][chosen[n][i]]) else 0 for n in order)
            worth.append((cost, sum(used(so_far).values()), picks))
        if found is None or worth < found[0]:
            found = worth, chosen
    if found is None:
        return None
    return {
        n: with_options(config.servers[n], [o[p] for o, p in zip(offers[n], found[1][n], strict=True)]) for n in order
    }


openings = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["dense", "mixed"]),
        "exclusive": st.sampled_from([None, None, "x"]),
        "n_gpu_layers": st.sampled_from(["auto", "auto", "all", 2]),
        "n_cpu_moe": st.integers(0, 4),
        "fill": st.sets(st.sampled_from(["experts", "quantization", "context"]), max_size=2).map(
            lambda names: tuple(sorted(names))
        ),
        "slots": st.integers(1, 2),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(openings, min_size=1, max_size=2), st.integers(26_000, 70_000))
def test_nothing_better_fits(fields: list[dict[str, Any]], kib_each: int) -> None:
    """One or two servers on a card, whatever they leave open: the worth is the best of all combinations."""
    servers = {f"s{i}": leaving_open(**given) for i, given in enumerate(fields)}
    config = fleet(servers, hardware=cards(kib_each * 1024 * len(fields)), models=MODELS)
    files = catalog(*FILES)
    chosen, solved = solve(config, files, WeightTables())
    expected = brute_force(config, files)
    if not solved:
        assert chosen is config
        return
    assert all(choice.fits for choice in solved) == (expected is not None)
    if expected is not None:
        assert chosen.servers == expected
        plan = plan_fleet(config, files, deployment="t", input_digest="")
        assert not [f for f in plan.findings if f.code == "plan/vram-over-budget"]


@pytest.mark.parametrize("kib", [76_000, 84_000, 100_000])
def test_what_is_faster_is_preferred_where_rates_are_stated(kib: int) -> None:
    """Of all that fits, the least sum of what a token of each takes; with a rate missing layers count, as ever."""
    config = fleet(
        {"a": leaving_open("mixed"), "b": leaving_open("dense", port=9002)}, hardware=cards(kib * 1024), models=MODELS
    )
    gpu = msgspec.structs.replace(config.hardware.gpus["cuda0"], read_bandwidth_bytes=100 * 10**9)
    known = msgspec.structs.replace(config.hardware, gpus={"cuda0": gpu}, read_bandwidth_bytes=10**9)
    stated = msgspec.structs.replace(config, hardware=known)
    files, tables = catalog(*FILES), WeightTables()

    def token_ns(one: ServerConfig) -> int:
        """What a token of a server takes."""
        found, model = settled_price(stated, files, one, tables), files.get(one.model, one.quantization)
        assert found is not None
        assert model is not None
        return round((token_seconds(touched_by(model, *found), known) or 0) * 1e9)

    fitting: dict[tuple[int, ...], int] = {}
    for counts in product(*(range(arch.n_layer + 2) for arch in (MIXED, DENSE))):
        servers = [
            msgspec.structs.replace(s, n_gpu_layers=n) for s, n in zip(config.servers.values(), counts, strict=True)
        ]
        if sum(peaks(config, files, one, tables).get("cuda0", 0) for one in servers) <= kib * 1024:
            fitting[counts] = sum(map(token_ns, servers))
    by_time, by_layers = (
        tuple(s.n_gpu_layers for s in solve(one, files, tables)[0].servers.values()) for one in (stated, config)
    )
    assert fitting[by_time] == min(fitting.values())
    assert fitting[by_time] <= fitting[by_layers]
    half = msgspec.structs.replace(config, hardware=msgspec.structs.replace(known, read_bandwidth_bytes=None))
    assert tuple(s.n_gpu_layers for s in solve(half, files, tables)[0].servers.values()) == by_layers
    if kib == 84_000:
        assert by_time != by_layers


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(18, 60), min_size=2, max_size=3), st.sampled_from(["dense", "mixed"]))
def test_no_other_split_takes_more_layers(vram_mib: list[int], model: str) -> None:
    """Every way to divide every number of layers over two or three cards is tried."""
    config = fleet(
        {"s": leaving_open(model, devices=tuple(f"cuda{i}" for i in range(len(vram_mib))), n_ctx_per_slot=3072)},
        hardware=cards(*(size * MIB for size in vram_mib)),
        models=MODELS,
    )
    files = catalog(*FILES)
    tables = WeightTables()
    chosen, (solved,) = solve(config, files, tables)
    whole = (DENSE if model == "dense" else MIXED).n_layer + 1

    def fits(one: ServerConfig) -> bool:
        taken = peaks(config, files, one, tables)
        return all(taken.get(d, 0) <= gpu.vram_bytes for d, gpu in config.hardware.gpus.items())

    most = -1
    for count in range(whole + 1):
        for cut in product(range(count + 1), repeat=len(vram_mib) - 1):
            bounds = (0, *sorted(cut), count)
            shares = tuple(
                max(0.0, b - a + (0.5 if b == count else 0) - (0.5 if a == 0 else 0)) for a, b in pairwise(bounds)
            )
            if fits(msgspec.structs.replace(config.servers["s"], n_gpu_layers=count, tensor_split=shares)):
                most = max(most, count)
    assert solved.fits == (most >= 0)
    if most >= 0:
        assert chosen.servers["s"].n_gpu_layers == most
        assert fits(chosen.servers["s"])


@given(
    st.lists(
        st.lists(
            st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3),
            min_size=1,
            max_size=2,
        ),
        min_size=1,
        max_size=3,
    ),
    st.tuples(st.integers(0, 15), st.integers(0, 15)),
)
def test_the_frontier_loses_nothing(groups: list[Any], room: tuple[int, int]) -> None:
    """Two devices, servers that take turns: as good as trying everything."""
    offered = [[[Candidate(cost, (a, b)) for cost, a, b in options] for options in group] for group in groups]
    found = best(offered, room).picks
    flat = [options for group in offered for options in group]
    worths = []
    for picks in product(*(range(len(options)) for options in flat)):
        taken = iter(zip(flat, picks, strict=True))
        sizes = [[next(taken) for _ in group] for group in offered]
        used = [sum(max(o[p].size[d] for o, p in group) for group in sizes) for d in (0, 1)]
        if all(u <= r for u, r in zip(used, room, strict=True)):
            worths.append((sum(o[p].cost for o, p in zip(flat, picks, strict=True)), sum(used), picks))
    assert found == (min(worths)[2] if worths else None)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1),
        min_size=1,
        max_size=3,
    ),
    st.tuples(*[st.integers(0, 20)] * 3),
)
def test_over_three_devices_what_fits_is_found(servers: list[Any], room: tuple[int, int, int]) -> None:
    """Where not all is weighed it says so, what it gives fits, and it gives nothing only where nothing fits."""
    offered = [[[Candidate(cost, tuple(size)) for cost, *size in options]] for options in servers]
    found = best(offered, room)
    worths = []
    for picks in product(*(range(len(group[0])) for group in offered)):
        chosen = [group[0][p] for group, p in zip(offered, picks, strict=True)]
        used = [sum(o.size[d] for o in chosen) for d in range(3)]
        if all(u <= r for u, r in zip(used, room, strict=True)):
            worths.append((sum(o.cost for o in chosen), sum(used), picks))
    if found.complete:
        assert found.picks == (min(worths)[2] if worths else None)
    elif found.picks is not None:
        assert found.picks in [picks for _, _, picks in worths]


def test_two_servers_share_a_card() -> None:
    """Both say auto: together they fit, which each alone with the whole card would not."""
    models = (model_file(LLAMA_8B, name="eight", quantization="q4_k", kind="q4_k"),)
    one = leaving_open("eight", n_ctx_per_slot=8192)
    config = {"hardware": cards(8 * GIB), "models": {"eight": declared("eight", LLAMA_8B, {"q4_k": 0})}}
    plan = planned({"a": one, "b": msgspec.structs.replace(one, port=9009)}, *models, **config)
    card = next(d for d in plan.devices if d.name == "cuda0")
    assert 0.9 * card.budget_bytes <= card.peak_bytes <= card.budget_bytes
    layers = [only(plan, name).settings.n_gpu_layers for name in "ab"]
    assert 33 < sum(layers) < 66
    said = {s.server: s for s in plan.solved}
    assert said["a"].chosen == {"n_gpu_layers": layers[0]}
    assert all("needs" in why or "others come first" in why for s in plan.solved for why in s.beyond)


def test_a_card_is_filled_with_context_and_quality() -> None:
    """All layers fit the smallest file: then a better file, then more context, to within one step of the budget."""
    files = tuple(model_file(LLAMA_8B, name="eight", quantization=q, kind=q) for q in ("q4_k", "q8_0"))
    models = {"eight": declared("eight", LLAMA_8B, {"q4_k": 0, "q8_0": 0})}
    one = leaving_open("eight", fill=("quantization", "context"))
    plan = planned({"a": one}, *files, hardware=cards(16 * GIB), models=models)
    found = only(plan, "a")
    assert (found.settings.n_gpu_layers, found.config.quantization) == (33, "q8_0")
    assert found.settings.n_ctx_per_slot % 1024 == 0
    card = next(d for d in plan.devices if d.name == "cuda0")
    assert 0.95 * card.budget_bytes < card.peak_bytes <= card.budget_bytes
    (choice,) = plan.solved
    assert choice.beyond[0].startswith(f"n_ctx_per_slot={found.settings.n_ctx_per_slot + 1024} needs ")


def test_experts_come_off_the_host_as_far_as_they_fit() -> None:
    """`n_cpu_moe` is the most; fewer banks stay on the host where the card has room."""
    files = (model_file(QWEN3_30B, name="moe", quantization="q4_k", kind="q4_k"),)
    models = {"moe": declared("moe", QWEN3_30B, {"q4_k": 0})}
    one = leaving_open("moe", n_gpu_layers="all", n_cpu_moe=48, fill=("experts",))
    plan = planned({"a": one}, *files, hardware=cards(12 * GIB), models=models)
    assert 0 < only(plan, "a").settings.n_cpu_moe < 48
    card = next(d for d in plan.devices if d.name == "cuda0")
    assert 0.95 * card.budget_bytes < card.peak_bytes <= card.budget_bytes


def test_layers_for_further_tokens_alone_can_be_filled() -> None:
    """A declaration may say that a model has no others; there are no experts to bring onto the card then."""
    mixed = with_fields(MIXED, n_layer_nextn=MIXED.n_layer)
    one = leaving_open("mixed", fill=("experts",), n_cpu_moe=4)
    plan = planned({"a": one}, model_file(mixed, name="mixed", quantization="q4_k"), hardware=cards(8 * GIB))
    assert plan.solved[0].chosen["n_cpu_moe"] == 0


def test_without_a_card_ram_is_filled() -> None:
    """A server on the CPU that leaves its context open takes what the others leave."""
    arch = with_fields(LLAMA_8B, n_ctx_train=1_048_576)
    files = (model_file(arch, name="long", quantization="q4_k", kind="q4_k"),)
    models = {"long": declared("long", arch, {"q4_k": 0})}
    one = leaving_open("long", devices=(), n_gpu_layers=0, fill=("context",))
    plan = planned({"a": one}, *files, hardware=hardware(ram_bytes=64 * GIB), models=models)
    ram = plan.devices[0]
    assert 0.97 * ram.budget_bytes < ram.peak_bytes <= ram.budget_bytes


def test_context_is_no_more_than_ram_holds() -> None:
    """Layers that stay on the host keep their K/V there: the card alone would allow more context than RAM does."""
    files = (model_file(LLAMA_8B, name="eight", quantization="q4_k", kind="q4_k"),)
    models = {"eight": declared("eight", LLAMA_8B, {"q4_k": 0})}
    one = leaving_open("eight", n_gpu_layers=4, fill=("context",))
    host = msgspec.structs.replace(cards(8 * GIB), ram_bytes=12 * GIB)
    plan = planned({"a": one}, *files, hardware=host, models=models)
    assert [f for f in plan.findings if f.severity == "error"] == []
    assert 0.95 * plan.devices[0].budget_bytes < plan.devices[0].peak_bytes
    assert plan.solved[0].beyond[0].endswith("more on ram")


def test_where_nothing_fits_the_least_is_planned_and_the_check_says_so() -> None:
    """A card that cannot even hold the least."""
    one = leaving_open("dense", n_gpu_layers="all", fill=("context", "quantization"))
    plan = planned({"a": one}, *FILES, hardware=cards(MIB), models=MODELS)
    (choice,) = plan.solved
    assert (choice.fits, choice.beyond) == (False, ())
    assert (only(plan, "a").config.quantization, only(plan, "a").settings.n_ctx_per_slot) == ("q4_k", 1024)
    assert [f.code for f in plan.findings if f.severity == "error"] == ["plan/vram-over-budget"]


def test_nothing_open_changes_nothing() -> None:
    """The config is the same object, and nothing was chosen."""
    config = fleet({"a": server()})
    assert solve(config, catalog(), WeightTables()) == (config, ())
    plan: FleetPlan = planned({"a": server()})
    assert plan.solved == ()


@pytest.mark.parametrize(("needed", "expected"), [(0, 1024), (3000, 3000)])
def test_the_least_context_is_what_the_roles_need(needed: int, expected: int) -> None:
    """`routing.n_ctx_min` is a floor, and it is not rounded away."""
    one = leaving_open("dense", n_ctx_per_slot=None, roles=("r",), n_gpu_layers="all", fill=("context",))
    routing = RoutingConfig(n_ctx_min={"r": needed} if needed else {})
    plan = planned({"a": one}, *FILES, hardware=cards(MIB), models=MODELS, routing=routing)
    assert plan.solved[0].chosen["n_ctx_per_slot"] == expected
