"""`launch checkpoint restore`: run the compiled fleet of a checkpoint again, and verify it; nothing is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.checkpoint import digested, require_files
from launcher.cli.checkpointed import CheckpointSource
from launcher.cli.fleet import served_directory, write_up
from launcher.cli.installed import fleet_status
from launcher.cli.progress import ProgressView
from launcher.cli.reload import converge
from launcher.cli.reloaded import deployment_in, split_kept
from launcher.cli.terminal import Terminal
from launcher.errors import Finding, SuperviseError, fault
from launcher.files.checkpoints import Checkpoint, changed_since, checkpoint_files
from launcher.install import Installed, Source
from launcher.ir.deployment import Deployment, RenderedFile
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.live import FleetStatus
from launcher.manifest import argv_digest, decode_fleet, decode_routes, diff_manifests
from launcher.supervise import RecordStore, end_runtime, reach_runtime, stop_orphans

_END_WAIT_S = 120.0
_UP = ("ready", "sleeping")
_STOPPED_BY_OPERATOR = "stopped by an operator"
"""Beginning of the reason in `launcher.supervise.status`. A server of an exclusive group may be stopped because another
runs."""


def restore(subject: CheckpointSource, checkpoint: Checkpoint, err: Terminal) -> dict[str, Any]:
    """Run what `checkpoint` holds, and verify it. Returns what was started, restarted, stopped and kept.

    Raises CatalogError, naming each file that differs, before anything is changed; SuperviseError when a process that
    was up does not come up, or is not what was recorded.
    """
    require_files(checkpoint, digested((c.path for c in checkpoint.covered), err))
    files = checkpoint_files(subject.kept, checkpoint, "deployment")
    served = decode_fleet(files.get("fleet.json", b"")), decode_routes(files.get("routes.json", b""))
    state = subject.state
    if subject.installed is not None:
        done = _installed_again(subject.installed, checkpoint, files, err)
    else:
        done = _up_again(subject, checkpoint, files, served, err)
    status, woken, halted = _restore_states(state, checkpoint)
    done["started"] += (name for name in woken if name not in done["started"] + done["restarted"])
    done["stopped"] += halted
    done["kept"] = [name for name in done["kept"] if name not in (*woken, *halted)]
    findings = _verify(state, served[0], checkpoint, status)
    if findings:
        raise SuperviseError(findings)
    document = {"schema": "launch.checkpoint-restored/v1", "deployment": subject.name, "name": checkpoint.name}
    return document | split_kept(done, {p.name for p in status.processes}, status)


def _up_again(
    subject: CheckpointSource,
    checkpoint: Checkpoint,
    files: dict[str, bytes],
    served: tuple[FleetManifest, RoutingTable],
    err: Terminal,
) -> dict[str, list[str]]:
    """Restore a fleet of `launch up`: its runtime takes it over if it can, else it is started anew."""
    state, (manifest, table) = subject.state, served
    before = deployment_in(served_directory(subject.state)) if subject.runs else None
    # a running runtime can take over what it does not read only at its start
    in_place = before is not None and (before[0].supervisor, before[1].front) == (manifest.supervisor, table.front)
    if before is not None and not in_place:
        err.line("the front or the supervisor differs: the whole fleet is started anew")
        end_runtime(state, wait_s=_END_WAIT_S, report=err.line)
    request = None if checkpoint.request is None else msgspec.json.encode(checkpoint.request)
    target = write_up(state, _deployment(checkpoint, files), request)
    if in_place:
        return _take_over(state, target, checkpoint)
    stop_orphans(state)
    _start(target, err)
    changes = diff_manifests(before[0], manifest) if before is not None else None
    names = [*(s.name for s in manifest.servers), *(s.name for s in manifest.services)]
    return {"started": names, "restarted": [], "stopped": list(changes.stopped) if changes else [], "kept": []}


def _installed_again(
    installed: Installed, checkpoint: Checkpoint, files: dict[str, bytes], err: Terminal
) -> dict[str, list[str]]:
    """Restore an installed fleet: its files, with a restart of what differs or had loaded other weights."""
    source = msgspec.convert(checkpoint.request, Source) if checkpoint.request else installed.record.source
    started_at = {p.name: p.started_at for p in fleet_status(installed).processes if p.started_at is not None}
    done = converge(installed, _deployment(checkpoint, files), source, sorted(_stale(checkpoint, started_at)), err)
    return _lists(done)


def _deployment(checkpoint: Checkpoint, files: dict[str, bytes]) -> Deployment:
    rendered = tuple(
        RenderedFile(path=path, text=data.decode(), executable=path in checkpoint.executable)
        for path, data in sorted(files.items())
        if path != ".launch-files.json"
    )
    return Deployment(name=checkpoint.deployment, input_digest=checkpoint.input_digest, files=rendered)


def _lists(done: Mapping[str, Any]) -> dict[str, list[str]]:
    return {verb: list(names) for verb, names in done.items() if isinstance(names, list)}


def _stale(checkpoint: Checkpoint, started_at: Mapping[str, float]) -> set[str]:
    return {
        name
        for covered in checkpoint.covered
        for name in covered.servers
        if name in started_at and changed_since(covered.path, started_at[name])
    }


def _take_over(state: Path, target: Path, checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Have the running runtime take it over; restart what changed, or started before its files were put back."""
    stale = _stale(checkpoint, {record.name: record.started_at for record in RecordStore(state).read()[0]})
    with reach_runtime(state) as control:
        done = _lists(control.reload((), target))
        again = tuple(sorted(stale & set(done["kept"])))
        if again:
            control.reload(again, target)
    done["restarted"] += again
    done["kept"] = [name for name in done["kept"] if name not in again]
    return done


def _start(target: Path, err: Terminal) -> None:
    """Start a runtime in the background, with the progress that `up` shows. Raises what it ended with."""
    from launcher.runtime import spawn_detached

    progress = ProgressView(err)
    try:
        spawn_detached(target, on_event=progress)
    finally:
        progress.finish()


def _restore_states(state: Path, checkpoint: Checkpoint) -> tuple[FleetStatus, tuple[str, ...], tuple[str, ...]]:
    """Start what ran, and stop what an operator had stopped.

    Returns the status after that, and the names that were started and stopped.
    """
    was = {p.name: p for p in checkpoint.status.processes} if checkpoint.status is not None else {}
    with reach_runtime(state) as control:
        now = {p.name: p for p in control.status().processes}
        wake = tuple(n for n, p in was.items() if p.state in _UP and n in now and now[n].state not in _UP)
        held = (n for n, p in was.items() if p.state == "stopped" and (p.error or "").startswith(_STOPPED_BY_OPERATOR))
        halt = tuple(n for n in held if n in now and now[n].state in _UP)
        if wake:
            control.reload(wake)
        if halt:
            control.stop(halt)
        return control.status(), wake, halt


def _verify(state: Path, manifest: FleetManifest, checkpoint: Checkpoint, status: FleetStatus) -> tuple[Finding, ...]:
    """Findings for what is not as in the checkpoint: input, processes that should be up, command lines."""
    found = []
    if status.input_digest != checkpoint.input_digest:
        found.append(("input_digest", f"the runtime serves {status.input_digest}, not {checkpoint.input_digest}"))
    records = {record.name: record for record in RecordStore(state).read()[0]}
    argv = {s.name: s.argv for s in manifest.servers}
    was = checkpoint.status.processes if checkpoint.status is not None else status.processes
    up = {p.name for p in was if p.state in _UP}
    for process in status.processes:
        if process.name in up and process.state not in _UP:
            found.append((process.name, f"{process.name} is {process.state}: {process.error or 'it was up'}"))
        elif process.drift:
            found.append((process.name, f"{process.name} differs from what is compiled: {process.drift}"))
        elif process.pid is not None and process.name in argv and process.name in records:
            running = argv_digest(records[process.name].argv)
            if running != argv_digest(argv[process.name]):
                found.append((process.name, f"{process.name} runs another command line than the checkpoint's"))
    note = "`launch status` and `launch logs` show more"
    return tuple(fault("checkpoint/not-restored", f"servers.{name}", text, note) for name, text in found)
