"""What was measured on this host, kept in one file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launcher.errors import HostError
from launcher.files.measured import MEASUREMENTS_MAX, keep_measured, known_rates, measured_file, read_measured
from launcher.ir.measured import Measurement, Touched


def of(key: str, at: str, decode: float = 1.0) -> Measurement:
    """A measurement."""
    return Measurement(
        key=key,
        hardware="dev",
        server="a",
        model="m",
        quantization="q",
        settings="",
        build="b",
        at=at,
        prompt_tokens=1,
        n_predict=1,
        batches=2,
        load_average=0.0,
        decode=decode,
        prompt=1.0,
        memory_bytes=1,
        touched=Touched(bytes={"ram": 1}, weights=1),
    )


def test_the_newest_of_a_key_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more than so many; a file that cannot be read is as none, one that cannot be written is an error."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    assert read_measured() == ()
    keep_measured([of("a", "2026-01-01"), of("b", "2026-01-02")])
    keep_measured([of("a", "2026-01-03", 2.0)])
    assert [(m.key, m.decode) for m in read_measured()] == [("b", 1.0), ("a", 2.0)]
    keep_measured(of(str(n), f"2027-{n:05}") for n in range(MEASUREMENTS_MAX))
    assert len(read_measured()) == MEASUREMENTS_MAX
    assert not {"a", "b"} & {m.key for m in read_measured()}
    assert msgspec.json.decode(measured_file().read_bytes())
    for damaged in (b"{", b'[{"key": "\xff"}]', b'[{"touched": ' + b"[" * 100_000):
        measured_file().write_bytes(damaged)
        assert read_measured() == ()
    monkeypatch.setenv("LAUNCH_STATE_DIR", "/proc/none")
    with pytest.raises(HostError, match="cannot"):
        keep_measured([])


def test_rates_of_devices_are_what_servers_on_one_device_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median, to two digits; not of who drafts, is on two devices, or was measured on other hardware."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    assert known_rates("dev") == {}

    def read(key: str, decode: float, *devices: str, **fields: object) -> Measurement:
        """So many tokens/s of a GB on each device."""
        touched = Touched(bytes=dict.fromkeys(devices, 10**9), weights=1)
        return msgspec.structs.replace(of(key, f"2026-01-0{key}", decode), touched=touched, **fields)

    keep_measured(
        [
            *(read("1", 10.04, "ram"), read("2", 12.0, "ram"), read("3", 99.0, "ram"), read("4", 500.0, "cuda0")),
            *(read("5", 9000.0, "ram", "cuda0"), read("6", 9000.0, "ram", drafts=True)),
            *(read("7", 9000.0, "ram", hardware="other"), read("8", 11.04, "ram")),
        ]
    )
    assert known_rates("dev") == {"ram": 12_000_000_000, "cuda0": 500_000_000_000}


@pytest.mark.parametrize("decode", [0.0, -1.0, 1e308])
def test_a_rate_that_no_memory_has(decode: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody wrote into the file by hand, or half of it, is no rate, and keeps no plan from being made."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    odd = msgspec.structs.replace(of("a", "2026-01-01", decode), touched=Touched(bytes={"ram": 10**18}, weights=1))
    keep_measured([odd])
    assert known_rates("dev") == {}
    keep_measured([of("b", "2026-01-02", 3.0)])
    assert known_rates("dev") == {"ram": 3}
