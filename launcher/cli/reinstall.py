"""`launch reload` of an installed fleet: read or compile again what was installed, converge on it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from launcher.cli.arguments import later_wins
from launcher.cli.deploy import judged, put_in_place, read_source, require_rights, stale_finding
from launcher.cli.installed import again, components_of, drifted
from launcher.cli.terminal import Terminal
from launcher.errors import ConfigError, Finding, HostError, SuperviseError
from launcher.install import Installed, Source, Systemd
from launcher.install.steps import not_active


def reload_installed(
    installed: Installed, names: Sequence[str], overrides: tuple[str, ...], err: Terminal
) -> dict[str, tuple[str, ...]]:
    """Install again from where it came from, with more `overrides`; load and restart what drifted, and `names`.

    Gives component names: `started`, `restarted`, `stopped`, `kept`. Raises ConfigError, HostError, SuperviseError.
    """
    require_rights(installed.layout, "reloaded")
    source = _with(installed.record.source, overrides, installed.name)
    deployment, stale = read_source(source, installed.layout, err)
    if stale:
        raise HostError([stale_finding(deployment, stale)])
    if deployment.name != installed.name:
        raise ConfigError([_other(installed.name, deployment.name)])
    changes = judged(deployment, installed.layout, source, err)
    report = put_in_place(changes, installed.layout, start=True)
    now = again(installed)
    systemd = Systemd(installed.layout)
    if any(unit.needs_reload for unit in now.units.values()):
        systemd.reload()
        now = again(now)
    more = _to_restart(now, names, {*report.restarted, *report.started})
    systemd.restart(more)
    failed = [u for u, p in systemd.properties(more, ("ActiveState",)).items() if p.get("ActiveState") != "active"]
    if failed:
        raise SuperviseError([not_active(unit, systemd) for unit in failed])
    touched = {
        "started": tuple(components_of(now, report.started)),
        "restarted": tuple(components_of(now, [*report.restarted, *more])),
        "stopped": tuple(components_of(installed, report.stopped)),
    }
    kept = (c.name for c in now.components if not any(c.name in names for names in touched.values()))
    return {**touched, "kept": tuple(kept)}


def _to_restart(installed: Installed, names: Sequence[str], done: set[str]) -> list[str]:
    """Units to restart besides `done`: those of `names`, and of processes that are not what their unit says.

    Of a WARM server that sleeps only its socket: the next request starts the rest.
    """
    drifting = drifted(installed)
    units = []
    for component in installed.components:
        sockets = [u for u in component.units if u.endswith(".socket")]
        runs = installed.units[component.service].active in ("active", "activating", "reloading")
        if component.name in names:
            units += [u for u in sockets if installed.units[u].active != "active"]
            units += [component.service] if runs or not sockets else []
        elif component.service in drifting:
            units.append(component.service)
    return [unit for unit in units if unit not in done]


def _with(source: Source, overrides: tuple[str, ...], name: str) -> Source:
    """`source` with more overrides. ConfigError when it is a rendered folder, which has none."""
    if overrides and source.folder:
        finding = Finding(
            code="supervise/no-request",
            severity="error",
            key="",
            message=f"{name} was installed from {source.folder}: overrides change nothing there",
            notes=("`launch render …` writes the folder anew, then `launch reload` takes it over",),
        )
        raise ConfigError([finding])
    return msgspec.structs.replace(source, overrides=later_wins(source.overrides, overrides))


def _other(installed: str, compiled: str) -> Finding:
    """Why overrides that make another deployment are not for `reload`."""
    return Finding(
        code="manifest/other-deployment",
        severity="error",
        key="",
        message=f"{installed} is installed, its source makes {compiled} now",
        notes=("`launch uninstall` takes away what is installed; then `launch install` puts the other in place",),
    )
