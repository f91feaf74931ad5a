"""Show what a reload did, or would do: start, restart with the reason, stop, keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.base.regular import read_regular
from launcher.cli.terminal import Terminal
from launcher.errors import ConfigError, LaunchError
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.live import FleetStatus
from launcher.manifest import ManifestDiff, decode_fleet, decode_routes
from launcher.supervise import runtime_holder


def on_demand(manifest: FleetManifest, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that are started only when a request comes."""
    waiting = {unit.name for unit in manifest.servers if unit.start != "boot"}
    waiting |= {unit.name for unit in manifest.services if unit.start != "boot"}
    return tuple(name for name in names if name in waiting)


def split_kept(result: Mapping[str, Any], before: Collection[str], now: FleetStatus) -> dict[str, Any]:
    """The `result` of a reload, with processes that do not run taken out of `kept`.

    Of these, names that were there `before` are `not_running`, new ones `on_demand`: they start when a request comes.
    """
    down = {p.name for p in now.processes if p.state in {"stopped", "failed"}}
    kept = result["kept"]
    return {
        **result,
        "kept": [name for name in kept if name not in down],
        "not_running": [name for name in kept if name in down and name in before],
        "on_demand": [name for name in kept if name in down and name not in before],
    }


def change_lines(
    out: Terminal,
    started: Iterable[str],
    restarted: Mapping[str, str],
    stopped: Iterable[str],
    on_demand: Collection[str] = (),
) -> Iterator[str]:
    """A line with a sign for each change; `restarted`: name → reason, `on_demand`: those of `started` that wait."""
    for name in started:
        when = "on demand: it comes up when it is asked" if name in on_demand else "start"
        yield out.style(f"+ {name}  {when}", "green")
    for name, why in restarted.items():
        yield out.style(f"~ {name}  restart: {why}", "yellow")
    for name in stopped:
        yield out.style(f"- {name}  stop", "red")


def show_reloaded(out: Terminal, result: Mapping[str, Any]) -> None:
    """Show one fleet's changes, a line each."""
    failed = result.get("failed") or {}
    for verb, sign, style in (("started", "+", "green"), ("restarted", "~", "yellow"), ("stopped", "-", "red")):
        for name in result.get(verb, ()):
            why = result.get("reasons", {}).get(name, "") if verb == "restarted" else ""
            out.line(out.style(f"{sign} {verb}: {name}{f'  ({why})' if why else ''}", style))
    for name in result.get("reloaded", ()):
        out.line(out.style(f"~ reloaded: {name}  (routes, keys and limits; connections go on)", "yellow"))
    for what in result.get("front", ()):
        out.line(out.style(f"~ front: {what}", "yellow"))
    for name, cause in failed.items():
        out.line(out.style(f"✗ failed: {name}  ({cause})", "red"))
    if result.get("on_demand"):
        out.line(out.style(f"+ on demand: {', '.join(result['on_demand'])}  (up when they are asked)", "green"))
    if result.get("kept"):
        out.line(f"  kept: {', '.join(result['kept'])}")
    if result.get("not_running"):
        out.line(f"  not running, as before: {', '.join(result['not_running'])}")


def deployment_in(directory: Path) -> tuple[FleetManifest, RoutingTable] | None:
    """Manifest and routes in `directory`; None unless both can be read."""
    try:
        fleet, routes = (read_regular(directory / name) for name in ("fleet.json", "routes.json"))
        return decode_fleet(fleet), decode_routes(routes)
    except (OSError, LaunchError):
        return None


def served_manifest(state: Path) -> FleetManifest | None:
    """The manifest that the runtime of `state` serves; None if none lives, or its files cannot be read."""
    holder = runtime_holder(state)
    if holder is None or not holder.deployment_dir:
        return None
    try:
        return decode_fleet(read_regular(Path(holder.deployment_dir) / "fleet.json"))
    except (OSError, ConfigError):
        return None


def would_do(
    after: FleetManifest, changes: ManifestDiff | None, names: Iterable[str], units: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What would become of each process; `units`: process → why it is restarted, if its unit differs."""
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
