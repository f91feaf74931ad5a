"""The machine's cards by the names of the engine that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import launcher.hardware
from launcher.compiler import Compilation, compile_fleet
from launcher.ir.host import HostGpu

GIB = 1024**3
CARD = HostGpu(name="cuda0", backend="cuda", model="NVIDIA RTX 4090", vram_bytes=24 * GIB, free_bytes=23 * GIB)


@pytest.fixture
def fleet(
    tmp_path: Path, tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Compilation]:
    """A fleet file on a machine with that card, and an engine that lists these devices."""
    real = launcher.hardware.take_inventory()
    monkeypatch.setattr(launcher.hardware, "take_inventory", lambda: msgspec.structs.replace(real, gpus=(CARD,)))

    def compiled(listed: str, *overrides: str, server: str = "{file: %s}") -> Compilation:
        binary = tmp_path / "llama-server"
        binary.write_text(f"#!/bin/sh\n[ $1 = --list-devices ] && printf 'Available devices:\\n{listed}'\n")
        binary.chmod(0o755)
        path = tmp_path / "launch.yaml"
        engine = f"{{binary: {binary}, dialect: b10434}}"
        path.write_text(f"engines: {{default: {engine}}}\nservers: {{a: {server % tiny_models('llama')}}}\n")
        return compile_fleet(list(overrides), config_dirs=[path])

    return compiled


def test_cards_are_called_what_the_engine_calls_them(fleet: Callable[..., Compilation]) -> None:
    """A Vulkan build is given its own name for the card; its size is the driver's, and the whole model goes there."""
    done = fleet("  Vulkan0: NVIDIA RTX 4090 (24100 MiB, 23000 MiB free)\\n")
    assert {n: (g.backend, g.vram_bytes) for n, g in done.composed.fleet.hardware.gpus.items()} == {
        "vulkan0": ("vulkan", 24 * GIB)
    }
    argv = done.commands["a"].argv
    assert argv[argv.index("--device") + 1] == "Vulkan0"
    assert int(argv[argv.index("--n-gpu-layers") + 1]) > 0
    assert [f.code for f in done.findings] == []  # nobody said how full it should be


def test_a_build_that_sees_no_card(fleet: Callable[..., Compilation]) -> None:
    """Everything goes to RAM, and that is said."""
    done = fleet("")
    assert done.composed.fleet.hardware.gpus == {}
    assert "engine/cards-unseen" in {f.code for f in done.findings}
    assert done.composed.fleet.servers["a"].devices == ()


def test_what_somebody_wrote_keeps_its_name(fleet: Callable[..., Compilation]) -> None:
    """Cards of the config are not asked for."""
    done = fleet("", "hardware.gpus.cuda0.target_max=0.9")
    assert set(done.composed.fleet.hardware.gpus) == {"cuda0"}


def test_auto_of_a_server_of_any_profile(fleet: Callable[..., Compilation]) -> None:
    """`devices: auto` works beside written layers, too."""
    done = fleet(
        "  CUDA0: NVIDIA RTX 4090 (24100 MiB, 23000 MiB free)\\n", server="{file: %s, devices: auto, n_gpu_layers: 1}"
    )
    server = done.composed.fleet.servers["a"]
    assert (server.devices, server.n_gpu_layers) == (("cuda0",), 1)


def test_two_cards(fleet: Callable[..., Compilation]) -> None:
    """A server that says nothing may use both."""
    listed = "".join(f"  CUDA{n}: NVIDIA RTX 4090 (24100 MiB, 23000 MiB free)\\n" for n in range(2))
    done = fleet(listed)
    assert done.composed.fleet.servers["a"].devices == ("cuda0", "cuda1")
    argv = done.commands["a"].argv
    assert argv[argv.index("--device") + 1] == "CUDA0,CUDA1"


def test_a_server_elsewhere_is_no_card_of_this_machine(fleet: Callable[..., Compilation]) -> None:
    """An RPC device that a binary lists has no endpoint in the config: only a written one can be used."""
    cuda = "  CUDA0: NVIDIA RTX 4090 (24100 MiB, 23000 MiB free)\\n"
    done = fleet(f"{cuda}  RPC0: 10.0.0.2:50052 (16000 MiB, 15000 MiB free)\\n")
    assert set(done.composed.fleet.hardware.gpus) == {"cuda0"}
    assert done.composed.fleet.servers["a"].devices == ("cuda0",)
