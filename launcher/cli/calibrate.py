"""`launch calibrate`: measure each planned server alone, and keep the results on this host, for plans to read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launcher.cli.sweep import check_servers, nothing_measured
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import Compilation, compile_fleet
from launcher.files.measured import keep_measured, keep_read_speed, known_rates
from launcher.ir.answers import CalibrateDocument
from launcher.ir.measured import Measurement, ReadSpeed
from launcher.ir.plan import RAM
from launcher.ir.sweep import Point, PointResult, Workload
from launcher.sizes import gib
from launcher.sweep import summarise
from launcher.trial import Experiment, Prompts, TrialError, measurement_of, no_room, read_speed, utc_now, variant_of


def run_calibration(words: Sequence[str], config_dirs: list[Path], workload: Workload, *, as_json: bool) -> int:
    """Measure the servers that are named, or all that generate text. Raises LaunchError."""
    out, err = terminals()
    named = [w for w in words if "=" not in w and not w.startswith("~")]
    overrides = [w for w in words if w not in named]
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    compiled.require()
    servers = named or [s.name for s in compiled.plan.servers if not s.settings.embedding]
    check_servers(servers, compiled)
    disk = _measure_disk(compiled)
    if disk is not None:
        err.line(f"{disk.folder}: {gib(disk.bytes_per_s)} a second")
    found: list[Measurement] = []
    refused: list[PointResult] = []
    for server in servers:
        try:
            found.append(_measured(server, overrides, config_dirs, workload))
            err.line(f"{server}: {found[-1].decode:.1f} tokens/s")
        except TrialError as error:
            err.line(f"{server}: not measured: {error}")
            refused.append(PointResult(server=server, settings={}, in_flight=1, current=True, refused=str(error)))
    if not found:
        raise nothing_measured(refused)
    path = keep_measured(found)
    if as_json:
        out.json(CalibrateDocument(measurements=tuple(found), file=str(path), read_speed=disk))
    else:
        _show(out, found)
        if disk is not None:
            _show_disk(out, disk, compiled)
        _show_rates(out, compiled)
        out.line(f"kept in {path}; `launch plan` reads it")
    return 0


def _measure_disk(compiled: Compilation) -> ReadSpeed | None:
    """Measure how fast model files are read, the largest first, for `hardware=auto`; None: too little data."""
    here = {Path(p.path): 0 for server in compiled.plan.servers for p in server.model.parts}
    here |= {path: path.stat().st_size for path in here if path.exists()}
    files = sorted(here, key=lambda path: here[path])[::-1]
    measured = read_speed(files) if files else None
    if measured is None:
        return None
    found = ReadSpeed(bytes_per_s=measured[0], read_bytes=measured[1], folder=str(files[0].parent), at=utc_now())
    keep_read_speed(found)
    return found


def _show_disk(out: Terminal, disk: ReadSpeed, compiled: Compilation) -> None:
    hardware = compiled.plan.config.hardware
    out.line(f"models are read at {gib(disk.bytes_per_s)} a second ({gib(disk.read_bytes)} of {disk.folder})")
    if hardware.name != "auto":
        out.line(f"hardware=auto plans starts by it; {hardware.name}: hardware.read_speed_bytes={disk.bytes_per_s}")


def _show_rates(out: Terminal, compiled: Compilation) -> None:
    name = compiled.plan.config.hardware.name
    for device, rate in known_rates(name).items():
        out.line(f"weights are read from {device} at {gib(rate)} a second")
        if name != "auto":
            key = "hardware" if device == RAM else f"hardware.gpus.{device}"
            out.line(f"hardware=auto plans by it; {name}: {key}.read_bandwidth_bytes={rate}")


def _measured(server: str, overrides: Sequence[str], config_dirs: Sequence[Path], workload: Workload) -> Measurement:
    variant = variant_of(server, (), (), overrides, config_dirs)
    reason = variant.refused or no_room(variant)
    if reason:
        raise TrialError(reason)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="launch-calibrate-") as folder:
        csv = Path(folder, "samples.csv")
        experiment = Experiment(workload, Prompts(), csv, csv.with_suffix(".log"), lambda *_: None)
        experiment.measure(variant, [Point(server=server, values=(), in_flight=1)])
        blank = PointResult(server=server, settings={}, in_flight=1, current=True)
        result = summarise(blank, experiment.samples(variant, 1))
    load_s = experiment.load_s[variant.digest]
    return measurement_of(variant, result, workload, load_average=load, load_s=load_s)


def _show(out: Terminal, found: Sequence[Measurement]) -> None:
    header = ("SERVER", "MODEL", "TOKENS/S", "PROMPT/S", "TOUCHED", "MEASURED", "LOAD", "MACHINE'S LOAD")
    rows = []
    for m in found:
        sizes = (gib(sum(m.touched.bytes.values())), gib(m.memory_bytes))
        speeds = (f"{m.decode:.1f}", f"{m.prompt:.0f}")
        rows.append(
            (m.server, f"{m.model} {m.quantization}", *speeds, *sizes, f"{m.load_s:.1f} s", f"{m.load_average:.1f}")
        )
    out.table(header, rows, right=range(2, len(header)))
