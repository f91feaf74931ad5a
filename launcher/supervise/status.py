"""The fleet as `launch status` shows it."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.base import procfs
from launcher.base.addresses import socket_path
from launcher.ir.live import ProcessStatus
from launcher.manifest import argv_changes
from launcher.supervise.identity import argv_compatible
from launcher.supervise.measuring import Measured
from launcher.supervise.runner import Runner
from launcher.supervise.spec import ProcessSpec

_TAIL_LINES = 20


def process_status(runner: Runner, *, note: str, measured: Measured, queued: int) -> ProcessStatus:
    """Status of one process. `note` is added to its drift (a server that the manifest no longer has).

    `queued`: requests that wait for its start.
    """
    spec, life, record = runner.spec, runner.life, runner.record
    pid = runner.pid
    failed = life.state in ("failed", "backoff")
    drift = [note] if note else []
    if pid is not None and record is not None:
        drift += argv_changes(record.argv, spec.unit.argv)
        running = procfs.cmdline(pid)
        if running and not argv_compatible(record.argv, running):
            drift.append(f"the process shows another argv: {' '.join(running)[:200]}")
    measured_bytes = _measured(pid, measured) if pid is not None else {}
    planned = planned_bytes(spec)
    starting_s = runner.starting_s
    return ProcessStatus(
        name=spec.name,
        kind=spec.unit.kind,
        state=life.shown,
        port=spec.unit.port,
        socket=socket_path(spec.unit.host),
        pid=pid,
        model=spec.unit.model,
        tier=spec.unit.tier,
        roles=spec.unit.roles,
        started_at=record.started_at if record is not None and pid is not None else None,
        ready_s=record.ready_s if record is not None else None,
        starting_s=starting_s,
        left_s=left_s(starting_s, spec.unit.load_s, planned, measured_bytes) if starting_s is not None else None,
        load_s=spec.unit.load_s,
        restarts=life.restarts,
        exit_code=runner.ending.code,
        error=life.error or life.failing or _why_not_served(runner),
        log_file=record.log_file or None if record is not None else None,
        log_tail=runner.ending.tail[-_TAIL_LINES:] if failed else (),
        planned_bytes=planned,
        measured_bytes=measured_bytes,
        pss_bytes=measured.pss_bytes,
        in_flight=runner.in_flight,
        slots=spec.unit.slots,
        queued=queued,
        drift="; ".join(drift),
        rung=runner.fallbacks.label,
    )


def left_s(
    starting_s: float, load_s: float | None, planned: Mapping[str, int], measured: Mapping[str, int]
) -> float | None:
    """Estimated seconds until a start that has taken `starting_s` is done; None: unknown.

    Extrapolated from the memory loaded so far, once a twentieth of the plan is there and all of its devices are
    measured; before that, what is left of `load_s`.
    """
    total = sum(planned.values())
    loaded = sum(min(size, measured.get(device, 0)) for device, size in planned.items())
    if planned.keys() <= measured.keys() and loaded * 20 >= total > 0:
        return starting_s * (total - loaded) / loaded
    return None if load_s is None else max(0.0, load_s - starting_s)


def _measured(pid: int, measured: Measured) -> dict[str, int]:
    """Bytes by device: resident RAM (for a container's client, the container's), and GPU memory."""
    ram = procfs.memory_bytes(pid) if measured.container_bytes is None else {"ram": measured.container_bytes}
    return ram | measured.gpu_bytes


def _why_not_served(runner: Runner) -> str | None:
    if runner.life.suspended:
        return "its process is stopped by a signal (SIGSTOP or a debugger)"
    if runner.life.held:
        return f"stopped by an operator: `launch reload {runner.name}`, or the next `launch up`, starts it"
    return None


def planned_bytes(spec: ProcessSpec) -> dict[str, int]:
    """Planned bytes by device, resident after start: committed plus file-backed."""
    planned: dict[str, int] = {}
    for need in spec.unit.memory:
        planned[need.device] = planned.get(need.device, 0) + need.committed_bytes + need.file_bytes
    return planned
