"""Installed fleets, which systemd runs: what `status`, `stop`, `reload` and `logs` show and do for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher import install
from launcher.base.addresses import port_or_path, socket_path
from launcher.base.procfs import cmdline, memory_bytes
from launcher.errors import Finding, HostError, SuperviseError
from launcher.ir.live import FleetStatus, ProcessStatus, ServerState
from launcher.manifest import argv_changes
from launcher.supervise import port_owner
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.identity import argv_agrees
from launcher.supervise.spec import ProcessSpec, process_specs
from launcher.supervise.status import planned_bytes

_TAIL_LINES = 20
_ALIVE = ("active", "activating", "reloading")
_STATES: dict[str, ServerState] = {
    "active": "ready",
    "reloading": "ready",
    "activating": "starting",
    "deactivating": "stopping",
    "failed": "failed",
}


def installed_here(problems: list[Finding] | None = None) -> tuple[install.Installed, ...]:
    """Deployments installed on this machine and for this user; () without systemd, or if we may not look.

    A damaged record is a finding in `problems`, and hides no other deployment.
    """
    layouts = (install.Layout(), install.Layout(scope="user", home=Path.home()))
    try:
        return install.installed_fleets((layout for layout in layouts if install.installed_names(layout)), problems)
    except (SuperviseError, OSError):
        return ()


@contextlib.contextmanager
def runtime_of(installed: install.Installed) -> Iterator[ControlClient | None]:
    """A client of an installed fleet's runtime; None if none answers, or this user may not ask it."""
    client: ControlClient | None = None
    with contextlib.suppress(NoRuntimeError, OSError):
        client = ControlClient(installed.state_dir)
    with client or contextlib.nullcontext():
        yield client


def fleet_status(installed: install.Installed) -> FleetStatus:
    """The status of an installed fleet: as its runtime reports it, else as systemd does."""
    drift = _other_drift(installed)
    with runtime_of(installed) as runtime:
        if runtime is not None:
            with contextlib.suppress(NoRuntimeError):
                status = runtime.status()
                drifts = {c.name: _drift(c, installed) for c in installed.components}
                processes = tuple(
                    msgspec.structs.replace(p, drift="; ".join(filter(None, (p.drift, *drifts.get(p.name, ())))))
                    for p in status.processes
                )
                return msgspec.structs.replace(status, processes=processes, drift=drift)
    specs = process_specs(installed.manifest) if installed.manifest else {}
    components = [c for c in installed.components if c.name != installed.name]
    return FleetStatus(
        deployment=installed.name,
        input_digest=installed.record.input_digest,
        runtime_pid=None,
        front=None,
        ready=False,
        processes=(
            *(_process(c, installed, specs.get(c.name)) for c in components),
            *(
                ProcessStatus(name=s.name, kind="service", state="stopped", port=s.unit.port)
                for s in specs.values()
                if s.unit.builtin
            ),
        ),
        manager="systemd --user" if installed.layout.scope == "user" else "systemd",
        drift=drift,
    )


def require_rights(layout: install.Layout, verb: str) -> None:
    """Raise HostError if units of the machine are to be `verb` (installed, stopped) by a user other than root."""
    if layout.scope == "system" and layout.root == Path("/") and os.geteuid() != 0:
        note = "sudo launch …; units of your own need no root: launch install --user …"
        raise HostError.of("install/not-root", f"units of the machine are {verb} by root", note)


def stop_installed(installed: install.Installed, names: Iterable[str] = ()) -> list[str]:
    """Stop components `names` (none: all, and the runtime). Returns those that ran.

    Raises SuperviseError if some still run.
    """
    require_rights(installed.layout, "stopped")
    wanted = set(names)
    chosen = [c for c in installed.components if not wanted or c.name in wanted]
    running = [c.name for c in chosen if any(installed.units[u].active in _ALIVE for u in c.units)]
    with runtime_of(installed) as runtime:
        if runtime is not None:
            with contextlib.suppress(NoRuntimeError):
                runtime.stop(tuple(wanted))
                if wanted:
                    return running
    # what no runtime keeps, and with everything the targets
    units = [unit for component in reversed(chosen) for unit in component.units]
    if not wanted:
        units += [u for u in installed.units if u not in units and not u.endswith(".slice")]
    if install.Systemd(installed.layout).stop(units):
        now = reread(installed).units
        left = [u for u in units if u in now and now[u].active not in ("inactive", "failed")]
        message = f"systemd did not stop {', '.join(left) or 'everything'}"
        raise SuperviseError.of("install/systemctl", message)
    return running


def journal_of(installed: install.Installed, names: Iterable[str], *, follow: bool, lines: int) -> list[str]:
    """The command that prints the journal of components `names`, in order of time."""
    wanted = set(names)
    units = [unit for component in installed.components if component.name in wanted for unit in component.units]
    return [*install.Systemd(installed.layout).journal(units, lines), "--quiet", *["--follow"] * follow]


def names_of(installed: install.Installed) -> list[str]:
    """Names that can be stopped and reloaded: servers and services, the runtime's own front among them."""
    fronts = [s.name for s in installed.manifest.services if s.builtin] if installed.manifest else []
    return [c.name for c in installed.components if c.name != installed.name] + fronts


def reread(installed: install.Installed) -> install.Installed:
    """Read the deployment again, as it is now."""
    record = install.read_record(installed.name, installed.layout) or installed.record
    return install.installed_fleet(record, installed.layout)


def components_of(installed: install.Installed, units: Sequence[str]) -> list[str]:
    """Names of the components that have one of `units`."""
    return [c.name for c in installed.components if not {*c.units}.isdisjoint(units)]


def _process(component: install.Component, installed: install.Installed, spec: ProcessSpec | None) -> ProcessStatus:
    alive = (u for u in component.units if installed.units[u].active in _ALIVE)
    unit = installed.units[next(alive, component.service)]
    state = "backoff" if unit.sub == "auto-restart" else _STATES.get(unit.active, "stopped")
    broken = state in ("failed", "backoff")
    host, port = (spec.unit.host, spec.unit.port) if spec else ("", 0)
    known: dict[str, Any] = {}
    if spec is not None:
        known = {name: getattr(spec.unit, name) for name in ("model", "tier", "roles", "slots")}
        known["planned_bytes"] = planned_bytes(spec)
    without = "runs without a runtime" if unit.pid else None
    return ProcessStatus(
        name=component.name,
        kind=spec.unit.kind if spec else "service",
        state=state,
        port=port,
        socket=socket_path(host),
        pid=unit.pid or None,
        started_at=unit.started_at if unit.pid else None,
        restarts=unit.restarts,
        exit_code=unit.exit_status if broken else None,
        error=_error(unit, host, port) if broken else without,
        log_tail=install.Systemd(installed.layout).log(component.service, _TAIL_LINES) if broken else (),
        measured_bytes=memory_bytes(unit.pid) if unit.pid else {},
        in_flight=None,
        drift="; ".join(_drift(component, installed)),
        **known,
    )


def _error(unit: install.Unit, host: str, port: int) -> str:
    reason = f"{unit.name}: {unit.result}" + (f", exit status {unit.exit_status}" if unit.exit_status else "")
    owner = port_owner(port, socket_path(host)) if port or socket_path(host) else None
    stolen = [f"{port_or_path(host, port)} is held by {owner}"] if owner is not None and owner.pid != unit.pid else []
    return "; ".join([reason, *stolen])


def _drift(component: install.Component, installed: install.Installed) -> list[str]:
    """Differences of a component: loaded units from their files, then running processes from loaded units."""
    loaded = [f"loaded: {line}" for name in component.units for line in install.loaded_drift(installed.units[name])]
    servers = {s.name for s in installed.manifest.servers} if installed.manifest else set()
    units = [installed.units[name] for name in component.units]
    argv = [line for unit in units for line in _argv_drift(unit)] if component.name in servers else []
    return loaded + [
        f"running: {line}" for line in (*argv, *(line for unit in units for line in install.limit_drift(unit)))
    ]


def _argv_drift(unit: install.Unit) -> list[str]:
    """Where a server's argv differs from its unit's files. Not for services, which may be scripts."""
    running = cmdline(unit.pid) if unit.pid else ()
    # before it is active, it may still be systemd's own child or our wrapper
    if not running or not unit.argv or unit.active != "active" or argv_agrees(unit.argv, running):
        return []
    return argv_changes(running, unit.argv)


def _other_drift(installed: install.Installed) -> tuple[str, ...]:
    named = {unit for c in installed.components for unit in c.units}
    files = [f"installed: {line}" for line in install.file_drift(installed)]
    others = [unit for name, unit in installed.units.items() if name not in named]
    return (*files, *(f"loaded: {line}" for unit in others for line in install.loaded_drift(unit)))
