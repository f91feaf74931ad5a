"""Where weights land, what the CPU copies, what load modes commit and lock."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from launcher.ir.catalog import FilePart
from launcher.ir.config import ArchitectureConfig
from launcher.ir.plan import DeviceMemory
from launcher.plan import estimate, settle
from launcher.plan.memory.layout import layer_devices, split_name
from launcher.plan.memory.weights import CpuCopies, copied_bytes, weigh
from launcher.sizes import GIB

from .fleets import HYBRID, QWEN3_30B, TINY, hardware, model_file, server, tensor, tensors, with_fields

AMX = CpuCopies(amx=True, repack=frozenset({"q4_0", "q4_k"}))
AVX2 = CpuCopies(amx=False, repack=frozenset({"q4_0", "q4_k"}))


def memory(fields: dict[str, Any], *, gpus: dict[str, int] | None = None, features: tuple[str, ...] = ()) -> Any:
    """Memory of a tiny server by device."""
    model = model_file()
    host = hardware(gpus=gpus, features=features)
    found = estimate(model, settle(server(**fields), model, host).settings)
    return {m.device: m for m in found}


@pytest.mark.parametrize(
    ("kind", "shape", "copies", "extra"),
    [
        ("q8_0", (256, 64), AMX, 256 * 64 // 32 * 4),
        ("q4_k", (256, 64), AMX, 256 * 64 // 256 * 4),
        ("q6_k", (256, 64), AMX, 0),
        ("q6_k", (256, 64), AVX2, None),
        ("q8_0", (256, 40), AMX, None),
        ("q4_k", (256, 40), AMX, 0),
        ("q4_k", (256, 40), AVX2, 0),
        ("q4_k", (256, 42), AVX2, None),
        ("q4_k", (256, 64, 8), AMX, 0),
        ("f32", (256, 64), AMX, None),
        ("q8_0", (256,), AMX, None),
    ],
)
def test_copies_by_type_and_shape(kind: str, shape: tuple[int, ...], copies: CpuCopies, extra: int | None) -> None:
    """None = used as it is; else the tensor's bytes plus what the tile layout adds."""
    found = tensor("blk.0.ffn_up_exps.weight" if len(shape) == 3 else "blk.0.ffn_up.weight", kind, *shape)
    assert copied_bytes(found, copies) == (0 if extra is None else found.size_bytes + extra)


def test_three_dimensional_weights_that_are_not_experts() -> None:
    """Latent attention's 3-D matrices go to AMX, never to the repack buffer."""
    found = tensor("blk.0.attn_k_b.weight", "q4_k", 256, 64, 8)
    assert copied_bytes(found, AMX) > 0
    assert copied_bytes(found, AVX2) == 0


def test_table_counts_every_tensor_once() -> None:
    """Groups add up to the file; experts apart."""
    model = model_file(with_fields(QWEN3_30B, n_layer=3))
    table = weigh(model, AVX2)
    groups = (table.inputs, table.output, *table.dense, *table.experts)
    assert sum(g.tensors for g in groups) == model.tensor_bytes
    assert table.count == len(model.tensors)
    assert all(g.tensors > 9 * d.tensors for g, d in zip(table.experts, table.dense, strict=True))


def of_build(arch: ArchitectureConfig, build: int) -> DeviceMemory:
    """What a server of a model of `arch` takes under `build`."""
    model = model_file(arch)
    return estimate(model, settle(server(load_mode="none"), model, build=build).settings)[0]


def test_layers_for_further_tokens_by_build() -> None:
    """Their weights are loaded for nothing by old builds of two architectures, their K/V kept by old ones of others.

    Of a build that nobody knows (0) the larger figure counts. Measured: `launcher.plan.builds`.
    """
    with_mtp = with_fields(TINY, n_layer=3, n_layer_nextn=1)
    one, other = of_build(TINY, 11434), of_build(with_mtp, 11434)
    assert (other.kv_bytes, other.model_bytes) == (one.kv_bytes, one.model_bytes)
    for build in (0, 10068, 10434):
        old = of_build(with_mtp, build)
        assert (old.kv_bytes, old.model_bytes) == (one.kv_bytes * 3 // 2, one.model_bytes)
    fields = {"arch": "qwen35", "n_head_kv": 2, "ssm_n_group": 2, "full_attention_interval": 2}
    without = with_fields(HYBRID, **fields)
    hybrid = with_fields(HYBRID, **fields, n_layer=5, n_layer_nextn=1)
    whole = model_file(hybrid).tensor_bytes
    for build, loaded in ((0, True), (10068, True), (10092, True), (10434, False), (11434, False)):
        found = of_build(hybrid, build)
        assert found.kv_bytes == of_build(without, build).kv_bytes
        assert (found.model_bytes == whole) is loaded


def test_all_layers_are_all_that_llama_cpp_counts() -> None:
    """`all` and `auto` count the layer for further tokens: with one layer less the first stays on the CPU."""
    model = model_file(with_fields(TINY, n_layer=3, n_layer_nextn=1))
    host = hardware(gpus={"cuda0": GIB})
    for asked in ("all", "auto", 99):
        settings = settle(server(devices=("cuda0",), n_gpu_layers=asked), model, host).settings
        assert settings.n_gpu_layers == 4
        assert layer_devices(3, settings) == ("cuda0",) * 4
    one_less = settle(server(devices=("cuda0",), n_gpu_layers=3), model, host).settings
    assert layer_devices(3, one_less) == ("ram", "cuda0", "cuda0", "cuda0")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.12.ffn_up_exps.weight", (12, "ffn_up_exps.weight")),
        ("token_embd.weight", (-1, "token_embd.weight")),
        ("blk.x.weight", (-1, "blk.x.weight")),
        ("blk.5", (5, "")),
        ("blk", (-1, "blk")),
    ],
)
def test_names_are_split(name: str, expected: tuple[int, str]) -> None:
    """A strange name is not a layer, and not an exception."""
    assert split_name(name) == expected


@pytest.mark.parametrize(
    ("mode", "file_backed", "locked"),
    [("mmap", True, False), ("mmap+mlock", True, True), ("mlock", False, True), ("none", False, False)],
)
def test_load_modes(mode: str, file_backed: bool, locked: bool) -> None:
    """What is mapped is reclaimable; what is locked is the mapping or the plain buffer."""
    ram: DeviceMemory = memory({"load_mode": mode})["ram"]
    size = sum(t.size_bytes for t in tensors(TINY, "q8_0", embedding="q8_0"))
    assert ram.file_bytes == (size if file_backed else 0)
    assert ram.locked_bytes == (size if locked else 0)
    assert ram.model_bytes == size


def test_amx_copies_are_never_locked() -> None:
    """They are not host buffers to llama.cpp."""
    features = ("amx_int8", "avx512f", "avx2")
    plain = memory({"load_mode": "mlock"})["ram"].locked_bytes
    repacked = memory({"load_mode": "mlock"}, features=features)["ram"]
    assert repacked.locked_bytes < plain
    assert repacked.model_bytes > plain


def test_gpu_host_buffers_displace_repacking() -> None:
    """With CUDA devices the CPU's layers stay plain; with an RPC device they are repacked (make_cpu_buft_list)."""
    features = ("amx_int8", "avx512f", "avx2")
    fields = {"n_gpu_layers": 1}
    cuda = memory(fields | {"devices": ("cuda0",)}, gpus={"cuda0": GIB}, features=features)["ram"]
    rpc = memory(fields | {"devices": ("rpc0",)}, gpus={"rpc0": GIB}, features=features)["ram"]
    assert cuda.model_bytes == cuda.file_bytes
    assert rpc.model_bytes > rpc.file_bytes


def test_output_is_offloaded_first() -> None:
    """The count includes the output: 1 = output alone, n_layer + 1 = everything."""
    host = hardware(gpus={"cuda0": GIB})
    for layers, expected in ((0, 0), (1, 1), (2, 2), (3, 3), (99, 3)):
        settings = settle(server(devices=("cuda0",), n_gpu_layers=layers), model_file(), host).settings
        places = layer_devices(2, settings)
        assert places.count("cuda0") == expected
        assert expected == 0 or places[-1] == "cuda0"


def test_tensor_split_divides_layers() -> None:
    """Shares as written; without them by the devices' memory."""
    arch = with_fields(TINY, n_layer=11)
    host = hardware(gpus={"cuda0": 3 * GIB, "cuda1": GIB})
    both = {"devices": ("cuda0", "cuda1"), "n_gpu_layers": "all"}
    written = settle(server(**both, tensor_split=(1.0, 1.0)), model_file(arch), host).settings
    by_memory = settle(server(**both), model_file(arch), host).settings
    assert layer_devices(11, written).count("cuda0") == 6
    assert layer_devices(11, by_memory).count("cuda0") == 9


def test_tied_embedding_is_loaded_again_on_a_device() -> None:
    """Once on the host for input, once more where the output is."""
    arch = with_fields(TINY, tied_embeddings=True)
    model = model_file(arch)
    host = hardware(gpus={"cuda0": GIB})
    ram, gpu = estimate(model, settle(server(devices=("cuda0",), n_gpu_layers="all"), model, host).settings)
    embedding = model.tensors[0].size_bytes
    assert ram.model_bytes == embedding
    assert gpu.model_bytes == model.tensor_bytes
    assert estimate(model, settle(server(), model).settings)[0].model_bytes == model.tensor_bytes


def test_auto_layers_are_the_most_that_fit() -> None:
    """One layer more exceeds the target; the count is a number; everything, where everything fits."""
    arch = with_fields(TINY, n_layer=20, n_embd=512, n_ff=2048)
    model = model_file(arch)
    auto = {"devices": ("cuda0",), "n_gpu_layers": "auto"}
    roomy = settle(server(**auto), model, hardware(gpus={"cuda0": GIB})).settings
    tight_host = hardware(gpus={"cuda0": 70 * 1024**2})
    tight = settle(server(**auto), model, tight_host).settings
    assert roomy.n_gpu_layers == 21
    assert 0 < tight.n_gpu_layers < 21
    budget = tight_host.gpus["cuda0"].vram_bytes * 0.95
    for layers, fits in ((tight.n_gpu_layers, True), (tight.n_gpu_layers + 1, False)):
        config = server(devices=("cuda0",), n_gpu_layers=layers)
        gpu = estimate(model, settle(config, model, tight_host).settings)[1]
        assert (gpu.peak_bytes <= budget) is fits


def test_a_part_without_host_tensors_is_not_mapped() -> None:
    """Tensors on the host at both ends of a model, devices in between: each part has a span of its own."""
    arch = with_fields(TINY, n_layer=6)
    whole = model_file(arch, quantization="f16", kind="f16", embedding="f16")
    names = [t.name for t in whole.tensors]
    moved = tuple(sorted(whole.tensors, key=lambda t: t.name == "token_embd.weight"))  # the embedding last
    size = sum(t.size_bytes for t in moved)
    per_part = len(names) // 3
    counts = (per_part, per_part, len(names) - 2 * per_part)
    parts = tuple(FilePart(path=f"/m-{i}", size_bytes=size // 3, tensors=n) for i, n in enumerate(counts))
    split = msgspec.structs.replace(whole, tensors=moved, parts=parts)
    joined = msgspec.structs.replace(whole, tensors=moved)
    one = server(devices=("cuda0",), n_gpu_layers=6, load_mode="mmap")
    host = hardware(gpus={"cuda0": GIB})
    mapped = {
        label: estimate(model, settle(one, model, host).settings)[0].file_bytes
        for label, model in (("split", split), ("joined", joined))
    }
    on_host = [t for t in moved if t.name == "token_embd.weight" or t.name.startswith("blk.0.")]
    assert mapped["joined"] > 0.9 * size
    assert mapped["split"] == sum(t.size_bytes for t in on_host)
