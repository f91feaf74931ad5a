"""Compute buffers: simulated sizes against the server's own, and the parts of the simulation on their own."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.engine import dry_run, stand_in_devices
from launcher.ir.catalog import ModelFile
from launcher.ir.config import GpuConfig, ServerConfig
from launcher.plan import estimate, settle
from launcher.plan.memory import WeightTables, layers, served_architecture
from launcher.plan.memory.compute import COPIES, batches, simulated
from launcher.plan.memory.graph import compute_bytes
from launcher.plan.memory.graph.allocator import ENDLESS, Heap, Player, lifetimes
from launcher.plan.memory.graph.batch import Build
from launcher.plan.memory.graph.models import SIMULATED, embed, finish, layer
from launcher.plan.memory.graph.simulate import walk
from launcher.plan.memory.graph.values import Graph
from launcher.sizes import GIB, MIB

from . import drawn
from .fleets import QWEN3_30B, TINY, hardware, model_file, server, with_fields
from .test_real_server import flags

SHAPES = int(os.environ.get("LAUNCH_FUZZ_SHAPES", "32"))
"""Random models held against the server; `make fuzz` takes thousands."""
FIRST = int(os.environ.get("LAUNCH_FUZZ_SEED", "0"))
SMALL_BATCHES = 0.25
"""MiB that one token of each slot may need more than a dry run shows, in these small models."""
LOG = 0.0051
"""MiB by which the server's log rounds."""


def drawing(seed: int, folder: Path) -> tuple[ModelFile, Path, ServerConfig]:
    """A model and a server; the architectures take turns."""
    rng = random.Random(seed)  # noqa: S311 - the same draws again
    arch = drawn.architecture(rng, drawn.ARCHITECTURES[seed % len(drawn.ARCHITECTURES)])
    model, path = drawn.model(arch, folder, f"drawn-{seed}")
    return model, path, drawn.config(rng, arch)


def reserved(model: ModelFile, config: ServerConfig) -> list[int]:
    """The sizes for each batch that the server reserves for."""
    settings = settle(config, model, hardware()).settings
    arch = served_architecture(model)
    table = WeightTables().of(model, arch.n_layer, settings)
    return [compute_bytes(arch, b, table.kinds, table.order).host for b in batches(arch, layers(arch), settings)]


def whole(model: ModelFile, config: ServerConfig) -> int:
    """The simulated size with every layer built and none skipped."""
    settings = settle(config, model, hardware()).settings
    arch = served_architecture(model)
    table = WeightTables().of(model, arch.n_layer, settings)
    sizes = []
    for batch in batches(arch, layers(arch), settings):
        build = Build(arch, batch)
        x = embed(build)
        for il, kind in enumerate(table.order):
            x = layer(build, table.kinds[kind], il, x, last=il == arch.n_layer - 1)
        finish(build, x)
        (segment,) = lifetimes(build.graph.nodes, build.graph.inputs, [len(build.graph.nodes)])
        player = Player(build.graph.inputs)
        player.play(0, segment)
        sizes.append(player.peak)
    return max(sizes)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SHAPES))
def test_random_models_against_the_server(llama_server: Path, tmp_path: Path, seed: int) -> None:
    """Dimensions, contexts, slots, types and flags that nothing was fitted to: every figure equals the server's."""
    model, path, config = drawing(seed, tmp_path)
    (plan,) = estimate(model, settle(config, model, hardware()).settings)
    words = [*flags(config), *(["--kv-unified"] if config.kv_unified and config.slots is not None else [])]
    (dry,) = dry_run([str(llama_server), "-m", str(path), *words, "--device", "none"], {})
    # the dry run reserves for a full micro-batch only; the real server for one token a slot too
    full, *small = reserved(model, config)
    assert full / MIB == pytest.approx(sum(m.compute_bytes for m in dry.memory) / MIB, abs=LOG)
    assert plan.compute_bytes == max(full, *small, 0)
    assert plan.kv_bytes / MIB == pytest.approx(dry.kv_bytes / MIB, abs=2 * LOG)
    assert plan.recurrent_bytes / MIB == pytest.approx(dry.recurrent_bytes / MIB, abs=LOG)
    assert plan.output_bytes / MIB == pytest.approx(dry.output_bytes / MIB, abs=LOG)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(1, SHAPES // 4)))
def test_random_models_on_one_device(llama_server: Path, tmp_path: Path, seed: int) -> None:
    """With every layer on an RPC device the host only feeds it: both sides are known to 64 KiB, and never under."""
    model, path, config = drawing(seed, tmp_path)
    if model.architecture.arch not in SIMULATED - {"bert"}:  # bert's embeddings are normed on the host
        model, path, config = drawing(seed + 1, tmp_path)
    config = msgspec.structs.replace(config, devices=("rpc0",), n_gpu_layers=99)
    gpu = GpuConfig(backend="rpc", vram_bytes=80 * GIB, endpoint="127.0.0.1:50052")
    host = msgspec.structs.replace(hardware(), gpus={"rpc0": gpu})
    planned = estimate(model, settle(config, model, host).settings)
    words = [*flags(config), *(["--kv-unified"] if config.kv_unified and config.slots is not None else [])]
    with stand_in_devices(llama_server, 1) as (endpoint,):
        command = [str(llama_server), "-m", str(path), *words, "-ngl", "99", "--rpc", endpoint, "--device", "RPC0"]
        (dry,) = dry_run(command, {"RPC0": "rpc0"})
    for mine, real in zip(planned, dry.memory, strict=True):
        assert mine.device == real.device
        assert -LOG <= (mine.compute_bytes - real.compute_bytes) / MIB <= COPIES / MIB + LOG + SMALL_BATCHES


@pytest.mark.parametrize("seed", range(200, 200 + 2 * len(drawn.ARCHITECTURES)))
def test_skipped_layers_change_nothing(tmp_path: Path, seed: int) -> None:
    """A walk through the kinds of layers reaches the same peak as the whole model."""
    model, _, config = drawing(seed, tmp_path)
    (plan,) = estimate(model, settle(config, model, hardware()).settings)
    assert plan.compute_bytes == whole(model, config)


def test_every_known_architecture_is_drawn() -> None:
    """The random models leave no architecture of the simulation out."""
    assert {name.removesuffix("-experts") for name in drawn.ARCHITECTURES} == set(SIMULATED)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_a_walk_keeps_ends_and_neighbours(kinds: Sequence[int]) -> None:
    """It starts and ends as the model does, takes no step that the model does not take, and leaves none out."""
    kept = [kinds[i] for i in walk(kinds)]
    assert (kept[0], kept[-1]) == (kinds[0], kinds[-1])
    assert set(pairwise(kept)) == set(pairwise(kinds))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8)), max_size=80))
def test_a_heap_never_gives_the_same_bytes_twice(steps: Sequence[tuple[int, int]]) -> None:
    """Blocks in use never overlap, the peak is where the furthest ended, and all that is given back is one again."""
    heap, used, furthest = Heap(), list[tuple[int, int]](), 0
    for units, victim in steps:
        if victim < len(used):
            heap.release(*used.pop(victim))
        size = 32 * units
        offset = heap.allocate(size)
        assert all(offset + size <= o or o + s <= offset for o, s in used)
        used.append((offset, size))
        furthest = max(furthest, offset + size)
    assert heap.peak == furthest
    for block in used:
        heap.release(*block)
    assert heap.free == [(0, ENDLESS)]


def test_a_heap_takes_the_best_fit_and_the_end_last() -> None:
    """The smallest hole that is large enough; among equals the later; new bytes only when no hole fits."""
    heap = Heap()
    a, b, c, d, e = (heap.allocate(size) for size in (96, 32, 64, 32, 64))
    heap.release(a, 96)
    heap.release(c, 64)
    assert heap.allocate(64) == c
    heap.release(c, 64)
    heap.release(e, 64)  # joins the endless end, which is no hole
    assert heap.allocate(64) == c
    assert heap.allocate(128) == d + 32
    assert heap.allocate(96) == a
    assert b == 96


def test_an_operation_overwrites_what_nobody_else_needs() -> None:
    """In place: same layout, last use, no view, no output; else room of its own."""

    def peak(*, shared: bool, viewed: bool, output: bool) -> int:
        graph = Graph()
        x = graph.new((8, 8), graph.input(8))
        x.output = output
        over = graph.over(graph.view(x, 8, 8) if viewed else x)
        graph.expand(graph.over(over, x) if shared else over)
        (segment,) = lifetimes(graph.nodes, graph.inputs, [len(graph.nodes)])
        player = Player(graph.inputs)
        player.play(0, segment)
        return player.peak

    assert peak(shared=False, viewed=False, output=False) == 32 + 256
    assert peak(shared=True, viewed=False, output=False) == 32 + 512
    assert peak(shared=False, viewed=True, output=False) == 32 + 512
    assert peak(shared=False, viewed=False, output=True) == 32 + 512


@pytest.mark.parametrize(
    "fields",
    [{"key_length": -64}, {"n_expert": 4, "n_expert_used": 1 << 40}, {"n_head": 0, "n_head_kv": 0}, {"n_embd": -1}],
    ids=["no-width", "experts", "no-heads", "negative"],
)
def test_impossible_sizes_get_the_bound(fields: dict[str, int]) -> None:
    """Sizes that no model has: no crash, no endless loop, a bound."""
    arch = with_fields(QWEN3_30B if "n_expert" in fields else TINY, n_layer=2)
    model = model_file(arch)
    broken = msgspec.structs.replace(model, architecture=with_fields(arch, **fields))
    settings = settle(server(n_ctx=4096, cache_type_k="q8_0", cache_type_v="q8_0"), model, hardware()).settings
    settings = msgspec.structs.replace(settings, n_expert_used=fields.get("n_expert_used", 0))
    table = WeightTables().of(broken, arch.n_layer, settings)
    assert simulated(broken.architecture, layers(broken.architecture), settings, table, {}) is None


def test_a_flat_matrix_gets_the_bound() -> None:
    """A weight with one dimension where a matrix belongs."""
    model = model_file(TINY)
    flat = tuple(msgspec.structs.replace(t, shape=t.shape[:1]) for t in model.tensors)
    settings = settle(server(n_ctx=4096), model, hardware()).settings
    table = WeightTables().of(msgspec.structs.replace(model, tensors=flat), TINY.n_layer, settings)
    assert simulated(TINY, layers(TINY), settings, table, {}) is None


@pytest.mark.parametrize("unknown", ["architecture", "weight", "device"])
def test_what_is_not_described_gets_the_bound(unknown: str) -> None:
    """Another architecture, another weight, a device: never a guess, but the bound with its margin."""
    model, config, host = model_file(TINY), server(n_ctx=4096), hardware(gpus={"cuda0": 1 << 34})
    if unknown == "architecture":
        model = model_file(with_fields(TINY, arch="mamba17"))
    if unknown == "weight":
        other = msgspec.structs.replace(model.tensors[1], name="blk.0.attn_novelty.weight")
        model = msgspec.structs.replace(model, tensors=(*model.tensors, other))
    if unknown == "device":
        config = msgspec.structs.replace(config, devices=("cuda0",), n_gpu_layers=1)
    exact = estimate(model_file(TINY), settle(server(n_ctx=4096), model_file(TINY), host).settings)[0]
    settings = settle(config, model, host).settings
    arch = served_architecture(model)
    table = WeightTables().of(model, arch.n_layer, settings)
    assert simulated(arch, layers(arch), settings, table, {}) is None
    assert estimate(model, settings)[0].compute_bytes > exact.compute_bytes
