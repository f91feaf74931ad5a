"""What each NVIDIA GPU does now and who uses it, by a driver that tells all, some or nothing of it."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from launcher.hardware import nvml
from launcher.hardware.cards import read_cards, read_uses
from launcher.hardware.load import GpuLoad, device_loads
from launcher.ir.host import CardUse

GIB = 1024**3


class NVMLError(Exception):
    """What the driver raises."""


def driver(calls: list[str], **changes: Any) -> types.SimpleNamespace:
    """An NVML of three cards: one tells all, one only its memory, one is lost."""

    def only_first(value: Any) -> Any:
        def ask(handle: int, *_: Any) -> Any:
            if handle != 0:
                raise NVMLError
            return value

        return ask

    def handle(index: int) -> int:
        if index == 2:
            raise NVMLError
        return index

    asked: dict[str, Any] = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: calls.append("init"),
        "nvmlShutdown": lambda: calls.append("shutdown"),
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlSystemGetDriverVersion": lambda: "570.86.15",
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetMemoryInfo": lambda at: types.SimpleNamespace(used=(5 + at) * GIB, total=24 * GIB),
        "nvmlDeviceGetName": lambda at: f"Card {at}",
        "nvmlDeviceGetUtilizationRates": only_first(types.SimpleNamespace(gpu=73, memory=9)),
        "nvmlDeviceGetTemperature": only_first(61),
        "nvmlDeviceGetPowerUsage": only_first(243_700),
    }
    return types.SimpleNamespace(**{**asked, **changes})


def refuse() -> None:
    """As a driver that has no say."""
    raise NVMLError


def test_what_a_driver_tells_of_each_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Utilisation, temperature and power where it tells them; a card that is lost hides no other; it is let go."""
    calls: list[str] = []
    monkeypatch.setattr(nvml, "DRIVER", Path("/dev/null"))
    monkeypatch.setitem(sys.modules, "pynvml", driver(calls))
    sizes = {"total_bytes": 24 * GIB}
    assert device_loads().gpus == (
        GpuLoad(name="cuda0", model="Card 0", used_bytes=5 * GIB, busy_percent=73, celsius=61, watts=243.7, **sizes),
        GpuLoad(name="cuda1", model="Card 1", used_bytes=6 * GIB, busy_percent=None, celsius=None, watts=None, **sizes),
    )
    assert calls == ["init", "shutdown"]
    card = read_cards(Path("/no/sys"))[0].gpu
    assert (card.backend, card.vram_bytes, card.free_bytes, card.driver) == ("cuda", 24 * GIB, 19 * GIB, "570.86.15")


@pytest.mark.parametrize(
    ("changes", "ends"), [({"nvmlInit": refuse}, []), ({"nvmlDeviceGetCount": refuse}, ["init", "shutdown"])]
)
def test_a_driver_that_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], ends: list[str]
) -> None:
    """No card, no use of one, and nothing raised."""
    calls: list[str] = []
    monkeypatch.setattr(nvml, "DRIVER", Path("/dev/null"))
    monkeypatch.setitem(sys.modules, "pynvml", driver(calls, **changes))
    assert (read_cards(tmp_path), calls) == ((), ends)
    assert (read_uses((10,), tmp_path), calls) == ((), 2 * ends)


def test_who_uses_each_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compute and graphics contexts of one process are one use; what the driver may not tell is zero; it is let go.

    A card that is lost, or does not say who uses it, hides no other's users; strangers are left out.
    """
    calls: list[str] = []

    def process(pid: int, used: int | None) -> types.SimpleNamespace:
        return types.SimpleNamespace(pid=pid, usedGpuMemory=used)

    def graphics(handle: int) -> list[types.SimpleNamespace]:
        if handle != 0:
            raise NVMLError
        return [process(10, 500), process(12, 8)]

    compute = {0: [process(10, 500), process(11, None), process(99, 7)], 1: [process(10, 70)]}
    asks = {
        "nvmlDeviceGetComputeRunningProcesses": compute.__getitem__,
        "nvmlDeviceGetGraphicsRunningProcesses": graphics,
    }
    monkeypatch.setattr(nvml, "DRIVER", Path("/dev/null"))
    monkeypatch.setitem(sys.modules, "pynvml", driver(calls, **asks))
    expected = {CardUse("cuda0", 10, 500), CardUse("cuda0", 11, 0), CardUse("cuda0", 12, 8), CardUse("cuda1", 10, 70)}
    assert set(read_uses((10, 11, 12), tmp_path)) == expected
    assert calls == ["init", "shutdown"]


def test_without_a_driver_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pynvml is not even imported; RAM is told all the same."""
    monkeypatch.setattr(nvml, "DRIVER", Path("/no/such/device"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (read_cards(tmp_path), read_uses((1,), tmp_path)) == ((), ())
    assert device_loads().ram.free_bytes > 0
