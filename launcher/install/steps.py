"""Install and uninstall, step by step; each step can be repeated after a crash."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.errors import Finding, HostError, SuperviseError, has_errors
from launcher.install.changes import Change, Changes
from launcher.install.layout import Layout, is_unit
from launcher.install.ownership import Record, digest, encode_record, read_record, record_path, shown
from launcher.install.systemd import Systemd

Write = Callable[[Path, bytes, int], None]
"""Replaces a file atomically: path, content, permission bits."""

CONTAINER = ".container"
_BOOT = re.compile(r"^WantedBy=", re.MULTILINE)
_ORDER = re.compile(r"^After=(.*)$", re.MULTILINE)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, as paths and units of the machine. `failed` units are not active."""

    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Units that nobody has made: services of containers where podman's Quadlet is not installed."""


def install(changes: Changes, layout: Layout, systemd: Systemd, write: Write, *, start: bool) -> Report:
    """Write, reload once, restart what changed, in load order, and start what should run.

    Programs and data are written before units. The record is written first, with both the old and the new digests
    valid, and last: a crash in between leaves files that are still known as ours. Raises HostError for findings that
    stand in the way, SuperviseError when a unit does not become active, OSError.
    """
    _refuse(changes)
    if changes.record is None:
        raise ValueError("these are changes of an uninstall")
    gone = [unit_of(c.path) for c in changes.changes if c.kind == "remove" and c.unit and _is_loaded(c.path)]
    if gone and systemd.running:
        systemd.stop(gone)
    systemd.disable([name for name in gone if name.endswith((".target", ".socket"))])
    _write_files(changes, layout, write)
    units = [Path(name).name for name in changes.record.files if is_unit(layout.root / name[1:], layout)]
    # of a Quadlet file podman makes the unit, so there is no text of ours to look at
    texts = {unit: (layout.units / unit).read_text() for unit in units if _is_loaded(layout.units / unit)}
    if any(c.unit for c in changes.changes):
        systemd.enable(_boots(texts))
    report = Report(
        written=tuple(shown(c.path, layout) for c in changes.changes if c.kind != "remove"),
        removed=tuple(shown(c.path, layout) for c in changes.changes if c.kind == "remove"),
        stopped=tuple(gone),
    )
    if not systemd.running:
        return report
    if any(c.unit for c in changes.changes):
        systemd.reload()
    return _run_units(changes, texts, systemd, report, layout.data(changes.deployment)) if start else report


def uninstall(changes: Changes, layout: Layout, systemd: Systemd) -> Report:
    """Stop, disable, remove, reload once. Raises HostError while edited files are in the way, OSError."""
    _refuse(changes)
    units = [unit_of(c.path) for c in changes.changes if c.unit and _is_loaded(c.path)]
    stateful = [c.path.name for c in changes.changes if c.unit and _keeps_state(c.path)]
    if systemd.running:
        order = sorted(units, key=lambda u: (not u.endswith((".socket", ".target")), u))
        systemd.stop(order)
        systemd.clean(stateful)
        systemd.stop_empty_slices(sorted({f"{u.rpartition('-')[0]}.slice" for u in units if u.endswith(".slice")}))
    systemd.disable([u for u in units if u.endswith((".target", ".socket"))])
    folders = {layout.data(changes.deployment), layout.libexec(changes.deployment)}
    for change in changes.changes:
        change.path.unlink(missing_ok=True)
    shutil.rmtree(layout.run(changes.deployment), ignore_errors=True)
    record_path(changes.deployment, layout).unlink(missing_ok=True)
    folders |= {layout.run(changes.deployment)}
    for folder in (*sorted(folders), *sorted({f.parent for f in folders}), layout.records, layout.records.parent):
        with contextlib.suppress(OSError):  # somebody else's files are in it, or it was never made
            folder.rmdir()
    if systemd.running and units:
        systemd.reload()
    stopped = tuple(units) if systemd.running else ()  # in an image nothing ran
    return Report(removed=tuple(shown(c.path, layout) for c in changes.changes), stopped=stopped)


def _refuse(changes: Changes) -> None:
    """Raise HostError when something is in the way."""
    if has_errors(changes.findings):
        raise HostError(changes.findings)


def _write_files(changes: Changes, layout: Layout, write: Write) -> None:
    """Write and remove files: programs and data first, then units; the ownership record before and after."""
    record = changes.record
    if record is None:
        return
    old = read_record(changes.deployment, layout)
    if changes.changes:
        known = {
            **(old.files if old else {}),
            **{shown(c.path, layout): digest(c.data) for c in changes.changes if c.data},
        }
        previous = old.files if old else {}
        _write_record(msgspec.structs.replace(record, files=known, previous=previous), layout, write)
    for change in sorted(changes.changes, key=lambda c: (c.unit, c.kind == "remove")):
        _apply(change, write)
    if changes.changes or old != record:
        _write_record(record, layout, write)


def _apply(change: Change, write: Write) -> None:
    """Write or remove one file."""
    if change.kind == "remove":
        change.path.unlink(missing_ok=True)
        return
    change.path.parent.mkdir(parents=True, exist_ok=True)
    write(change.path, change.data, change.mode)


def _write_record(record: Record, layout: Layout, write: Write) -> None:
    """Write the ownership record, when it differs."""
    path, data = record_path(record.deployment, layout), encode_record(record)
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, data, 0o644)


def _run_units(changes: Changes, texts: dict[str, str], systemd: Systemd, report: Report, data: Path) -> Report:
    """Restart services that changed and run, then start everything that boots; report what is not active.

    Where only the files in `data` changed, units that can reload (the front) do that.
    """
    boot = _boots(texts)
    altered = {unit_of(c.path) for c in changes.changes if c.unit and c.kind != "remove" and c.restarts}
    services = load_order({u: t for u, t in texts.items() if u.endswith((".service", ".socket"))})
    services += tuple(unit_of(c.path) for c in changes.changes if c.path.suffix == CONTAINER and c.kind != "remove")
    before = systemd.properties(services, ("ActiveState",))
    running = {u for u in services if before.get(u, {}).get("ActiveState") in ("active", "activating", "reloading")}
    again = [u for u in services if u in altered and u in running]
    systemd.forget_failures([u for u in services if before.get(u, {}).get("ActiveState") in ("failed", "activating")])
    systemd.restart(again)
    if any(not c.unit and c.path.parent == data for c in changes.changes):
        systemd.reload_units(
            [u for u in services if u in running and u not in again and "\nExecReload=" in texts.get(u, "")]
        )
    systemd.start(boot)
    wanted = sorted({u for target in boot for u in _wants(texts[target])} | set(again))
    after = systemd.properties(wanted, ("ActiveState", "LoadState"))
    absent = tuple(u for u in wanted if after.get(u, {}).get("LoadState") == "not-found" and u not in texts)
    failed = tuple(u for u in wanted if after.get(u, {}).get("ActiveState") != "active" and u not in absent)
    started = tuple(u for u in wanted if u not in running and u not in failed and u not in absent)
    report = msgspec.structs.replace(report, started=started, restarted=tuple(again), failed=failed, absent=absent)
    if failed:
        raise SuperviseError([not_active(unit, systemd) for unit in failed])
    return report


def _boots(texts: dict[str, str]) -> list[str]:
    """Units that start at boot."""
    return sorted(unit for unit, text in texts.items() if _BOOT.search(text))


def load_order(texts: dict[str, str]) -> tuple[str, ...]:
    """Units so that each comes behind those of them that its After= names; else by name."""
    placed: dict[str, None] = {}

    def place(unit: str, above: frozenset[str]) -> None:
        """`unit` behind what it waits for; a circle is cut where it closes."""
        for line in _ORDER.findall(texts[unit]):
            for earlier in line.split():
                if earlier in texts and earlier not in placed and earlier not in above:
                    place(earlier, above | {unit})
        placed[unit] = None

    for unit in sorted(texts):
        if unit not in placed:
            place(unit, frozenset({unit}))
    return tuple(placed)


def _wants(target: str) -> list[str]:
    """Units that a target's text wants."""
    return [unit for line in re.findall(r"^Wants=(.*)$", target, re.MULTILINE) for unit in line.split()]


def not_active(unit: str, systemd: Systemd) -> Finding:
    """The finding for a unit that did not become active, with the end of its log."""
    found = systemd.properties([unit], ("Result", "ActiveState")).get(unit, {})
    message = f"{unit} is {found.get('ActiveState', 'unknown')} ({found.get('Result', 'unknown')})"
    return Finding(code="install/not-active", severity="error", key="", message=message, notes=systemd.log(unit))


def unit_of(path: Path) -> str:
    """The unit that the file at `path` is, or that podman makes of it."""
    return f"{path.stem}.service" if path.suffix == CONTAINER else path.name


def _is_loaded(path: Path) -> bool:
    """Whether systemd has a unit of the name of the file at `path`: not for templates, which only instances have."""
    return path.exists() and "@." not in path.name


def _keeps_state(path: Path) -> bool:
    """Whether systemd keeps a directory for the unit at `path`."""
    text = path.read_text(errors="replace")
    return "CacheDirectory=" in text or "StateDirectory=" in text
