"""How a checkpoint differs from now, or from another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.cli.terminal import Terminal
from launcher.files import Checkpoint, FileDigest, changed_files
from launcher.ir.fleet import FleetManifest
from launcher.ir.live import FleetStatus
from launcher.manifest import diff_manifests


def difference_document(
    checkpoint: Checkpoint,
    manifest: FleetManifest,
    its_inputs: Mapping[str, bytes],
    *,
    against: str,
    before: FleetManifest | None,
    request: Mapping[str, Any] | None,
    inputs: Mapping[str, bytes],
    digests: Mapping[str, FileDigest],
    status: FleetStatus | None,
) -> dict[str, Any]:
    """`launch checkpoint diff --json`: what goes from `before` (None: nothing is compiled) to the checkpoint."""
    names = sorted([*(s.name for s in manifest.servers), *(s.name for s in manifest.services)])
    changes = diff_manifests(before, manifest) if before is not None else None
    was, now = set((checkpoint.request or {}).get("overrides", ())), set((request or {}).get("overrides", ()))
    return {
        "schema": "launch.checkpoint-diff/v1",
        "deployment": checkpoint.deployment,
        "name": checkpoint.name,
        "against": against,
        "input_digest": {
            "checkpoint": checkpoint.input_digest,
            "against": before.input_digest if before is not None else None,
        },
        "started": changes.started if changes else names,
        "stopped": changes.stopped if changes else (),
        "restarted": changes.restarted if changes else {},
        "kept": changes.kept if changes else (),
        "overrides": {"only_in_checkpoint": sorted(was - now), "only_against": sorted(now - was)},
        "config_files": sorted(p for p in {*its_inputs, *inputs} if its_inputs.get(p) != inputs.get(p)),
        "files": changed_files(checkpoint.covered, digests),
        "states": _states(checkpoint.status, status),
    }


def show_difference(out: Terminal, document: Mapping[str, Any]) -> None:
    """The same for people: what a restore would do, and what stands in its way."""
    against = "what is compiled now" if document["against"] == "now" else document["against"]
    lines = [out.style(f"+ {name}  start", "green") for name in document["started"]]
    lines += [out.style(f"~ {name}  restart: {why}", "yellow") for name, why in document["restarted"].items()]
    lines += [out.style(f"- {name}  stop", "red") for name in document["stopped"]]
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
    """Processes whose state differs, by name."""
    before = {p.name: p.state for p in was.processes} if was is not None else {}
    after = {p.name: p.state for p in now.processes} if now is not None else {}
    names = sorted({*before, *after})
    return {
        name: (before.get(name, "absent"), after.get(name, "absent"))
        for name in names
        if before.get(name) != after.get(name)
    }
