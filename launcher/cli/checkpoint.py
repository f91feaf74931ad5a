"""`launch checkpoint`: keep what a fleet was compiled to and run with, compare, and run exactly that again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launcher import __version__
from launcher.cli.checkpointed import CheckpointSource, subject_of, subjects
from launcher.cli.fleet import DEPLOYMENT_NAME, served_directory
from launcher.cli.installed import require_rights
from launcher.cli.reloaded import change_lines
from launcher.cli.terminal import Terminal, local_time, terminals
from launcher.errors import CatalogError, ConfigError, SuperviseError
from launcher.files.checkpoints import (
    Checkpoint,
    FileDigest,
    changed_files,
    checkpoint_files,
    checkpoint_names,
    cover,
    delete_checkpoint,
    file_digests,
    files_of,
    read_checkpoint,
    save_checkpoint,
)
from launcher.files.state import state_root
from launcher.ir.fleet import FleetManifest
from launcher.ir.live import FleetStatus
from launcher.manifest import decode_fleet, diff_manifests
from launcher.sizes import GIB, gib

ACTIONS = {"create": "NAME", "list": "", "diff": "NAME [OTHER]", "restore": "NAME", "delete": "NAME"}
"""Action → the names that it takes."""
_SAY_ABOVE_BYTES = 1 * GIB
_MAX_CONFIG_BYTES = 1 << 20
_MAX_CONFIG_FILES = 2000


def run_checkpoint(action: str, names: tuple[str, ...], *, deployment: str | None, as_json: bool) -> int:
    """Run `launch checkpoint ACTION [NAME [OTHER]]`.

    Raises ConfigError for wrong words, and what the action raises.
    """
    out, err = terminals()
    least, most = {"list": (0, 0), "diff": (1, 2)}.get(action, (1, 1))
    if action not in ACTIONS or not least <= len(names) <= most:
        raise _usage(action)
    if action == "list":
        return _list(deployment, out, as_json=as_json)
    subject = subject_of(deployment, None if action == "create" else names[0])
    if subject.installed is not None:
        require_rights(subject.installed.layout, "kept and restored")
    if action == "create":
        document = _create(subject, names[0], err)
    elif action == "diff":
        document = _diff(subject, names[0], names[1] if len(names) == 2 else None, err)
    elif action == "restore":
        from launcher.cli.restore import restore

        document = restore(subject, read_checkpoint(subject.kept, names[0]), err)
    else:
        delete_checkpoint(subject.kept, names[0])
        document = {"schema": "launch.checkpoint-deleted/v1", "deployment": subject.name, "name": names[0]}
    if as_json:
        out.json(document)
    elif action == "diff":
        show_difference(out, document)
    else:
        out.line(_sentence(action, document))
    return 0


def digested(paths: Iterable[str], err: Terminal) -> dict[str, FileDigest]:
    """The digest, now, of every file in `paths`; reports when a big one is read."""

    def on_file(path: str, size_bytes: int) -> None:
        if size_bytes >= _SAY_ABOVE_BYTES:
            err.line(f"reading {path}, {gib(size_bytes)}")

    return file_digests(paths, state_root() / "digests.json", on_file=on_file)


def require_files(checkpoint: Checkpoint, digests: Mapping[str, FileDigest]) -> None:
    """Raise CatalogError, naming every file that is not what it was."""
    findings = changed_files(checkpoint.covered, digests)
    if findings:
        raise CatalogError(findings)


def _create(subject: CheckpointSource, name: str, err: Terminal) -> dict[str, Any]:
    files, executable = subject.files()
    manifest = decode_fleet(files.get("fleet.json", b""), f"fleet.json of {subject}")
    status = subject.status()
    if status is not None and status.runtime_pid and status.input_digest != manifest.input_digest:
        message = f"{subject} was compiled anew, and still runs what was there before"
        raise SuperviseError.of("checkpoint/not-what-runs", message, "`launch reload` takes it over")
    covered, findings = cover(manifest, digested(files_of(manifest), err))
    if findings:
        raise CatalogError(findings)
    ours = subject.installed is not None or served_directory(subject.state) == subject.state / DEPLOYMENT_NAME
    request = subject.request() if ours else None
    content = {f"deployment/{path}": data for path, data in files.items()}
    content |= {f"inputs/{path}": data for path, data in _inputs(request).items()}
    checkpoint = Checkpoint(
        name=name,
        deployment=subject.name,
        created_at=time.time(),
        launch_version=__version__,
        input_digest=manifest.input_digest,
        request=request,
        covered=covered,
        executable=executable,
        status=status,
    )
    where = save_checkpoint(subject.kept, checkpoint, content)
    return {"schema": "launch.checkpoint-created/v1", "path": str(where), **_entry(checkpoint, content)}


class _Against(NamedTuple):
    """What a checkpoint is compared with. `manifest` None: nothing is compiled."""

    manifest: FleetManifest | None
    request: Mapping[str, Any] | None
    inputs: Mapping[str, bytes]
    digests: Mapping[str, FileDigest]
    status: FleetStatus | None


def _diff(subject: CheckpointSource, name: str, other: str | None, err: Terminal) -> dict[str, Any]:
    """Document of `launch checkpoint diff`: what a restore would change, from now or from the checkpoint `other`."""
    checkpoint = read_checkpoint(subject.kept, name)
    manifest, its_inputs = _compiled(subject.kept, checkpoint), checkpoint_files(subject.kept, checkpoint, "inputs")
    it = _now(subject, checkpoint, err) if other is None else _other(subject.kept, checkpoint, other)
    names = sorted([*(s.name for s in manifest.servers), *(s.name for s in manifest.services)])
    changes = diff_manifests(it.manifest, manifest) if it.manifest is not None else None
    was, now = (set((request or {}).get("overrides", ())) for request in (checkpoint.request, it.request))
    return {
        "schema": "launch.checkpoint-diff/v1",
        "deployment": checkpoint.deployment,
        "name": checkpoint.name,
        "against": other or "now",
        "input_digest": {
            "checkpoint": checkpoint.input_digest,
            "against": it.manifest.input_digest if it.manifest is not None else None,
        },
        "started": changes.started if changes else names,
        "stopped": changes.stopped if changes else (),
        "restarted": changes.restarted if changes else {},
        "kept": changes.kept if changes else (),
        "overrides": {"only_in_checkpoint": sorted(was - now), "only_against": sorted(now - was)},
        "config_files": sorted(p for p in {*its_inputs, *it.inputs} if its_inputs.get(p) != it.inputs.get(p)),
        "files": changed_files(checkpoint.covered, it.digests),
        "states": _states(checkpoint.status, it.status),
    }


def _compiled(state: Path, checkpoint: Checkpoint) -> FleetManifest:
    return decode_fleet(checkpoint_files(state, checkpoint, "deployment").get("fleet.json", b""))


def _now(subject: CheckpointSource, checkpoint: Checkpoint, err: Terminal) -> _Against:
    files, _ = subject.files()
    before = decode_fleet(files["fleet.json"]) if files else None
    digests = digested((c.path for c in checkpoint.covered), err)
    return _Against(before, subject.request(), _inputs(checkpoint.request), digests, subject.status())


def _other(state: Path, checkpoint: Checkpoint, name: str) -> _Against:
    base = read_checkpoint(state, name)
    digests = {c.path: FileDigest(path=c.path, error=f"not part of {name}") for c in checkpoint.covered}
    known = {c.path: FileDigest(path=c.path, size_bytes=c.size_bytes, digest=c.digest) for c in base.covered}
    digests |= {path: digest for path, digest in known.items() if path in digests}
    return _Against(_compiled(state, base), base.request, checkpoint_files(state, base, "inputs"), digests, base.status)


def _list(deployment: str | None, out: Terminal, *, as_json: bool) -> int:
    """List the checkpoints of all deployments (or of one), the newest last; damaged ones too."""
    states = [s.kept for s in ([subject_of(deployment, None)] if deployment else subjects())]
    entries: list[dict[str, Any]] = []
    for state in states:
        for name in checkpoint_names(state):
            try:
                checkpoint = read_checkpoint(state, name)
            except ConfigError as error:
                entries.append({"deployment": state.name, "name": name, "damaged": error.findings[0].message})
                continue
            entries.append(_entry(checkpoint, checkpoint.contents))
    entries.sort(key=lambda e: e.get("created_at", 0))
    if as_json:
        out.json({"schema": "launch.checkpoints/v1", "checkpoints": entries})
    elif not entries:
        out.line("there are no checkpoints; `launch checkpoint create NAME` makes one")
    else:
        header = ("CHECKPOINT", "DEPLOYMENT", "CREATED", "SERVERS", "RUNNING", "FILES", "INPUT")
        out.table(header, [_cells(entry) for entry in entries], right={3, 4, 5})
    return 0


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "damaged" in entry:
        return (entry["name"], entry["deployment"], "damaged", "", "", "", "")
    created = local_time(entry["created_at"], "%Y-%m-%d %H:%M:%S")
    digest = entry["input_digest"].removeprefix("sha256:")[:12]
    counts = (str(entry["servers"]), str(entry["running"]), gib(entry["covered_bytes"]))
    return (entry["name"], entry["deployment"], created, *counts, digest)


def _entry(checkpoint: Checkpoint, contents: Iterable[str]) -> dict[str, Any]:
    processes = checkpoint.status.processes if checkpoint.status else ()
    return {
        "deployment": checkpoint.deployment,
        "name": checkpoint.name,
        "created_at": checkpoint.created_at,
        "input_digest": checkpoint.input_digest,
        "launch_version": checkpoint.launch_version,
        "servers": len({name for c in checkpoint.covered for name in c.servers}),
        "running": sum(p.pid is not None for p in processes),
        "covered_files": len(checkpoint.covered),
        "covered_bytes": sum(c.size_bytes for c in checkpoint.covered),
        "config_files": sum(path.startswith("inputs/") for path in contents),
    }


def _sentence(action: str, document: Mapping[str, Any]) -> str:
    name, deployment = document["name"], document["deployment"]
    if action == "create":
        return (
            f"{name}: {deployment} with {document['covered_files']} files ({gib(document['covered_bytes'])}) "
            f"and their digests, {document['running']} running, in {document['path']}"
        )
    if action == "restore":
        done = [f"{verb} {', '.join(document[verb])}" for verb in ("started", "restarted", "stopped") if document[verb]]
        return f"{deployment} is {name} again: {'; '.join(done) or 'nothing had changed'}"
    return f"deleted {name} of {deployment}"


def _inputs(request: Mapping[str, Any] | None) -> dict[str, bytes]:
    """Content of the user's config files, by number of their `--config-dir` and path in it."""
    files: dict[str, bytes] = {}
    directories = (request or {}).get("config_dirs", ())
    named = directories if isinstance(directories, list | tuple) else ()
    for number, directory in enumerate(d for d in named if isinstance(d, str) and "\0" not in d):
        for path in sorted(Path(directory).rglob("*.y*ml")):
            if len(files) < _MAX_CONFIG_FILES and path.is_file() and path.stat().st_size <= _MAX_CONFIG_BYTES:
                files[f"{number}/{path.relative_to(directory).as_posix()}"] = path.read_bytes()
    return files


def _usage(action: str) -> ConfigError:
    uses = [f"launch checkpoint {action} {names}".rstrip() for action, names in ACTIONS.items()]
    if action in ACTIONS:
        fitting = uses[list(ACTIONS).index(action)]
        return ConfigError.of("checkpoint/usage", f"the names do not fit: {fitting}", "launch checkpoint --help")
    return ConfigError.of("checkpoint/usage", f"{action!r} is no action of checkpoint", *uses)


def show_difference(out: Terminal, document: Mapping[str, Any]) -> None:
    """Show a difference: what a restore would do, and what stands in its way."""
    against = "what is compiled now" if document["against"] == "now" else document["against"]
    lines = [*change_lines(out, document["started"], document["restarted"], document["stopped"])]
    lines += [f"  override only in {document['name']}: {o}" for o in document["overrides"]["only_in_checkpoint"]]
    lines += [f"  override only in {against}: {o}" for o in document["overrides"]["only_against"]]
    lines += [f"  config file differs: {path}" for path in document["config_files"]]
    lines += [f"  {name}: was {was}, is {now}" for name, (was, now) in document["states"].items()]
    lines += [out.style(f"! {finding.message}", "red") for finding in document["files"]]
    out.line(out.style(f"{document['name']} against {against}", "bold"))
    for line in lines or ["  no difference"]:
        out.line(line)
    if document["kept"] and lines:
        out.line(f"  {len(document['kept'])} stay as they are")


def _states(was: FleetStatus | None, now: FleetStatus | None) -> dict[str, tuple[str, str]]:
    before, after = ({p.name: p.state for p in s.processes} if s is not None else {} for s in (was, now))
    pairs = {name: (before.get(name, "absent"), after.get(name, "absent")) for name in sorted({*before, *after})}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}
