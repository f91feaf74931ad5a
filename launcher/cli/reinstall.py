"""`launch reload` of an installed fleet: read or compile again what was installed, converge on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.cli.arguments import later_wins
from launcher.cli.deploy import ask_runtime, judged, put_in_place, read_source, require_rights, stale_finding
from launcher.cli.installed import again, components_of
from launcher.cli.terminal import Terminal
from launcher.errors import ConfigError, Finding, HostError, error_finding
from launcher.install import Installed, Source, Systemd, alone, plan_changes
from launcher.install.steps import unit_of
from launcher.ir.deployment import Deployment
from launcher.manifest import decode_fleet, diff_manifests


def reload_installed(
    installed: Installed, names: Sequence[str], overrides: tuple[str, ...], err: Terminal
) -> dict[str, Any]:
    """Install again from where it came from, with more `overrides`; load and restart what drifted, and `names`.

    Gives component names: `started`, `restarted`, `stopped`, `kept`, the front's where it was `reloaded`, and of what
    `failed` the reason. Raises ConfigError, HostError, SuperviseError (also when the runtime does not answer).
    """
    require_rights(installed.layout, "reloaded")
    source = _with(installed.record.source, overrides, installed.name)
    deployment, stale = read_source(source, installed.layout, err)
    if stale:
        raise HostError([stale_finding(deployment, stale)])
    if deployment.name != installed.name:
        raise ConfigError([_other(installed.name, deployment.name)])
    return converge(installed, deployment, source, names, err)


def converge(
    installed: Installed, deployment: Deployment, source: Source, names: Sequence[str], err: Terminal
) -> dict[str, Any]:
    """Install `deployment`, which comes from `source`, in place of what is installed; see `reload_installed`."""
    with alone(installed.layout, err.line):
        changes = judged(deployment, installed.layout, source, err)
        report = put_in_place(changes, installed.layout, start=True)
    now = again(installed)
    if any(unit.needs_reload for unit in now.units.values()):
        Systemd(installed.layout).reload()
        now = again(now)
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
    """What `reload_installed` would do; nothing is written. Raises what a compile raises."""
    from launcher.cli.would import would_do

    source = _with(installed.record.source, overrides, installed.name)
    deployment, stale = read_source(source, installed.layout, err)
    after = decode_fleet(next(file.text for file in deployment.files if file.path == "fleet.json").encode())
    changes = plan_changes(deployment, installed.layout, source=source)
    units = [unit_of(c.path) for c in changes.changes if c.unit and c.restarts and c.kind == "change"]
    diff = diff_manifests(installed.manifest, after) if installed.manifest is not None else None
    differ = {name: "its unit differs" for name in components_of(installed, units) if name != installed.name}
    return would_do(after, diff, names, differ) | {
        "same_files": not changes.changes,
        "findings": (*changes.findings, *([stale_finding(deployment, stale)] if stale else ())),
    }


def _with(source: Source, overrides: tuple[str, ...], name: str) -> Source:
    """`source` with more overrides. ConfigError when it is a rendered folder, which has none."""
    if overrides and source.folder:
        raise ConfigError.of(
            "supervise/no-request",
            f"{name} was installed from {source.folder}: overrides change nothing there",
            "`launch render …` writes the folder anew, then `launch reload` takes it over",
        )
    return msgspec.structs.replace(source, overrides=later_wins(source.overrides, overrides))


def _other(installed: str, compiled: str) -> Finding:
    """Why overrides that make another deployment are not for `reload`."""
    return error_finding(
        "manifest/other-deployment",
        f"{installed} is installed, its source makes {compiled} now",
        "`launch uninstall` takes away what is installed; then `launch install` puts the other in place",
    )
