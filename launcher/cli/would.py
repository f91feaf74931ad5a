"""`launch reload --dry-run`: what the files say now against what runs, and what a reload would do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.cli.findings import show_findings
from launcher.cli.reloaded import manifest_in, on_demand, show_reloaded
from launcher.cli.terminal import Terminal
from launcher.ir.fleet import FleetManifest
from launcher.manifest import ManifestDiff, diff_manifests
from launcher.supervise import runtime_holder


def show_would(
    out: Terminal,
    states: Iterable[Path],
    installed: Iterable[dict[str, Any]],
    names: tuple[str, ...],
    overrides: tuple[str, ...],
    *,
    as_json: bool,
) -> int:
    """For each fleet of `launch up` by its state directory; of those that are `installed` it is known already.

    Raises what a compile raises; nothing is written.
    """
    from launcher.cli.fleet import would_reload

    results = list(installed)
    for state in states:
        after, findings = would_reload(state, overrides)
        holder = runtime_holder(state)
        before = manifest_in(Path(holder.deployment_dir)) if holder is not None and holder.deployment_dir else None
        changes = diff_manifests(before, after) if before is not None else None
        same = before is not None and before.input_digest == after.input_digest
        results.append(would_do(after, changes, names) | {"same_files": same, "findings": findings})
    if as_json:
        out.json({"schema": "launch.reload/v1", "dry_run": True, "fleets": results})
        return 0
    for result in results:
        show_findings(out, result["findings"])
        out.line(out.style(f"{result['deployment']}: a reload would do this, nothing is done now", "bold"))
        show_reloaded(out, result)
    return 0


def would_do(
    after: FleetManifest, changes: ManifestDiff | None, names: Iterable[str], units: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What becomes of each process; `units`: why those are restarted whose units differ in more than their command."""
    known = {unit.name for unit in after.servers} | {unit.name for unit in after.services}
    asked = dict.fromkeys((name for name in names if name in known), "asked for")
    reasons = {**asked, **(units or {}), **(changes.restarted if changes is not None else {})}
    new = changes.started if changes is not None else ()
    later = on_demand(after, new)
    return {
        "deployment": after.deployment,
        "started": [name for name in new if name not in later],
        "stopped": list(changes.stopped) if changes is not None else [],
        "restarted": sorted(reasons),
        "kept": [name for name in changes.kept if name not in reasons] if changes is not None else [],
        "reasons": reasons,
        "on_demand": list(later),
    }
