"""Processes of ours whose state file is lost or spoilt: known by the mark that they carry in their environment.

The mark is the path of the state file, set when we spawned them. It names no stranger: who copies it into a process
of his own can only have that process ended.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from launcher.supervise import procfs
from launcher.supervise.identity import MARKER, ServerRecord, argv_agrees
from launcher.supervise.spec import ProcessSpec

_GRACE_S = 10.0


def marked_deployments(root: Path) -> frozenset[str]:
    """Names of the deployments with state below `root` of which a process runs, by its mark: whatever became of files.

    Only processes that we may ask: our own, or as root everybody's.
    """
    marks = (procfs.environment(pid, MARKER) for pid in procfs.pids())
    states = (Path(mark).parent.parent for mark in marks if mark is not None)
    return frozenset(state.name for state in states if state.parent == root)


def unrecorded(directory: Path, known: Collection[str]) -> list[ServerRecord]:
    """Records, as far as /proc tells, of marked processes whose names are not `known`.

    `directory` is that of the state files. Their `input_digest` is empty: what they run is known, what they are is not.
    """
    found = []
    for pid in procfs.pids():
        mark = procfs.environment(pid, MARKER)
        if mark is None:
            continue
        path = Path(mark)
        if path.parent != directory or path.suffix != ".json" or path.stem in known:
            continue
        stat, argv = procfs.proc_stat(pid), procfs.cmdline(pid)
        if stat is None or stat.session != pid or stat.state == "Z" or not argv:
            continue  # what a server forked carries its mark too, and ends with its session
        found.append(
            ServerRecord(
                deployment=directory.parent.name,
                input_digest="",
                name=path.stem,
                kind="server",
                roles=(),
                tier="",
                argv=argv,
                argv_digest="",
                host="",
                port=0,
                model="",
                log_file=str(directory.parent / "logs" / f"{path.stem}.log"),
                stop_grace_s=_GRACE_S,
                started_at=0.0,
                pid=pid,
                start_ticks=stat.start_ticks,
                boot_id=procfs.boot_id(),
            )
        )
    return found


def new_record(spec: ProcessSpec, deployment: str, input_digest: str, log_file: str, restarts: int) -> ServerRecord:
    """The record of a process that is about to be spawned as `spec`."""
    return ServerRecord(
        deployment=deployment,
        input_digest=input_digest,
        name=spec.name,
        log_file=log_file,
        started_at=time.time(),
        restarts=restarts,
        **_of_spec(spec),
    )


def completed(record: ServerRecord, spec: ProcessSpec) -> ServerRecord:
    """`record` with what `spec` says about it, if it was found by its mark and runs what `spec` would run."""
    if record.input_digest or not argv_agrees(spec.unit.argv, record.argv):
        return record
    return msgspec.structs.replace(record, **_of_spec(spec))


def _of_spec(spec: ProcessSpec) -> dict[str, Any]:
    """The fields of a record that say what the process runs as."""
    unit = spec.unit
    return {
        "kind": spec.kind,
        "roles": unit.roles,
        "tier": unit.tier,
        "argv": unit.argv,
        "argv_digest": unit.argv_digest,
        "host": unit.host,
        "port": unit.port,
        "model": unit.model,
        "stop_grace_s": spec.policy.stop_grace_s,
    }
