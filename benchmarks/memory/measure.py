"""The server's own figures for a case: its buffers, and for a live one what its process holds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.memory.cases import Case
from launcher.engine import dry_run
from launcher.hardware import take_inventory
from launcher.plan import estimate, settle
from launcher.plan.memory.compute_bound import micro_batch
from launcher.sizes import MIB
from tests.plan.fleets import hardware
from tests.plan.test_real_server import flags, logged
from tests.tinymodels.running import RunningServer


class Row(NamedTuple):
    """One comparison, in MiB: (planned, real) a component.

    `resident`, only of processes that ran: planned, planned without the compute buffer (which nothing has touched
    before the first request), real.
    """

    case: Case
    n_ubatch: int
    model: tuple[float, float]
    context: tuple[float, float]
    compute: tuple[float, float]
    resident: tuple[float, float, float] | None


def words(case: Case) -> list[str]:
    """The case's flags."""
    found = flags(case.config)
    return [*found, "--kv-unified"] if case.config.kv_unified and case.config.slots is not None else found


def compare(binary: Path, case: Case) -> Row:
    """Plan and server side by side. Weights are compared as the server logs them: by mapping live, by tensor dry."""
    host = hardware(features=take_inventory().features)
    settings = settle(case.config, case.model, host).settings
    (plan,) = estimate(case.model, settings)
    context = (plan.kv_bytes + plan.recurrent_bytes + plan.output_bytes) / MIB
    command = [str(binary), "-m", str(case.path), *words(case), "--device", "none"]
    (dry,) = dry_run(command, {})[-1:]
    proven = (dry.kv_bytes + dry.recurrent_bytes + dry.output_bytes) / MIB
    unmapped = msgspec.structs.replace(settings, load_mode="none")
    model = (estimate(case.model, unmapped)[0].model_bytes / MIB, sum(m.model_bytes for m in dry.memory) / MIB)
    compute = (plan.compute_bytes / MIB, sum(m.compute_bytes for m in dry.memory) / MIB)
    resident = None
    if case.live:
        real = logged(binary, case.path, case.config)
        model = (plan.model_bytes / MIB, real["model"])
        untouched = plan.planned_bytes - plan.compute_bytes
        resident = (plan.planned_bytes / MIB, untouched / MIB, _resident(binary, case))
    return Row(case, micro_batch(settings), model, (context, proven), compute, resident)


def _resident(binary: Path, case: Case) -> float:
    """MiB in RAM once the server is ready, libraries included."""
    with RunningServer(binary, "-m", case.path, *words(case)) as running:
        text = Path(f"/proc/{running.pid}/smaps_rollup").read_text(encoding="ascii")
    return int(next(line for line in text.splitlines() if line.startswith("Rss:")).split()[1]) / 1024
