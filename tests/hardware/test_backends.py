"""The table of backends."""

from __future__ import annotations

from typing import get_args

from launcher.hardware.cards import DRIVERS
from launcher.ir.backends import BACKENDS, BackendName


def test_each_backend_is_one_row() -> None:
    """What config accepts and what is known are the same names; devices are told apart by theirs."""
    assert set(get_args(BackendName)) == set(BACKENDS)
    names = [name for known in BACKENDS.values() for name in (known.device, known.other_device) if name]
    assert len(names) == len(set(names))


def test_each_driver_is_one_module() -> None:
    """Whoever a row names can be asked, and nobody else is there."""
    assert {known.driver for known in BACKENDS.values() if known.driver} == set(DRIVERS)
