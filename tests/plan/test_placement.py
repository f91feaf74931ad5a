"""Where tensors, K/V and adapters go when more than layers decide: split modes, rules, LoRA, projector."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from gguf import GGUFWriter

from launcher.catalog.files import describe
from launcher.engine import dry_run, stand_in_devices
from launcher.ir.config import EngineConfig, GpuConfig, ServerConfig
from launcher.ir.plan import DeviceMemory
from launcher.plan import estimate, settle
from launcher.plan.memory.layout import widest
from launcher.plan.memory.process import Companions, add_up, server_parts
from launcher.plan.memory.weights import WeightTables
from launcher.sizes import GIB, MIB
from tests.tinymodels import write
from tests.tinymodels.running import BARE, RunningServer, ServerExitedError

from .fleets import MLA, QWEN3_30B, TINY, hardware, model_file, planned, server, with_fields

META = re.compile(r"Meta\(\) +(model|KV|compute) buffer size = *([\d.]+) MiB")
ON_DEVICES = tuple(word for word in BARE if word not in ("--device", "none"))
TWO = hardware(gpus={"cuda0": 24 * GIB, "cuda1": 8 * GIB})
BOTH = {"devices": ("cuda0", "cuda1"), "n_gpu_layers": "all", "tensor_split": (3.0, 1.0), "load_mode": "none"}


def by_device(**fields: object) -> dict[str, DeviceMemory]:
    """What a server of eight layers takes by device."""
    model = model_file(with_fields(TINY, n_layer=8))
    return {m.device: m for m in estimate(model, settle(server(**{**BOTH, **fields}), model, TWO).settings)}


def test_f5_no_split_has_one_device() -> None:
    """F5: with `none` the main device has everything, the other nothing at all."""
    model = model_file(with_fields(TINY, n_layer=8))
    settled = settle(server(**BOTH, split_mode="none", main_gpu="cuda1"), model, TWO)
    assert settled.settings.devices == ("cuda1",)
    alone = settle(server(devices=("cuda1",), n_gpu_layers="all", load_mode="none"), model, TWO)
    assert estimate(model, settled.settings) == estimate(model, alone.settings)


def test_rows_and_tensors_are_divided_by_share() -> None:
    """Row: matrices by share, K/V with the main device. Tensor: both by share. In sum what layers take."""
    layers, rows, tensors = by_device(), by_device(split_mode="row", main_gpu="cuda1"), by_device(split_mode="tensor")
    weights = sum(m.model_bytes for d, m in layers.items() if d != "ram")
    kv = sum(m.kv_bytes for m in layers.values())
    assert [rows[d].kv_bytes for d in ("cuda0", "cuda1")] == [0, kv]
    for found in (rows, tensors):
        assert found["cuda0"].model_bytes == pytest.approx(weights * 3 / 4, abs=1)
        assert sum(found[d].model_bytes for d in ("cuda0", "cuda1")) == pytest.approx(weights, abs=2)
    assert tensors["cuda0"].kv_bytes == pytest.approx(kv * 3 / 4, abs=1)


def test_rules_move_tensors() -> None:
    """The first rule found in a name counts; dense feed-forwards and experts are what the shorter words say."""
    model = model_file(with_fields(QWEN3_30B, n_layer=3))
    one = {"devices": ("cuda0",), "n_gpu_layers": "all", "load_mode": "none"}

    def card(**fields: object) -> int:
        return estimate(model, settle(server(**one, **fields), model, TWO).settings)[1].model_bytes

    banks = sum(t.size_bytes for t in model.tensors if "exps" in t.name)
    assert card() - card(tensor_placement=("exps=cpu",)) == banks
    assert card(tensor_placement=("exps=cuda0", "exps=cpu")) == card()
    assert card(n_cpu_moe=2) == card(tensor_placement=(r"blk\.[01]\..*exps=cpu",))
    dense = model_file(with_fields(TINY, n_layer=4))
    whole = estimate(dense, settle(server(**one), dense, TWO).settings)[1].model_bytes
    host = estimate(dense, settle(server(**one, n_cpu_ffn=2), dense, TWO).settings)[1].model_bytes
    moved = [t for t in dense.tensors if t.name.startswith(("blk.0.ffn", "blk.1.ffn")) and "norm" not in t.name]
    assert whole - host == sum(t.size_bytes for t in moved) > 0
    second = settle(server(**{**BOTH, "tensor_split": (1.0, 0.0)}, tensor_placement=("exps=cuda1",)), model, TWO)
    found = {m.device: m.model_bytes for m in estimate(model, second.settings)}
    assert found["cuda1"] == banks


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("exps", "plan/tensor-placement"),
        ("(=cpu", "plan/tensor-placement"),
        ("a,b=cpu", "plan/tensor-placement"),
        ("exps=cuda1", "plan/unknown-device"),
    ],
)
def test_rules_that_lead_nowhere(rule: str, code: str) -> None:
    """No device, no expression, two rules in one, a card that is not the server's."""
    model = model_file()
    config = server(devices=("cuda0",), n_gpu_layers="all", tensor_placement=(rule,))
    (finding,) = settle(config, model, TWO, key="servers.a").findings
    assert (finding.code, finding.key) == (code, "servers.a.tensor_placement.0")


def on_devices(binary: Path, path: Path, config: ServerConfig, words: tuple[str, ...]) -> None:
    """Weights by device as the server's own dry run has them, on two stand-ins."""
    gpus = {f"rpc{i}": GpuConfig(backend="rpc", vram_bytes=8 * GIB, endpoint="h:1") for i in (0, 1)}
    host = msgspec.structs.replace(hardware(), gpus=gpus)
    model = describe(str(path))
    planned = {m.device: m.model_bytes for m in estimate(model, settle(config, model, host).settings)}
    with stand_in_devices(binary, 2) as real:
        argv = (str(binary), "--rpc", ",".join(real), "--device", "RPC0,RPC1", "-m", str(path), "-c", "512", "-np", "1")
        argv = (*argv, "-ngl", "99", "--no-repack", *(word.format(*real) for word in words))
        devices = dict(zip(real, gpus, strict=True))
        own = dry_run(argv, devices, model=str(path)).own
    for memory in own.memory:
        assert planned.get(memory.device, 0) / MIB == pytest.approx(memory.model_bytes / MIB, abs=1)


def test_rules_and_no_split_as_the_server_has_them(llama_server: Path, tmp_path: Path) -> None:
    """Experts on the second card, and `none` on the second, byte for byte but for the table's rounding to a MiB."""
    path = write("qwen3moe", tmp_path, n_embd=512, n_ff_exp=1024, n_expert=8)
    both = {"devices": ("rpc0", "rpc1"), "n_gpu_layers": "all", "load_mode": "none", "repack": False, "n_ctx": 512}
    banks = server(**both, tensor_split=(1.0, 0.0), tensor_placement=("exps=rpc1",))
    on_devices(llama_server, path, banks, ("--tensor-split", "1,0", "--override-tensor", "exps=RPC0[{1}]"))
    none = server(**both, split_mode="none", main_gpu="rpc1")
    on_devices(llama_server, path, none, ("--split-mode", "none", "--main-gpu", "1"))


def started(binary: Path, path: Path, endpoints: Sequence[str], *words: str) -> str:
    """The log of a server over RPC devices."""
    on = ("--rpc", ",".join(endpoints), "--device", "RPC0,RPC1", "-m", path, "-c", "4096", "-np", "1", "-ngl", "99")
    with RunningServer(binary, *on, *words, "--no-repack", flags=(*ON_DEVICES, "-lv", "4")) as running:
        return running.log()


def test_shared_tensors_as_the_server_has_them(llama_server: Path, tmp_path: Path, no_orphans: None) -> None:
    """F5: of the devices that share tensors the log has the largest part: three quarters of weights and K/V."""
    path = write("llama", tmp_path, n_embd=512, n_head=16, n_head_kv=4, n_ff=2048)
    gpus = {f"rpc{i}": GpuConfig(backend="rpc", vram_bytes=8 * GIB, endpoint="h:1") for i in (0, 1)}
    host = msgspec.structs.replace(hardware(), gpus=gpus)
    both = {"devices": ("rpc0", "rpc1"), "n_gpu_layers": "all", "repack": False, "n_ctx": 4096}
    config, model = server(**both, tensor_split=(3, 1), split_mode="tensor"), describe(str(path))
    planned = {m.device: m for m in estimate(model, settle(config, model, host).settings)}
    with stand_in_devices(llama_server, 2) as real:
        log = started(llama_server, path, real, "--tensor-split", "3,1", "--split-mode", "tensor")
    said = {kind: float(size) for kind, size in META.findall(log)}
    assert planned["rpc0"].model_bytes / MIB == pytest.approx(said["model"], abs=0.05)
    assert planned["rpc0"].kv_bytes / MIB == pytest.approx(said["KV"], abs=0.05)
    assert planned["rpc0"].compute_bytes / MIB >= said["compute"]


@pytest.mark.parametrize(("arch", "mode"), [("llama", "row"), ("deepseek2", "tensor"), ("nemotron_h", "tensor")])
def test_modes_that_the_server_refuses(
    llama_server: Path, tmp_path: Path, no_orphans: None, arch: str, mode: str
) -> None:
    """What `plan/split-mode` calls an error ends the server: rows of RPC devices, tensors of some architectures."""
    path = write(arch, tmp_path)
    with stand_in_devices(llama_server, 2) as real, pytest.raises(ServerExitedError, match=r"split buffers|SPLIT_MODE"):
        started(llama_server, path, real, "--split-mode", mode)


@pytest.mark.parametrize(("dialect", "severity"), [("b10068", "error"), ("b11434", "error"), ("b99999", "warning")])
def test_a_refusal_of_builds_that_were_seen(dialect: str, severity: str) -> None:
    """A later build may share tensors of more architectures: nothing is forbidden there."""
    engines = {"default": EngineConfig(binary="llama-server", dialect=dialect)}
    plan = planned({"a": server(**BOTH, split_mode="tensor")}, model_file(MLA), hardware=TWO, engines=engines)
    assert [f.severity for f in plan.findings if f.code == "plan/split-mode"] == [severity]


def test_adapters_as_the_server_has_them(llama_server: Path, tmp_path: Path, no_orphans: None) -> None:
    """An adapter's buffer is as large as its tensors."""
    path = write("llama", tmp_path, n_embd=256)
    model = describe(str(path))
    adapter = tmp_path / "adapter.gguf"
    arch = model.architecture
    size = write_adapter(adapter, arch.n_embd, widest(arch.n_head) * arch.key_length, arch.n_layer)
    settings = settle(server(n_ctx=512), model, hardware()).settings
    plain, more = (
        add_up(server_parts(model, settings, Companions(adapters=adapters), WeightTables()))[0]
        for adapters in ((), (size,))
    )
    assert more.overhead_bytes - plain.overhead_bytes == size
    flags = (*BARE, "-lv", "4")
    with RunningServer(llama_server, "-m", path, "-c", "512", "--lora", adapter, flags=flags) as running:
        log = running.log()
    said = next(line for line in log.splitlines() if "LoRA buffer size" in line)
    assert float(said.rpartition("=")[2].split()[0]) == pytest.approx(size / MIB, abs=0.01)


def write_adapter(path: Path, width: int, heads: int, layers: int, rank: int = 16) -> int:
    """A LoRA adapter over every layer's query; returns the bytes of its tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_a", np.zeros((rank, width), np.float32))
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_b", np.zeros((heads, rank), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return layers * rank * (width + heads) * 4
