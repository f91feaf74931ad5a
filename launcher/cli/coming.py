"""What a plan would change if its fleet runs already, under our runtime or installed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.cli.arguments import later_wins
from launcher.cli.fleet import read_request, served_directory
from launcher.cli.installed import components_of, fleet_status, installed_here
from launcher.cli.onefile import switch_command
from launcher.cli.reloaded import change_lines, deployment_in, on_demand
from launcher.cli.terminal import Terminal
from launcher.cli.this_host import part_of_host
from launcher.compiler import Compilation, render
from launcher.errors import ConfigError, SuperviseError, has_errors
from launcher.files import compare_deployment, owned_files
from launcher.files.state import deployment_state_dir
from launcher.install import Changes, Installed, plan_changes
from launcher.install.steps import unit_of
from launcher.ir.documents import FleetChange
from launcher.manifest import diff_manifests, front_changes
from launcher.render.fleet import Rendered
from launcher.supervise import runtime_holder


def fleet_changes(
    compiled: Compilation, overrides: Sequence[str] = (), config_dirs: Sequence[Path] = ()
) -> tuple[FleetChange, ...]:
    """The changes of each fleet of the plan's name that runs here; () if the plan has errors.

    `overrides` and `config_dirs` are what the plan was compiled from.
    """
    part = _of_this_host(compiled)
    if part is None or has_errors(part.findings):
        return ()
    name = part.plan.deployment
    state = deployment_state_dir(name)
    holder = runtime_holder(state) if state.is_dir() else None
    here = [installed for installed in installed_here() if installed.name == name]
    if holder is None and not here:
        return ()
    rendered = render(part)
    folder = Path(part.plan.config.deploy.output_dir) / compiled.plan.deployment / part.plan.on
    stale = compare_deployment(rendered.deployment, folder) if owned_files(folder) else ()
    what = f"generated: {len(stale)} files in {folder} are not what the config compiles to"
    drift = (what,) if stale else ()
    changes = [_installed_change(installed, rendered, drift) for installed in here]
    if holder is not None:
        command, hindrance = _reload(state, overrides, config_dirs)
        served = served_directory(state)
        changes += runtime_change(served, rendered, drift=drift, command=command, hindrance=hindrance)
    return tuple(changes)


def show_fleet_changes(out: Terminal, changes: Iterable[FleetChange]) -> None:
    """Show the changes of each running fleet, as lines with `+`, `~` and `-`."""
    for change in changes:
        by = "our runtime" if change.manager == "runtime" else change.manager
        what = f"`{change.command}`" if change.command else "this plan"
        quiet = not (change.started or change.restarted or change.stopped or change.front)
        out.line(out.style(f"runs here under {by}; {what} would {'change nothing' if quiet else 'do'}", "bold"))
        if change.hindrance and not quiet:
            out.line(f"  no reload makes that plan of it: {change.hindrance}")
        for line in change_lines(out, change.started, change.restarted, change.stopped, change.on_demand):
            out.line(line)
        for what in change.front:
            out.line(out.style(f"~ front  {what}", "yellow"))
        if change.kept and not quiet:
            out.line(f"  {len(change.kept)} {'stays as it is' if len(change.kept) == 1 else 'stay as they are'}")
        for line in change.drift:
            out.line(f"  {out.style('drift', 'yellow')}: {line}")


def _of_this_host(compiled: Compilation) -> Compilation | None:
    """The plan, or this host's part of one for several; None if this is none of the hosts."""
    try:
        return part_of_host(compiled, None)
    except ConfigError:
        return None


def _installed_change(installed: Installed, rendered: Rendered, drift: tuple[str, ...]) -> FleetChange:
    """What installing the rendered fleet would change. A unit with changes beyond comments is restarted."""
    changes = plan_changes(rendered.deployment, installed.layout, force=True)
    diff = diff_manifests(installed.manifest, rendered.manifest) if installed.manifest else None
    status = fleet_status(installed)
    reasons = diff.restarted if diff else {}  # of a unit whose command line is the same, the unit is all that differs
    restarted = {n: reasons.get(n, "its unit differs") for n in components_of(installed, units_of(changes, "change"))}
    stopped = components_of(installed, units_of(changes, "remove"))
    old = [p.name for p in status.processes]
    new = [*(s.name for s in rendered.manifest.servers), *(s.name for s in rendered.manifest.services)]
    added = units_of(changes, "add")
    started = tuple(n for n in new if n not in old and any(unit.endswith(f"-{n}.service") for unit in added))
    return FleetChange(
        manager=status.manager,
        started=started,
        stopped=tuple(name for name in stopped if name not in new),
        restarted=restarted,
        kept=tuple(name for name in old if name not in restarted and name not in stopped),
        front=front_changes(installed.routes, rendered.routes) if installed.routes else (),
        drift=(*drift, *status.drift, *(f"{p.name}: {p.drift}" for p in status.processes if p.drift)),
        command="launch install",
        on_demand=on_demand(rendered.manifest, started),
    )


def units_of(changes: Changes, kind: str) -> list[str]:
    """Units whose files are added (`add`), changed or removed (`remove`), comments not counted."""
    return [unit_of(c.path) for c in changes.changes if c.kind == kind and c.unit and c.restarts]


def _reload(state: Path, overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[str, str]:
    """(command, reason): the `launch reload` that turns what runs into this plan, or "" and why there is none."""
    try:
        request = read_request(state)
    except SuperviseError as error:
        return "", error.findings[0].message
    keeps = [word for word in later_wins(request.overrides, overrides) if word not in overrides]
    if keeps:
        switch = switch_command(overrides, config_dirs)
        return "", f"it was started with {shlex.join(keeps)}, which a reload keeps and `{switch}` drops"
    if request.config_dirs != tuple(str(d) for d in config_dirs):
        dirs = ", ".join(request.config_dirs)
        started = f"with --config-dir {dirs}" if dirs else "without --config-dir"
        return "", f"it was started {started}; `{switch_command(overrides, config_dirs)}` does"
    return shlex.join(["launch", "reload", *(w for w in overrides if w not in request.overrides)]), ""


def runtime_change(
    directory: Path, rendered: Rendered, *, command: str, hindrance: str = "", drift: tuple[str, ...] = ()
) -> list[FleetChange]:
    """What `command`, a reload or a switch, would change in the fleet that our runtime serves from `directory`."""
    if (served := deployment_in(directory)) is None:
        return []
    diff = diff_manifests(served[0], rendered.manifest)
    change = FleetChange(
        manager="runtime",
        started=diff.started,
        stopped=diff.stopped,
        restarted=diff.restarted,
        kept=diff.kept,
        front=front_changes(served[1], rendered.routes),
        drift=drift,
        command=command,
        hindrance=hindrance,
        on_demand=on_demand(rendered.manifest, diff.started),
    )
    return [change]
