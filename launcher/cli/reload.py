"""`launch reload` and `launch switch`: compile again, and hand it to the running runtime, or install it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.arguments import is_override, later_wins
from launcher.cli.coming import runtime_change, show_fleet_changes, units_of
from launcher.cli.deploy import ask_runtime, put_in_place, read_source, require_installable, stale_finding
from launcher.cli.findings import show_findings
from launcher.cli.fleet import (
    Recompiled,
    UpRequest,
    compile_for,
    read_request,
    recompile,
    served_directory,
    write_compiled,
    write_up,
    written_last,
)
from launcher.cli.installed import components_of, fleet_status, installed_here, names_of, require_rights, reread
from launcher.cli.reloaded import served_manifest, show_reloaded, split_kept, would_do
from launcher.cli.running import asked, fleets, nothing_runs, require_known
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import compile_fleet, deployment_name
from launcher.errors import ConfigError, HostError, LaunchError, SuperviseError
from launcher.install import Installed, Source, Systemd, install_lock, plan_changes
from launcher.ir.deployment import Deployment
from launcher.manifest import decode_fleet, diff_manifests


def reload_servers(names: tuple[str, ...], *, as_json: bool, dry_run: bool = False, fleet: str | None = None) -> int:
    """Run `launch reload`: compile with the overrides of `up` and those among `names`, and hand it over.

    `fleet`: only this one. `dry_run`: only show what would change.
    """
    out, err = terminals()
    overrides = tuple(word for word in names if is_override(word))
    names = tuple(word for word in names if word not in overrides)
    statuses = {d: s for d, s in fleets().items() if s.runtime_pid is not None and fleet in (None, s.deployment)}
    managed = [installed for installed in installed_here() if fleet in (None, installed.name)]
    if not statuses and not managed:
        raise nothing_runs("nothing was reloaded")
    require_known(names, [*statuses.values(), *map(fleet_status, managed)])
    if dry_run:
        would = [would_reinstall(installed, names, overrides, err) for installed in managed]
        return _show_would(out, [*would, *(_would_reload(d, names, overrides) for d in statuses)], as_json=as_json)
    results = []
    for directory, status in statuses.items():
        mine = tuple(p.name for p in status.processes if p.name in names)
        if mine or not names:
            new = recompile(directory, overrides)
            show_findings(err, [f for f in new.compiled.findings if f.severity != "note"])
            results.append(hand_over(new, mine))
    for installed in managed:
        known = names_of(installed)
        theirs = [name for name in known if name in names]
        if theirs or not names:
            done = reload_installed(installed, theirs, overrides, err)
            now = fleet_status(reread(installed))
            results.append({"deployment": installed.name, **split_kept(done, known, now)})
    return _show_done(out, results, as_json=as_json)


def _show_done(out: Terminal, results: Sequence[dict[str, Any]], *, as_json: bool) -> int:
    """Show what became of each fleet's processes. Returns the exit code, 7 if something did not come up."""
    if as_json:
        out.json({"schema": "launch.reload/v1", "fleets": results})
    for result in results if not as_json else ():
        show_reloaded(out, result)
    return SuperviseError.exit_code if any(result.get("failed") for result in results) else 0


def hand_over(new: Recompiled, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Write what is `new`, have the runtime take it over and restart `names`; gives what became of each process.

    Raises LaunchError where it refuses; then what was there before is back.
    """
    before, served = written_last(new.state), served_manifest(new.state)
    target = write_compiled(new)
    try:
        with asked(new.state) as control:
            known = {p.name for p in control.status().processes}
            done, now = control.reload(names, target), control.status()
    except LaunchError:
        write_up(new.state, *before)
        raise
    changed = diff_manifests(served, new.rendered.manifest).restarted if served is not None else {}
    why = {**dict.fromkeys(names, "asked for"), **changed}
    return {"deployment": now.deployment, **split_kept(done, known, now), "reasons": why}


def _would_reload(state: Path, names: tuple[str, ...], overrides: tuple[str, ...]) -> dict[str, Any]:
    """What a reload would do to the fleet of `launch up` in `state`. Writes nothing. Raises what a compilation does."""
    new = recompile(state, overrides)
    before, after = served_manifest(state), new.rendered.manifest
    changes = diff_manifests(before, after) if before is not None else None
    same = before is not None and before.input_digest == after.input_digest
    return would_do(after, changes, names) | {"same_files": same, "findings": new.compiled.findings}


def _show_would(out: Terminal, results: list[dict[str, Any]], *, as_json: bool) -> int:
    if as_json:
        out.json({"schema": "launch.reload/v1", "dry_run": True, "fleets": results})
        return 0
    for result in results:
        show_findings(out, result["findings"])
        out.line(out.style(f"{result['deployment']}: a reload would do this, nothing is done now", "bold"))
        show_reloaded(out, result)
    return 0


def reload_installed(
    installed: Installed, names: Sequence[str], overrides: tuple[str, ...], err: Terminal
) -> dict[str, Any]:
    """Install again from the recorded source, with more `overrides`; restart what differs, and `names`.

    Returns names of components: `started`, `restarted`, `stopped`, `kept`, the front in `reloaded` if it was, and
    `failed` → reason. Raises ConfigError, HostError, SuperviseError (also when the runtime does not answer).
    """
    require_rights(installed.layout, "reloaded")
    source = _with_overrides(installed.record.source, overrides, installed.name)
    deployment, stale = read_source(source, installed.layout, err)
    if stale:
        raise HostError([stale_finding(deployment, stale)])
    if deployment.name != installed.name:
        message = f"{installed.name} is installed, its source makes {deployment.name} now"
        note = "`launch uninstall` takes away what is installed; then `launch install` puts the other in place"
        raise ConfigError.of("manifest/other-deployment", message, note)
    return converge(installed, deployment, source, names, err)


def converge(
    installed: Installed, deployment: Deployment, source: Source, names: Sequence[str], err: Terminal
) -> dict[str, Any]:
    """Install `deployment`, which comes from `source`, in place of what is installed; see `reload_installed`."""
    with install_lock(installed.layout, err.line):
        changes = require_installable(deployment, installed.layout, source, err)
        report = put_in_place(changes, installed.layout, start=True)
    now = reread(installed)
    if any(unit.needs_reload for unit in now.units.values()):
        Systemd(installed.layout).reload()
        now = reread(now)
    touched = {
        "started": components_of(now, report.started),
        "restarted": components_of(now, report.restarted),
        "stopped": components_of(installed, report.stopped),
        "reloaded": [],
        "failed": {},
    }
    asked = [n for n in names if n not in touched["restarted"] and n not in touched["started"]]
    if asked:
        done = ask_runtime(now, lambda runtime: runtime.reload(tuple(asked)))
        for kind in ("started", "restarted", "stopped", "reloaded"):
            touched[kind] += done[kind]
        touched["failed"] = done["failed"]
    changed = {name for kind in ("started", "restarted", "stopped") for name in touched[kind]}
    return {**touched, "kept": [c.name for c in now.components if c.name not in changed]}


def would_reinstall(
    installed: Installed, names: Sequence[str], overrides: tuple[str, ...], err: Terminal
) -> dict[str, Any]:
    """What `reload_installed` would do; nothing is written. Raises what a compilation raises."""
    source = _with_overrides(installed.record.source, overrides, installed.name)
    deployment, stale = read_source(source, installed.layout, err)
    after = decode_fleet(next(file.text for file in deployment.files if file.path == "fleet.json").encode())
    changes = plan_changes(deployment, installed.layout, source=source)
    diff = diff_manifests(installed.manifest, after) if installed.manifest is not None else None
    changed = components_of(installed, units_of(changes, "change"))
    differ = {name: "its unit differs" for name in changed if name != installed.name}
    return would_do(after, diff, names, differ) | {
        "same_files": not changes.changes,
        "findings": (*changes.findings, *([stale_finding(deployment, stale)] if stale else ())),
    }


def _with_overrides(source: Source, overrides: tuple[str, ...], name: str) -> Source:
    """`source` with more overrides. Raises ConfigError if it is a rendered folder, which has none."""
    if overrides and source.folder:
        raise ConfigError.of(
            "supervise/no-request",
            f"{name} was installed from {source.folder}: overrides change nothing there",
            "`launch render …` writes the folder anew, then `launch reload` takes it over",
        )
    return msgspec.structs.replace(source, overrides=later_wins(source.overrides, overrides))


def switch_fleet(
    overrides: Sequence[str], config_dirs: Sequence[Path], *, fleet: str | None, dry_run: bool, as_json: bool
) -> int:
    """Run `launch switch`: show the differences, then hand over. Raises LaunchError; then nothing has changed.

    The fleet keeps its name, and with it its state directory, logs and metrics; only what it runs changes.
    """
    out, err = terminals()
    state = _running(fleet)
    old = read_request(state)
    names = _naming_overrides(state.name, overrides, config_dirs)
    request = UpRequest(overrides=(*overrides, *names), config_dirs=tuple(str(d) for d in config_dirs), host=old.host)
    new = compile_for(state, request)
    show_findings(err, [finding for finding in new.compiled.findings if finding.severity != "note"])
    command = "" if as_json else "launch switch"
    changes = runtime_change(served_directory(state), new.rendered, command=command)
    if not as_json:
        show_fleet_changes(out, changes)
    if dry_run:
        if as_json:
            out.json({"schema": "launch.switch/v1", "deployment": state.name, "changes": changes})
        return 0
    return _show_done(out, [hand_over(new)], as_json=as_json)


def _running(fleet: str | None) -> Path:
    """State directory of the fleet to switch.

    Raises SuperviseError if none runs, ConfigError if it is not clear which, or if it is installed.
    """
    running = {status.deployment: path for path, status in fleets().items() if status.runtime_pid is not None}
    installed = [there.name for there in installed_here()]
    if installed and (not running or fleet in installed):
        message = f"{fleet or ', '.join(installed)} is installed, and systemd's units are not switched"
        note = "`launch install …` puts another plan in place, and restarts only what differs"
        raise ConfigError.of("config/usage", message, note)
    if not running:
        raise nothing_runs("nothing can be switched")
    name = fleet if fleet is not None or len(running) > 1 else next(iter(running))
    if name not in running:
        wrong = f"no running fleet is called {name}" if name else f"{len(running)} fleets run: which one?"
        notes = tuple(f"launch switch --fleet {known} …" for known in sorted(running))
        raise ConfigError.of("config/usage", wrong, *notes)
    return running[name]


def _naming_overrides(name: str, overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[str, ...]:
    """The overrides that give the wanted fleet the name of the running one. Raises LaunchError: it does not compile."""
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    compiled.require()
    fleet = compiled.plan.config
    if deployment_name(fleet) == name:
        return ()
    if name.startswith(f"{fleet.hardware.name}-"):
        return (f"profile.name={name.removeprefix(f'{fleet.hardware.name}-')}",)
    hardware, _, profile = name.partition("-")
    return (f"hardware.name={hardware}", f"profile.name={profile}")
