"""Installed deployments as systemd has them now, and differences between files, systemd and processes.

I/O: reads files, asks systemctl. Changes nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from launcher.errors import ConfigError, Finding, LaunchError
from launcher.install.layout import Layout, is_unit
from launcher.install.ownership import Record, installed_names, read_record
from launcher.install.steps import unit_of
from launcher.install.systemd import Systemd
from launcher.install.unit_text import exec_argv
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.manifest import decode_fleet, decode_routes

_NAMES = (
    "LoadState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts", "ExecMainStatus", "NeedDaemonReload",
    "FragmentPath", "DropInPaths", "ExecMainStartTimestampMonotonic", "OOMScoreAdjust", "MemoryMax", "ControlGroup",
)  # fmt: skip


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A unit as systemd has it. `pid` 0: no process. `argv` None: only systemd knows what it would run."""

    name: str
    load: str = "not-found"
    active: str = "inactive"
    sub: str = ""
    result: str = ""
    pid: int = 0
    restarts: int = 0
    exit_status: int = 0
    started_at: float | None = None
    """Unix time at which its main process was started."""
    needs_reload: bool = False
    drop_ins: tuple[str, ...] = ()
    argv: tuple[str, ...] | None = None
    oom_score_adjust: int | None = None
    memory_max: int | None = None
    """Bytes; None: no limit."""
    control_group: str = ""


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """A server, a service, or the runtime (named as the deployment): its unit, and with it those of its fallbacks."""

    name: str
    service: str
    units: tuple[str, ...]


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """One installed deployment. `manifest` and `routes` are None if the files are gone or cannot be read as ours."""

    record: Record
    layout: Layout
    manifest: FleetManifest | None
    routes: RoutingTable | None
    components: tuple[Component, ...]
    units: dict[str, Unit]

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.record.deployment

    @property
    def state_dir(self) -> Path:
        """State directory of its runtime."""
        runtime = next((c.service for c in self.components if c.name == self.name), f"launch-{self.name}.service")
        return self.layout.state(runtime, self.name)


def installed_fleets(layouts: Iterable[Layout], problems: list[Finding] | None = None) -> tuple[Installed, ...]:
    """Every deployment that is installed in one of `layouts`; damaged records are findings in `problems`.

    Raises OSError, SuperviseError (no systemctl), and without `problems` ConfigError for a damaged record.
    """
    found = []
    for layout in layouts:
        for name in installed_names(layout):
            try:
                record = read_record(name, layout)
            except ConfigError as error:
                if problems is None:
                    raise
                problems += error.findings
                continue
            if record is not None:
                found.append(installed_fleet(record, layout))
    return tuple(found)


def installed_fleet(record: Record, layout: Layout) -> Installed:
    """The installed deployment of `record`. Raises OSError, SuperviseError (no systemctl)."""
    manifest, routes = _documents(layout, record.deployment)
    paths = [layout.root / name[1:] for name in record.files]
    names = [unit_of(p) for p in paths if is_unit(p, layout) and "@." not in p.name]
    answers = Systemd(layout).properties(names, _NAMES)
    return Installed(
        record=record,
        layout=layout,
        manifest=manifest,
        routes=routes,
        components=_components(names, manifest, record.deployment),
        units={name: _unit(name, answers.get(name)) for name in names},
    )


def file_drift(installed: Installed) -> tuple[str, ...]:
    """Files that are not what was installed, in words: edited, gone, or not to be read."""
    drift = []
    for name in sorted(installed.record.files):
        path = installed.layout.root / name[1:]
        try:
            found = installed.layout.tree.read(path)
            if found is None:
                drift.append(f"{name} is gone")
            elif not installed.record.wrote(name, found.data):
                drift.append(f"{name} was edited after it was installed")
        except OSError as error:
            mine = "by this user" if isinstance(error, PermissionError) else f"({error.strerror})"
            drift.append(f"{name} cannot be read {mine}")
    return tuple(drift)


def loaded_drift(unit: Unit) -> tuple[str, ...]:
    """Differences between what systemd has in memory and the unit's file, in words; drop-ins too."""
    drift = []
    if unit.load != "loaded":
        drift.append(f"{unit.name} is {unit.load}")
    if unit.needs_reload:
        drift.append(f"{unit.name} changed on disk since it was loaded")
    return (*drift, *(f"drop-in {path}" for path in unit.drop_ins))


def limit_drift(unit: Unit) -> tuple[str, ...]:
    """Limits of the process that differ from its unit's, as far as /proc and the cgroup tell, in words."""
    if not unit.pid:
        return ()
    drift = []
    score = _number(Path(f"/proc/{unit.pid}/oom_score_adj"))
    if score is not None and unit.oom_score_adjust is not None and score != unit.oom_score_adjust:
        drift.append(f"OOM score adjustment: {score} → {unit.oom_score_adjust}")
    limit = _number(Path(f"/sys/fs/cgroup{unit.control_group}/memory.max"))
    if limit is not None and unit.control_group and limit != unit.memory_max:
        drift.append(f"memory limit: {limit} → {'none' if unit.memory_max is None else unit.memory_max}")
    return tuple(drift)


def _documents(layout: Layout, deployment: str) -> tuple[FleetManifest | None, RoutingTable | None]:
    folder = layout.data(deployment)
    try:
        fleet, routes = (layout.tree.read(folder / name) for name in ("fleet.json", "routes.json"))
        return (decode_fleet(fleet.data), decode_routes(routes.data)) if fleet and routes else (None, None)
    except (OSError, LaunchError):  # what is wrong with them, file_drift says
        return None, None


def _components(units: list[str], manifest: FleetManifest | None, deployment: str) -> tuple[Component, ...]:
    """Servers, services and the runtime, in the manifest's order; without a manifest all services, by unit name."""
    if manifest is None:
        services = [unit.removesuffix(".service") for unit in units if unit.endswith(".service")]
        return tuple(Component(name=s, service=f"{s}.service", units=(f"{s}.service",)) for s in services)
    names = [*(s.name for s in manifest.servers), *(s.name for s in manifest.services), deployment]
    prefix = _prefix(units, names)
    found = []
    for name in names:
        service = f"{prefix}-{name}.service"
        if service in units:
            lower = tuple(unit for unit in units if unit.startswith(f"{prefix}-{name}.rung"))
            found.append(Component(name=name, service=service, units=(service, *lower)))
    return tuple(found)


def _prefix(units: list[str], names: list[str]) -> str:
    """`deploy.unit_prefix`: the most frequent text before one of `names` in `units`; `launch` if there is none."""
    tails = [f"-{name}.service" for name in names]
    heads = [unit.removesuffix(tail) for unit in units for tail in tails if unit.endswith(tail)]
    return max(sorted(set(heads)), key=heads.count, default="launch")


def _unit(name: str, values: dict[str, str] | None) -> Unit:
    """A unit from what `systemctl show` prints; None: systemd does not know it."""
    if values is None:
        return Unit(name=name)
    drop_ins = tuple(values.get("DropInPaths", "").split())
    files = (values.get("FragmentPath", ""), *drop_ins)
    started_us = _digits(values.get("ExecMainStartTimestampMonotonic"))
    return Unit(
        name=name,
        load=values.get("LoadState", ""),
        active=values.get("ActiveState", ""),
        sub=values.get("SubState", ""),
        result=values.get("Result", ""),
        pid=_digits(values.get("MainPID")) or 0,
        restarts=_digits(values.get("NRestarts")) or 0,
        exit_status=_digits(values.get("ExecMainStatus")) or 0,
        started_at=time.time() - time.monotonic() + started_us / 1e6 if started_us else None,
        needs_reload=values.get("NeedDaemonReload") == "yes",
        drop_ins=drop_ins,
        argv=exec_argv(_texts(files), f"/run/credentials/{name}") if name.endswith(".service") else None,
        oom_score_adjust=_digits(values.get("OOMScoreAdjust")),
        memory_max=_digits(values.get("MemoryMax")),
        control_group=values.get("ControlGroup", ""),
    )


def _texts(files: Iterable[str]) -> list[str]:
    texts = []
    for name in files:
        try:
            texts.append(Path(name).read_text(errors="replace") if name else "")
        except OSError:
            texts.append("")
    return texts


def _digits(text: str | None) -> int | None:
    """`text` as a number; None for `infinity`, `[not set]` and the like."""
    return int(text) if text and re.fullmatch(r"-?\d{1,18}", text) else None


def _number(path: Path) -> int | None:
    try:
        return _digits(path.read_text().strip())
    except OSError:
        return None
