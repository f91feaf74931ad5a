"""Plan an install: compare the files of a deployment with the disk and the ownership record. I/O: reads files."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal

import msgspec

from launcher.base.tree import FoundFile
from launcher.errors import Finding, fault
from launcher.install.layout import Layout, foreign_names, is_unit, placements
from launcher.install.ownership import Record, Source, installed_names, machine_path, read_record, record_path
from launcher.ir.deployment import Deployment, content_digest, unified

Kind = Literal["add", "change", "remove"]
SIGNS: dict[Kind, str] = {"add": "+", "change": "~", "remove": "-"}
PROCESSES = (".service", ".container")
"""Suffixes of units with a process: targets and slices have none."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One file to be written or removed. `restarts`: it changes how a service's process is started."""

    path: Path
    kind: Kind
    data: bytes = b""
    mode: int = 0o644
    unit: bool = False
    restarts: bool = False
    diff: tuple[str, ...] = ()


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """All changes, in the order of the deployment's files, and findings for what stands in the way."""

    deployment: str
    changes: tuple[Change, ...]
    record: Record | None
    """The ownership record after the install; None if nothing stays."""
    findings: tuple[Finding, ...]


def plan_changes(
    deployment: Deployment, layout: Layout, *, source: Source | None = None, force: bool = False
) -> Changes:
    """The changes that installing `deployment` from `source` would make; none if it is installed already.

    Findings: `install/foreign-file` (a file exists that we did not write), `install/hand-edited` (we wrote it, and
    somebody changed it; with `force` it is overwritten, and this is a warning), `install/foreign-name` (a path or unit
    that this deployment may not have). Raises OSError, ConfigError.
    """
    before = read_record(deployment.name, layout) or Record(deployment=deployment.name, input_digest="")
    others = (read_record(name, layout) for name in installed_names(layout) if name != deployment.name)
    owners = {path: other.deployment for other in others if other is not None for path in other.files}
    changes: list[Change] = []
    findings: list[Finding] = []
    files: dict[str, str] = {}
    placed = placements(deployment, layout)
    findings += foreign_names(deployment, [Path(machine_path(path, layout)) for path in placed], layout)
    for path, file in placed.items():
        name, data, mode = machine_path(path, layout), file.text.encode(), 0o755 if file.executable else 0o644
        files[name] = content_digest(data)
        found = _read(path, layout)
        old = None if found is None else found.data
        if found == FoundFile(data, mode) and before.files.get(name) == files[name]:
            continue
        if old is not None and old != data:
            findings += _conflicts(name, old, before, owners.get(name), force=force)
        changes.append(
            Change(
                path=path,
                kind="add" if old is None else "change",
                data=data,
                mode=mode,
                unit=is_unit(path, layout),
                restarts=path.suffix in PROCESSES and (old is None or process_lines(old) != process_lines(data)),
                diff=unified(name, name, old, data),
            )
        )
    removed, kept = _removals(before, set(before.files) - set(files), layout, force=force)
    own = record_path(deployment.name, layout)
    made = {machine_path(f, layout) for path in (own, *(c.path for c in changes)) for f in layout.tree.missing(path)}
    record = Record(
        deployment=deployment.name,
        input_digest=deployment.input_digest,
        files=files,
        folders=_outermost_first({*before.folders, *made}, (*files, machine_path(own, layout))),
        source=source or before.source,
    )
    return Changes(deployment=deployment.name, changes=(*changes, *removed), record=record, findings=(*findings, *kept))


def plan_removal(record: Record, layout: Layout, *, force: bool = False) -> Changes:
    """The changes that uninstalling would make. Without `force` edited files are in the way (`install/hand-edited`)."""
    removed, kept = _removals(record, set(record.files), layout, force=force)
    return Changes(deployment=record.deployment, changes=tuple(removed), record=None, findings=tuple(kept))


def _outermost_first(folders: AbstractSet[str], files: Iterable[str]) -> tuple[str, ...]:
    above = {str(parent) for name in files for parent in Path(name).parents}
    return tuple(sorted(folders & above, key=lambda name: (name.count("/"), name)))


def process_lines(raw: bytes) -> bytes:
    """The lines of a unit that concern its process: no comments, no blank lines, nothing that a daemon-reload applies.

    The latter are [Unit] and [Install]: descriptions, the order of a start, its limits.
    """
    lines, section = [], b""
    for line in raw.splitlines():
        text = line.strip()
        section = text if text.startswith(b"[") else section
        if text and not text.startswith((b"#", b";")) and section not in (b"[Unit]", b"[Install]"):
            lines.append(line)
    return b"\n".join(lines)


def _conflicts(name: str, old: bytes, before: Record, owner: str | None, *, force: bool) -> list[Finding]:
    """Findings against replacing the content `old` of `name`; `owner`: the other deployment that wrote it."""
    if name in before.files:
        return [] if before.wrote(name, old) else [_hand_edited(name, force=force)]
    message = f"{name} exists and was written by {f'deployment {owner}' if owner else 'somebody else'}"
    note = "another deploy.unit_prefix gives this deployment names of its own"
    return [fault("install/foreign-file", "deploy.unit_prefix", message, note)]


def _removals(
    record: Record, names: AbstractSet[str], layout: Layout, *, force: bool
) -> tuple[list[Change], list[Finding]]:
    """Changes that remove the files `names` of a record, and a finding for each that somebody edited."""
    changes: list[Change] = []
    findings: list[Finding] = []
    for name in sorted(names):
        path = layout.root / Path(name).relative_to("/")
        found = _read(path, layout)
        if found is None:
            continue
        edited = not record.wrote(name, found.data)
        if edited:
            findings.append(_hand_edited(name, force=force))
        if force or not edited:
            diff = unified(name, name, found.data, None)
            changes.append(Change(path=path, kind="remove", unit=is_unit(path, layout), restarts=True, diff=diff))
    return changes, findings


def _hand_edited(name: str, *, force: bool) -> Finding:
    message = f"{name} was edited after it was installed" + (": the edit is lost" if force else "")
    note = f"put your own settings into {name}.d/*.conf, which launch never touches; --force drops the edit"
    return fault("install/hand-edited", "", message, note, severity="warning" if force else "error")


def _read(path: Path, layout: Layout) -> FoundFile | None:
    """The file at `path`; None if there is none, or we may not read it (polkit's rules, in a dry run).

    A link is not followed: its content is its target's name.
    """
    try:
        return layout.tree.read(path)
    except PermissionError:
        return None
