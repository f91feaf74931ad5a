"""Installed fleets, which systemd runs: what `status`, `stop`, `reload` and `logs` say and do about them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import SuperviseError
from launcher.install import (
    Component,
    Installed,
    Layout,
    Systemd,
    Unit,
    file_drift,
    installed_fleet,
    installed_fleets,
    installed_names,
    limit_drift,
    loaded_drift,
    read_record,
)
from launcher.ir.live import FleetStatus, ProcessStatus, ServerState
from launcher.manifest import argv_changes
from launcher.supervise import port_owner
from launcher.supervise.identity import argv_agrees
from launcher.supervise.procfs import cmdline, memory_bytes
from launcher.supervise.spec import ProcessSpec, process_specs
from launcher.supervise.status import planned_bytes

if TYPE_CHECKING:
    from launcher.cli.terminal import Terminal

FRONT = "front"
_TAIL_LINES = 20
_STATES: dict[str, ServerState] = {
    "active": "ready",
    "reloading": "ready",
    "activating": "starting",
    "deactivating": "stopping",
    "failed": "failed",
}


def installed_here() -> tuple[Installed, ...]:
    """What is installed on this machine, and for this user; nothing where no systemd runs it, or it may not be read."""
    layouts = (Layout(), Layout(scope="user", home=Path.home()))
    try:
        return installed_fleets(layout for layout in layouts if installed_names(layout))
    except (SuperviseError, OSError):
        return ()


def fleet_status(installed: Installed) -> FleetStatus:
    """The fleet as `launch status` shows every fleet."""
    specs = process_specs(installed.manifest) if installed.manifest else {}
    processes = tuple(_process(c, installed, specs.get(c.name)) for c in installed.components)
    boot = {p.name for p in processes if p.name not in specs or _boots(specs[p.name])}
    front = installed.routes.front if installed.routes else None
    runs = any(p.name == FRONT and p.state == "ready" for p in processes)
    return FleetStatus(
        deployment=installed.name,
        input_digest=installed.record.input_digest,
        runtime_pid=None,
        front=f"http://{front.host}:{front.port}" if front and runs else None,
        ready=all(p.state == "ready" for p in processes if p.name in boot),
        processes=processes,
        manager="systemd --user" if installed.layout.scope == "user" else "systemd",
        drift=_drift_of_the_rest(installed),
    )


def stop_installed(installed: Installed, names: Iterable[str] = ()) -> list[str]:
    """Stop components `names` (None given: all, and their targets); those that ran. SuperviseError when some still do.

    A WARM server's socket is closed with it: the next request would start it again.
    """
    from launcher.cli.deploy import require_rights

    require_rights(installed.layout, "stopped")
    wanted = set(names)
    chosen = [c for c in installed.components if not wanted or c.name in wanted]
    running = [c.name for c in chosen if installed.units[c.service].active in ("active", "activating", "reloading")]
    units = [unit for component in chosen for unit in component.units]
    if not wanted:
        units += [u for u in installed.units if u not in units and not u.endswith(".slice")]
    if Systemd(installed.layout).stop(units):
        raise SuperviseError([_not_stopped(installed, units)])
    return running


def follow_journal(installed: Installed, name: str, *, follow: bool, lines: int) -> int:
    """Print what the units of component `name` wrote; with `follow` until Ctrl-C."""
    units = next(c.units for c in installed.components if c.name == name)
    argv = [*Systemd(installed.layout).journal(units, lines), "--output=short-iso", "--quiet"]
    status = subprocess.run([*argv, "--follow"] if follow else argv, check=False).returncode
    return status if status >= 0 else 128 - status


def drifted(installed: Installed) -> list[str]:
    """Services of servers whose process was started with another command line than their unit has now."""
    servers = {s.name for s in installed.manifest.servers} if installed.manifest else set()
    named = [c.service for c in installed.components if c.name in servers]
    return [service for service in named if _argv_drift(installed.units[service])]


def names_of(installed: Installed) -> list[str]:
    """Names of the components."""
    return [c.name for c in installed.components]


def again(installed: Installed) -> Installed:
    """The same deployment as it is now."""
    record = read_record(installed.name, installed.layout) or installed.record
    return installed_fleet(record, installed.layout)


def show_drift(out: Terminal, status: FleetStatus) -> None:
    """What has drifted beyond single processes."""
    for line in status.drift:
        out.line(f"  {out.style('drift', 'yellow')}: {line}")


def components_of(installed: Installed, units: Sequence[str]) -> list[str]:
    """Names of the components that have one of `units`."""
    return [c.name for c in installed.components if not {*c.units}.isdisjoint(units)]


def _process(component: Component, installed: Installed, spec: ProcessSpec | None) -> ProcessStatus:
    """One component. Of a WARM server whose port is closed, the socket's state is its state."""
    unit = installed.units[component.service]
    state = _state(unit)
    sockets = [installed.units[u] for u in component.units if u.endswith(".socket")]
    if state == "stopped" and any(s.active == "failed" for s in sockets):
        state = "failed"
    broken = state in ("failed", "backoff")
    front = installed.routes.front.port if installed.routes and component.name == FRONT else 0
    port = spec.port if spec else front
    known: dict[str, Any] = (
        {}
        if spec is None
        else {"model": spec.model, "tier": spec.tier, "roles": spec.roles, "slots": spec.slots}
        | {"planned_bytes": planned_bytes(spec)}
    )
    return ProcessStatus(
        name=component.name,
        kind=spec.kind if spec else "service",
        state=state,
        port=port,
        pid=unit.pid or None,
        started_at=unit.started_at if unit.pid else None,
        restarts=unit.restarts,
        exit_code=unit.exit_status if broken else None,
        error=_error(unit, sockets, port) if broken else None,
        log_tail=Systemd(installed.layout).log(component.service, _TAIL_LINES) if broken else (),
        measured_bytes=memory_bytes(unit.pid) if unit.pid else {},
        in_flight=None,
        drift="; ".join(_drift(component, installed, spec)),
        **known,
    )


def _state(unit: Unit) -> ServerState:
    """The unit's state in the runtime's words."""
    if unit.sub == "auto-restart":
        return "backoff"
    return _STATES.get(unit.active, "stopped")


def _error(unit: Unit, sockets: Sequence[Unit], port: int) -> str:
    """Why `unit`, or its socket, is down, and who else holds its port."""
    closed = [f"its port is closed: {s.name} failed ({s.result})" for s in sockets if s.active == "failed"]
    reason = f"{unit.name}: {unit.result}" + (f", exit status {unit.exit_status}" if unit.exit_status else "")
    owner = port_owner(port) if port and not sockets else None
    stolen = [f"port {port} is held by {owner}"] if owner is not None and owner.pid != unit.pid else []
    return "; ".join([reason, *closed, *stolen])


def _drift(component: Component, installed: Installed, spec: ProcessSpec | None) -> list[str]:
    """Loaded against files, then running against loaded."""
    unit = installed.units[component.service]
    loaded = [f"loaded: {line}" for name in component.units for line in loaded_drift(installed.units[name])]
    argv = _argv_drift(unit) if spec is not None and spec.kind == "server" else []
    return loaded + [f"running: {line}" for line in (*argv, *limit_drift(unit))]


def _argv_drift(unit: Unit) -> list[str]:
    """Where the argv of a server differs from what its unit's files say. Services may be scripts, which differ."""
    running = cmdline(unit.pid) if unit.pid else ()
    # before it is active, it may still be systemd's own child or our wrapper
    if not running or not unit.argv or unit.active != "active" or argv_agrees(unit.argv, running):
        return []
    return argv_changes(running, unit.argv)


def _drift_of_the_rest(installed: Installed) -> tuple[str, ...]:
    """Files, and units that belong to no component."""
    named = {unit for c in installed.components for unit in c.units}
    files = [f"installed: {line}" for line in file_drift(installed)]
    others = [unit for name, unit in installed.units.items() if name not in named]
    return (*files, *(f"loaded: {line}" for unit in others for line in loaded_drift(unit)))


def _boots(spec: ProcessSpec) -> bool:
    """Whether it runs from boot: of an exclusive group the default."""
    return spec.start == "boot" and (spec.exclusive is None or spec.default)


def _not_stopped(installed: Installed, units: Sequence[str]) -> Any:
    """The finding for units that still run."""
    from launcher.errors import Finding

    now = again(installed).units
    left = [u for u in units if u in now and now[u].active not in ("inactive", "failed")]
    message = f"systemd did not stop {', '.join(left) or 'everything'}"
    return Finding(code="install/systemctl", severity="error", key="", message=message)
