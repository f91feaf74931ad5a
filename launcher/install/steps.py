"""Install and uninstall, in steps that can each be repeated after a crash. I/O."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from launcher.errors import Finding, HostError, SuperviseError, fault, has_errors
from launcher.install.changes import Changes
from launcher.install.layout import Layout, is_unit
from launcher.install.ownership import Record, encode_record, machine_path, read_record, record_path
from launcher.install.systemd import Systemd
from launcher.ir.deployment import content_digest

Write = Callable[[Path, bytes, int], None]
"""Replaces a file atomically, and creates its directory: path, content, permission bits (`Tree.write`)."""

TakeOver = Callable[[Sequence[str]], tuple[Sequence[str], Sequence[str]]]
"""Has the running runtime read its manifest again, and restart what changed and the running ones of the given units.
Returns the units that were restarted, and those that were started."""

CONTAINER = ".container"
_BOOT = re.compile(r"^WantedBy=", re.MULTILINE)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, as paths and units of the machine. `failed` units are not active."""

    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Units that do not exist: services of containers if podman's Quadlet is not installed."""


def install(changes: Changes, layout: Layout, systemd: Systemd, write: Write, *, take_over: TakeOver | None) -> Report:
    """Write the files, reload systemd once, start and restart what should run; without `take_over` nothing is started.

    Programs and data are written before units. The record is written first, with both the old and the new digests
    valid, and last: after a crash in between the files are still known as ours. Raises HostError for findings that
    stand in the way, SuperviseError when a unit does not become active, OSError.
    """
    _refuse(changes)
    if changes.record is None:
        raise ValueError("these are changes of an uninstall")
    text_of = layout.tree.text
    gone = [
        unit_of(c.path) for c in changes.changes if c.kind == "remove" and c.unit and _is_unit_on_disk(c.path, layout)
    ]
    if gone and systemd.running:
        systemd.stop(gone)
    systemd.disable([unit for unit in gone if _starts_at_boot(layout.units / unit, layout)])
    _write_files(changes, layout, write)
    units = [Path(name).name for name in changes.record.files if is_unit(layout.root / name[1:], layout)]
    # of a Quadlet file podman makes the unit, so there is no text of ours to look at
    texts = {unit: text_of(layout.units / unit) for unit in units if _is_unit_on_disk(layout.units / unit, layout)}
    if any(c.unit for c in changes.changes):
        systemd.enable(_boot_units(texts))
    report = Report(
        written=tuple(machine_path(c.path, layout) for c in changes.changes if c.kind != "remove"),
        removed=tuple(machine_path(c.path, layout) for c in changes.changes if c.kind == "remove"),
        stopped=tuple(gone) if systemd.running else (),  # in an image nothing ran
    )
    if not systemd.running:
        return report
    for change in changes.changes:
        if change.path.parent == layout.sysusers and change.kind != "remove":
            systemd.make_users(change.path)
    if any(c.unit for c in changes.changes):
        systemd.reload()
    return _run_units(changes, texts, systemd, report, take_over) if take_over is not None else report


def uninstall(changes: Changes, layout: Layout, systemd: Systemd) -> Report:
    """Stop, disable and remove, then reload once. Raises HostError if edited files are in the way, OSError."""
    _refuse(changes)
    units = [unit_of(c.path) for c in changes.changes if c.unit and _is_unit_on_disk(c.path, layout)]
    stateful = [c.path.name for c in changes.changes if c.unit and _keeps_state(c.path, layout)]
    boots = [c.path.name for c in changes.changes if c.unit and _starts_at_boot(c.path, layout)]
    if systemd.running:
        # the runtime first: it would start again what ends
        systemd.stop([unit for unit in boots if unit.endswith(".service")])
        systemd.stop(sorted(units))
        systemd.clean(stateful)
        systemd.stop_empty_slices(sorted({f"{u.rpartition('-')[0]}.slice" for u in units if u.endswith(".slice")}))
    systemd.disable(boots)
    record = read_record(changes.deployment, layout)
    made = [layout.root / name[1:] for name in (record.folders if record else ())]
    folders = [*reversed(made), layout.data(changes.deployment), layout.data(changes.deployment).parent]
    for change in changes.changes:
        if change.path.parent == layout.sysusers and systemd.running:
            systemd.remove_users(change.path)
        layout.tree.remove(change.path)
    if layout.scope == "user":  # of the machine's units it was the manager's, and is cleaned
        for unit in boots:
            layout.tree.remove_directory(layout.state(unit, changes.deployment), content=True)
            folders += [state := layout.state(unit, changes.deployment), state.parent]
    layout.tree.remove(record_path(changes.deployment, layout))
    kept = layout.checkpoints(changes.deployment)
    layout.tree.remove_directory(kept, content=True)
    for folder in (*folders, kept.parent, layout.records, layout.records.parent):
        layout.tree.remove_directory(folder)  # unless somebody else's files are in it
    if systemd.running and units:
        systemd.reload()
    stopped = tuple(units) if systemd.running else ()  # in an image nothing ran
    return Report(removed=tuple(machine_path(c.path, layout) for c in changes.changes), stopped=stopped)


def _refuse(changes: Changes) -> None:
    if has_errors(changes.findings):
        raise HostError(changes.findings)


def _write_files(changes: Changes, layout: Layout, write: Write) -> None:
    """Write and remove files: programs and data first, then units; the ownership record before and after."""
    record = changes.record
    if record is None:
        return
    old = read_record(changes.deployment, layout)
    if changes.changes:
        previous = old.files if old else {}
        known = previous | {machine_path(c.path, layout): content_digest(c.data) for c in changes.changes if c.data}
        _write_record(msgspec.structs.replace(record, files=known, previous=previous), layout, write)
    for change in sorted(changes.changes, key=lambda c: (c.unit, c.kind == "remove")):
        if change.kind == "remove":
            layout.tree.remove(change.path)
        else:
            write(change.path, change.data, change.mode)
    for name in reversed(old.folders if old else ()):
        if name not in record.folders:
            layout.tree.remove_directory(layout.root / name[1:])
    if changes.changes or old != record:
        _write_record(record, layout, write)


def _write_record(record: Record, layout: Layout, write: Write) -> None:
    path, data = record_path(record.deployment, layout), encode_record(record)
    found = layout.tree.read(path)
    if found is None or found.data != data:
        write(path, data, 0o644)


def _run_units(
    changes: Changes, texts: dict[str, str], systemd: Systemd, report: Report, take_over: TakeOver
) -> Report:
    """Have the runtime take over what changed, or start it and what boots; report what is not active.

    A runtime whose own unit changed is restarted, which does not disturb its servers. Raises SuperviseError if a
    runtime, or a unit that was restarted, is not active.
    """
    boot = _boot_units(texts)
    runtimes = [unit for unit in boot if unit.endswith(".service")]
    services = [u for u in texts if u.endswith(".service")]
    services += [unit_of(c.path) for c in changes.changes if c.path.suffix == CONTAINER and c.kind != "remove"]
    altered = {unit_of(c.path) for c in changes.changes if c.unit and c.kind != "remove" and c.restarts}
    before = systemd.properties([*services, *boot], ("ActiveState",))
    running = {u for u in services if before.get(u, {}).get("ActiveState") in ("active", "activating", "reloading")}
    again = [u for u in runtimes if u in altered and u in running]
    systemd.forget_failures([u for u in services if before.get(u, {}).get("ActiveState") in ("failed", "activating")])
    systemd.restart(again)
    # a target that is up would start again what somebody stopped
    systemd.start([u for u in boot if before.get(u, {}).get("ActiveState") != "active" or u in again])
    targets = [unit for unit in boot if unit.endswith(".target")]
    wants = re.findall(r"^Wants=(.*)$", "\n".join(texts[target] for target in targets), re.MULTILINE)
    wanted = {*runtimes, *(unit for line in wants for unit in line.split())}
    restarted: Sequence[str] = ()
    alive = systemd.properties(runtimes, ("ActiveState",))
    if running and any(p.get("ActiveState") == "active" for p in alive.values()):
        restarted, started = take_over([u for u in services if u in altered and u in running and u not in again])
        wanted = {*runtimes, *restarted, *started}  # somebody may have stopped others
    after = systemd.properties(sorted(wanted), ("ActiveState", "LoadState"))
    absent = tuple(u for u in sorted(wanted) if after.get(u, {}).get("LoadState") == "not-found" and u not in texts)
    failed = tuple(u for u in sorted(wanted) if after.get(u, {}).get("ActiveState") != "active" and u not in absent)
    new = tuple(u for u in sorted(wanted) if u not in running and u not in failed and u not in absent)
    report = msgspec.structs.replace(report, started=new, restarted=(*again, *restarted), failed=failed, absent=absent)
    # a runtime that is up has judged the others: what may fail alone is no reason to fail here
    fatal = [unit for unit in failed if unit in (*runtimes, *restarted)]
    if fatal:
        raise SuperviseError([not_active(unit, systemd) for unit in fatal])
    return report


def _boot_units(texts: dict[str, str]) -> list[str]:
    return sorted(unit for unit, text in texts.items() if _BOOT.search(text))


def not_active(unit: str, systemd: Systemd) -> Finding:
    """The finding for a unit that did not become active, with the end of its log."""
    found = systemd.properties([unit], ("Result", "ActiveState")).get(unit, {})
    message = f"{unit} is {found.get('ActiveState', 'unknown')} ({found.get('Result', 'unknown')})"
    return fault("install/not-active", "", message, *systemd.log(unit))


def unit_of(path: Path) -> str:
    """Name of the unit that the file at `path` is, or that podman makes of it."""
    return f"{path.stem}.service" if path.suffix == CONTAINER else path.name


def _is_unit_on_disk(path: Path, layout: Layout) -> bool:
    """Whether the file at `path` exists and is a unit itself: not a template, of which only instances are units."""
    return "@." not in path.name and layout.tree.read(path) is not None


def _starts_at_boot(path: Path, layout: Layout) -> bool:
    """Whether the unit at `path` is started at boot; False for a Quadlet file, of which podman makes the unit."""
    return path.suffix != CONTAINER and bool(_BOOT.search(layout.tree.text(path)))


def _keeps_state(path: Path, layout: Layout) -> bool:
    text = layout.tree.text(path)
    return "CacheDirectory=" in text or "StateDirectory=" in text


LOCK_NAME = "launch-install.lock"


@contextlib.contextmanager
def install_lock(layout: Layout, report: Callable[[str], None], *, runtime_dir: Path | None = None) -> Iterator[None]:
    """Hold the lock of `layout`'s machine or user within the block; says with `report` that it waits for another one.

    The lock is a file below /run that only its owner opens, removed after the block; the kernel drops the lock with the
    process. A tree that does not run is not locked. Raises OSError.
    """
    usual = Path("/run") if layout.scope == "system" else Path(f"/run/user/{os.getuid()}")
    folder = runtime_dir or usual
    if layout.root != Path("/") or not folder.is_dir():
        yield
        return
    path = folder / LOCK_NAME
    descriptor = _locked(path, report)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, report: Callable[[str], None]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another install, uninstall or reload is under way: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116 - beside fstat
                return descriptor
        os.close(descriptor)  # who had it took it away
