"""What each GPU does now, by a driver that tells all, some or nothing of it."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from launcher.hardware import inventory
from launcher.hardware.load import GpuLoad, device_loads, gpu_loads

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
    monkeypatch.setattr(inventory, "NVIDIA", Path("/dev/null"))
    monkeypatch.setitem(sys.modules, "pynvml", driver(calls))
    sizes = {"total_bytes": 24 * GIB}
    assert device_loads().gpus == (
        GpuLoad(name="cuda0", model="Card 0", used_bytes=5 * GIB, busy_percent=73, celsius=61, watts=243.7, **sizes),
        GpuLoad(name="cuda1", model="Card 1", used_bytes=6 * GIB, busy_percent=None, celsius=None, watts=None, **sizes),
    )
    assert calls == ["init", "shutdown"]


@pytest.mark.parametrize(
    ("changes", "ends"), [({"nvmlInit": refuse}, []), ({"nvmlDeviceGetCount": refuse}, ["init", "shutdown"])]
)
def test_a_driver_that_refuses(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], ends: list[str]) -> None:
    """No card, and nothing raised."""
    calls: list[str] = []
    monkeypatch.setattr(inventory, "NVIDIA", Path("/dev/null"))
    monkeypatch.setitem(sys.modules, "pynvml", driver(calls, **changes))
    assert (gpu_loads(), calls) == ((), ends)


def test_without_a_driver_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pynvml is not even imported; RAM is told all the same."""
    monkeypatch.setattr(inventory, "NVIDIA", Path("/no/such/device"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (gpu_loads(), device_loads().ram.free_bytes > 0) == ((), True)
