"""`launch install` and `launch uninstall`: a rendered deployment as systemd units of this machine, a user or a tree."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from launcher import install
from launcher.base.regular import read_regular
from launcher.cli.arguments import is_override
from launcher.cli.findings import show_findings
from launcher.cli.installed import require_rights
from launcher.cli.running import fleets
from launcher.cli.terminal import Terminal, terminals
from launcher.cli.this_host import part_of_host
from launcher.compiler import compile_fleet, error_class, render
from launcher.errors import (
    STALE_EXIT_CODE,
    ConfigError,
    Finding,
    HostError,
    LaunchError,
    SuperviseError,
    fault,
    has_errors,
)
from launcher.files import compare_deployment, owned_files, writing
from launcher.install import Change, Changes, Installed, Layout, Report, Source, Systemd
from launcher.install.changes import SIGNS
from launcher.install.ownership import machine_path
from launcher.install.steps import not_active
from launcher.ir.deployment import Deployment, FileDifference, RenderedFile, content_digest
from launcher.supervise import reach_runtime
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.ending import no_answer_finding

Answer = TypeVar("Answer")


def layout_of(*, user: bool, root: Path | None) -> Layout:
    """Where files go: on this machine, for this user or, below `root`, in a tree."""
    return Layout(scope="user" if user else "system", root=(root or Path("/")).absolute(), home=Path.home())


def install_fleet(
    what: list[str],
    config_dirs: list[Path],
    layout: Layout,
    *,
    dry_run: bool,
    force: bool,
    start: bool,
    host: str | None,
    as_json: bool,
) -> int:
    """Run `launch install`: read or compile, compare, verify, and only then write.

    `host`: the name of this host among several.
    """
    out, err = terminals()
    if len(what) == 1 and not is_override(what[0]):
        source = Source(folder=str(Path(what[0]).absolute()), host=host)
    else:
        source = Source(overrides=tuple(what), config_dirs=tuple(map(str, config_dirs)), host=host)
    deployment, stale = read_source(source, layout, err)
    if stale:
        show_findings(err, [stale_finding(deployment, stale)])
        return STALE_EXIT_CODE
    if dry_run:
        changes = require_installable(deployment, layout, source, err, force=force, dry_run=True)
        _show_changes(out, changes.changes, layout, as_json=as_json, deployment=deployment.name)
        return HostError.exit_code if has_errors(changes.findings) else 0
    require_rights(layout, "installed")
    if start:
        require_not_up(deployment.name, layout)
    with install.install_lock(layout, err.line):
        changes = require_installable(deployment, layout, source, err, force=force)
        report = put_in_place(changes, layout, start=start)
    _show_report(out, deployment.name, report, as_json=as_json)
    return 0


def require_not_up(deployment: str, layout: Layout) -> None:
    """Raise HostError if `deployment` runs here under `launch up`: it can have only one runtime."""
    for status in fleets([]).values() if layout.root == Path("/") else ():
        if status.deployment == deployment:
            runtime = f", its runtime is pid {status.runtime_pid}" if status.runtime_pid else ""
            message = f"{deployment} runs under `launch up`{runtime}"
            note = "`launch stop --all` ends it; then `launch install` puts it in systemd's hands"
            raise HostError.of("supervise/already-running", message, note)


def read_source(source: Source, layout: Layout, err: Terminal) -> tuple[Deployment, tuple[str, ...]]:
    """The deployment that `source` makes now, and the files in which its rendered folder, if any, differs from it."""
    if source.folder:
        return _rendered(bundle_of(Path(source.folder), source.host), layout, err), ()
    return _compiled(list(source.overrides), [Path(d) for d in source.config_dirs], layout, err, source.host)


def require_installable(
    deployment: Deployment, layout: Layout, source: Source, err: Terminal, *, force: bool = False, dry_run: bool = False
) -> Changes:
    """The changes that installing would make. Raises ConfigError, HostError if something stands in the way.

    A dry run shows such errors beside the changes: it may be on another machine, where programs lie elsewhere.
    """
    _require_scope(deployment, layout)
    with writing(layout.units, "nothing was written"):
        changes = install.plan_changes(deployment, layout, source=source, force=force)
    coming = {Path(machine_path(c.path, layout)) for c in changes.changes}
    findings = [*changes.findings, *(install.verify_units(deployment, layout, coming) if changes.changes else ())]
    if has_errors(findings) and not dry_run:
        raise HostError(findings)
    show_findings(err, findings)
    return msgspec.structs.replace(changes, findings=tuple(findings))


def put_in_place(changes: Changes, layout: Layout, *, start: bool) -> Report:
    """Install. Raises HostError if the system refuses to write something."""
    note = "what was written stays and is known as ours: run it again when that is mended, and it goes on from there"

    def take_over(units: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Have the runtime read its manifest again, and restart the running ones of `units` in any case."""
        record = install.read_record(changes.deployment, layout)
        return reload_units(install.installed_fleet(record, layout), units) if record is not None else ((), ())

    with writing(layout.units, note):
        systemd, taking_over = Systemd(layout), take_over if start else None
        return install.install(changes, layout, systemd, layout.tree.write, take_over=taking_over)


def reload_units(installed: Installed, units: Sequence[str]) -> tuple[list[str], list[str]]:
    """Have the runtime take over what is installed, and restart the running ones of `units` in any case.

    Returns the units that were restarted, and those that were started. Raises SuperviseError if something did not come
    up.
    """
    service = {c.name: c.service for c in installed.components}
    done = ask_runtime(installed, lambda runtime: runtime.reload())
    touched = {*done["restarted"], *done["started"], *done["stopped"]}
    status = ask_runtime(installed, lambda runtime: runtime.status())
    running = {p.name for p in status.processes if p.pid is not None}
    rest = [c.name for c in installed.components if {*c.units} & {*units}]
    more = tuple(name for name in rest if name in running and name not in touched)
    again: dict[str, Any] = {"restarted": [], "started": [], "failed": {}}
    if more:
        again = ask_runtime(installed, lambda runtime: runtime.reload(more))
    failed = {**done["failed"], **again["failed"]}
    if failed:
        raise SuperviseError([not_active(service[name], Systemd(installed.layout)) for name in failed])
    restarted = [service[name] for name in (*done["restarted"], *again["restarted"]) if name in service]
    return restarted, [service[name] for name in (*done["started"], *again["started"]) if name in service]


def ask_runtime(installed: Installed, ask: Callable[[ControlClient], Answer]) -> Answer:
    """The runtime's answer; if it dies meanwhile, the answer of the one that systemd starts again.

    Raises SuperviseError `supervise/no-answer` if that one does not answer either, and what the runtime refuses.
    """
    units = [c.service for c in installed.components if c.name == installed.name]
    for _ in range(2):
        try:
            with reach_runtime(installed.state_dir) as runtime:
                return ask(runtime)
        except NoRuntimeError:
            pass
        except SuperviseError as error:
            if error.findings[0].code != "supervise/no-answer":
                raise
        Systemd(installed.layout).start(units)  # until it is ready: what ran it has adopted by then
    raise SuperviseError([no_answer_finding(installed.state_dir)])


def uninstall_fleet(name: str, layout: Layout, *, dry_run: bool, force: bool, as_json: bool) -> int:
    """Run `launch uninstall`: stop and remove an installed deployment."""
    out, err = terminals()
    with writing(layout.records, "nothing was removed"):
        record = install.read_record(name, layout)
    if record is None:
        there = ", ".join(install.installed_names(layout)) or "none"
        message = f"{name} is not installed here; installed: {there}"
        raise HostError.of("install/not-installed", message)
    changes = install.plan_removal(record, layout, force=force)
    show_findings(err, [f for f in changes.findings if f.severity != "error"])
    if dry_run:
        _show_changes(out, changes.changes, layout, as_json=as_json, deployment=name)
        return 0
    require_rights(layout, "uninstalled")
    note = "what was removed is gone; run it again for the rest"
    with writing(layout.units, note), install.install_lock(layout, err.line):
        report = install.uninstall(changes, layout, Systemd(layout))
    _show_report(out, name, report, as_json=as_json)
    return 0


def bundle_of(directory: Path, host: str | None) -> Path:
    """The bundle that this host installs: `directory`, or if it has several hosts, the folder of this one.

    Raises ConfigError if there are several and none of them is this one.
    """
    hosts = sorted(path.parent.name for path in directory.glob("*/fleet.json"))
    if (directory / "fleet.json").exists() or not hosts:
        return directory
    wanted = host if host is not None else socket.gethostname().partition(".")[0]
    if wanted in hosts:
        return directory / wanted
    message = f"{directory} has bundles of {len(hosts)} hosts, and {wanted} is none of them"
    note = f"say which one: --host {' | '.join(hosts)}"
    raise ConfigError.of("config/which-host", message, note, key="hardware.hosts")


def read_bundle(directory: Path) -> Deployment:
    """A rendered folder as a value. Raises ConfigError if it is none, or is not as `launch render` wrote it."""
    from launcher.runtime import read_deployment, require_ours

    manifest, _ = read_deployment(directory)
    owned = owned_files(directory)
    files, wrong = [], []
    for path, expected in sorted(owned.items()):
        file = directory / path
        try:
            facts = file.lstat()
            raw = read_regular(file) if stat.S_ISREG(facts.st_mode) else b""
            text, executable = raw.decode(), bool(facts.st_mode & 0o100)
        except (OSError, UnicodeDecodeError):
            wrong.append(path)
            continue
        if content_digest(raw) != expected:
            wrong.append(path)
            continue
        require_ours(file.parent, file.parent.lstat())
        require_ours(file, facts)
        files.append(RenderedFile(path=path, text=text, executable=executable))
    if wrong or not owned:
        differ = f"{len(wrong)} files differ from what was rendered: {', '.join(wrong[:5])}"
        message = f"{directory} is no whole rendered deployment: {differ if wrong else 'its list is gone'}"
        note = "`launch render` writes it again; own settings belong into drop-ins on the target"
        raise ConfigError.of("install/damaged", message, note)
    return Deployment(name=manifest.deployment, input_digest=manifest.input_digest, files=tuple(files))


def _rendered(folder: Path, layout: Layout, err: Terminal) -> Deployment:
    """Read a rendered folder; if it is for this system, its servers must pass dry runs by their own binaries."""
    from launcher.proving import prove_rendered
    from launcher.runtime import read_deployment

    bundle = read_bundle(folder)
    findings = prove_rendered(read_deployment(folder)[0]) if layout.root == Path("/") else ()
    _refuse_errors(findings, HostError, err)
    return bundle


def _refuse_errors(findings: Sequence[Finding], kind: type[LaunchError], err: Terminal) -> None:
    """Show the warnings. Raises `kind` with the errors, if there are any."""
    show_findings(err, [f for f in findings if f.severity == "warning"])
    if has_errors(findings):
        raise kind(f for f in findings if f.severity == "error")


def stale_finding(deployment: Deployment, stale: tuple[str, ...]) -> Finding:
    """The finding that files on disk are not what the config compiles to."""
    message = f"{deployment.name} on disk is not what the config compiles to: {len(stale)} files differ"
    notes = (f"first {stale[0]}", "look with `launch render … --diff`, accept with `launch render …`, then install")
    return fault("install/stale", "", message, *notes)


def _compiled(
    overrides: list[str], config_dirs: list[Path], layout: Layout, err: Terminal, host: str | None
) -> tuple[Deployment, tuple[str, ...]]:
    """What `overrides` compile to for this host, and the files that differ in its rendered folder, if it has one."""
    from launcher.proving import prove_here

    scope = ["deploy.scope=user"] if layout.scope == "user" else []
    whole = compile_fleet([*overrides, *scope], config_dirs=config_dirs)
    bounded = compiled = part_of_host(whole, host)
    findings: tuple[Finding, ...] = ()
    if layout.root == Path("/"):
        compiled, findings, _ = prove_here(bounded)
    rendered = render(compiled)
    folder = Path(compiled.plan.config.deploy.output_dir) / whole.plan.deployment / compiled.plan.on
    stale: Sequence[FileDifference] = ()
    if owned_files(folder) and not scope:
        # what lies there was rendered by the bounds alone or, with --prove, by what this host's binaries say as well
        stale = min((compare_deployment(r.deployment, folder) for r in (rendered, render(bounded))), key=len)
    findings = (*compiled.findings, *rendered.findings, *findings)
    _refuse_errors(findings, error_class(findings) or HostError, err)
    return rendered.deployment, tuple(difference.path for difference in stale)


def _require_scope(deployment: Deployment, layout: Layout) -> None:
    """Raise ConfigError if the units were rendered for the other kind of manager (system, user)."""
    theirs = any(f.path.startswith("systemd-user/") for f in deployment.files)
    if theirs != (layout.scope == "user"):
        message = f"{deployment.name} was rendered with deploy.scope={'user' if theirs else 'system'}"
        note = "install it with --user" if theirs else "without --user, or render it with deploy.scope=user"
        raise ConfigError.of("install/scope", message, note, key="deploy.scope")


def _show_changes(
    out: Terminal, changes: tuple[Change, ...], layout: Layout, *, as_json: bool, deployment: str
) -> None:
    if as_json:
        rows = [
            {"path": machine_path(c.path, layout), "kind": c.kind, "restarts": bool(c.restarts and c.unit)}
            for c in changes
        ]
        out.json({"schema": "launch.install/v1", "deployment": deployment, "dry_run": True, "changes": rows})
        return
    for change in changes:
        restarts = "  restarts" if change.restarts and change.unit and change.kind == "change" else ""
        out.line(out.style(f"{SIGNS[change.kind]} {machine_path(change.path, layout)}", "bold") + restarts)
    for change in changes:
        if change.kind != "remove":
            out.diff(change.diff)
    out.line(f"{deployment}: {len(changes)} files would change")


def _show_report(out: Terminal, deployment: str, report: Report, *, as_json: bool) -> None:
    if as_json:
        document = {"schema": "launch.install/v1", "deployment": deployment, "dry_run": False}
        out.json(document | msgspec.to_builtins(report))
        return
    for verb in ("started", "restarted", "stopped", "failed"):
        for unit in getattr(report, verb):
            out.line(f"{verb:<9} {unit}")
    for unit in report.absent:
        out.line(f"{'absent':<9} {unit}: podman 4.4 or newer makes it of its .container file")
    out.line(f"{deployment}: {len(report.written)} files written, {len(report.removed)} removed")
