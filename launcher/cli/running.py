"""Commands about fleets that run: status, stop, reload, logs."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from launcher.cli.build import print_json
from launcher.cli.figures import with_figures
from launcher.cli.findings import show_findings
from launcher.cli.installed import (
    again,
    fleet_status,
    follow_journal,
    installed_here,
    names_of,
    show_drift,
    stop_installed,
)
from launcher.cli.terminal import Terminal, terminals
from launcher.errors import ConfigError, Finding, SuperviseError
from launcher.files import call_off, deployment_state_dir, known_deployments
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.sizes import gib
from launcher.supervise import RuntimeAliveError, end_runtime, offline_status, reach_runtime, stop_orphans
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.ending import no_answer_finding

_STATE_STYLE = {"ready": "green", "failed": "red", "backoff": "red", "starting": "yellow", "stopping": "yellow"}
_COLUMNS = (
    *("COMPONENT", "PORT", "PID", "STATUS", "MODEL", "PLANNED", "MEASURED", "IN RAM", "BUSY", "QUEUE", "TOK/S"),
    *("RESTARTS", "UP"),
)
_IF_KNOWN = frozenset({"IN RAM", "QUEUE", "TOK/S"})
_LEFT = frozenset({"COMPONENT", "STATUS", "MODEL"})
_STOP_WAIT_S = 120.0


def fleets() -> dict[Path, FleetStatus]:
    """Every fleet with a living process or runtime, by its state directory: asked of its runtime where one lives."""
    found: dict[Path, FleetStatus] = {}
    for name in known_deployments():
        directory = deployment_state_dir(name)
        status = offline_status(directory)
        if status.runtime_pid is not None:
            # while it starts or ends, what its state files say is the best that is known
            with contextlib.suppress(NoRuntimeError), ControlClient(directory) as control:
                status = control.status()
        if status.runtime_pid is not None or status.processes:
            found[directory] = status
    return found


def running_names() -> list[str]:
    """Names of all processes of all running and installed fleets."""
    installed = [name for fleet in installed_here() for name in names_of(fleet)]
    return [p.name for status in fleets().values() for p in status.processes] + installed


def _require_known(names: Sequence[str], statuses: Iterable[FleetStatus]) -> None:
    """Raises ConfigError for names that no running fleet has."""
    known = sorted({p.name for status in statuses for p in status.processes})
    findings = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'nothing runs'}"
            findings.append(
                Finding(
                    code="supervise/unknown-name",
                    severity="error",
                    key=f"servers.{name}",
                    message=f"no running fleet has {name}",
                    notes=(hint,),
                )
            )
    if findings:
        raise ConfigError(findings)


def show_status(names: tuple[str, ...], *, watch: bool, as_json: bool, no_color: bool) -> int:
    """`launch status`. Exit code 7 when something that should run has failed."""
    out, _ = terminals(no_color=no_color)
    statuses: list[FleetStatus] = []

    def draw(page: Terminal) -> None:
        """Ask, and write what was answered. Raises ConfigError for a name that no fleet has."""
        statuses[:] = [*fleets().values(), *(with_figures(f, fleet_status(f)) for f in installed_here())]
        _require_known(names, statuses)
        if as_json:
            print_json(page, {"schema": "launch.statuses/v1", "fleets": statuses})
            return
        for status in statuses:
            _fleet(page, status, names)
        if not statuses:
            page.line("nothing runs; start the default fleet with: launch profile=dev")

    if watch:
        from launcher.cli.watch import watch as watch_screen

        watch_screen(out, draw)
    else:
        draw(out)
    broken = any(p.state in {"failed", "backoff"} for s in statuses for p in s.processes)
    return SuperviseError.exit_code if broken and not watch else 0


def _fleet(out: Terminal, status: FleetStatus, names: tuple[str, ...]) -> None:
    """One fleet as a table, then what is wrong with its processes."""
    named = f"runtime pid {status.runtime_pid}" if status.runtime_pid else out.style("its lock names no runtime", "red")
    runtime = out.style("no runtime", "red") if status.runtime_pid is None else named
    if status.manager != "runtime":
        runtime = f"run by {status.manager}"
    front = f", front {status.front}" if status.front else ""
    out.line(f"{out.style(status.deployment, 'bold')}  {'ready' if status.ready else 'not ready'}, {runtime}{front}")
    shown = [p for p in status.processes if not names or p.name in names]
    rows = [_row(p) for p in shown]
    kept = [i for i, title in enumerate(_COLUMNS) if title not in _IF_KNOWN or any(row[i] for row in rows)]
    out.table(
        tuple(_COLUMNS[i] for i in kept),
        [tuple(row[i] for i in kept) for row in rows],
        right=frozenset(at for at, i in enumerate(kept) if _COLUMNS[i] not in _LEFT),
    )
    for process in shown:
        if process.error:
            style = _STATE_STYLE.get(process.state, "yellow")
            out.line(f"  {out.style(process.name, style)}: {process.error}")
        if process.rung:
            out.line(f"  {process.name}: {out.style('out of memory', 'yellow')}: now on rung {process.rung}")
        if process.drift:
            out.line(f"  {process.name}: {out.style('drift', 'yellow')}: {process.drift}")
    for hook in status.hooks:
        took = f" in {hook.seconds:.2f} s" if hook.seconds is not None else ""
        style = {"done": "green", "failed": "red"}.get(hook.state, "yellow")
        out.line(f"  hook {hook.name}: {out.style(hook.state, style)}{took}{f': {hook.error}' if hook.error else ''}")
    show_drift(out, status)


def _row(process: ProcessStatus) -> tuple[str, ...]:
    """One process as cells."""
    up = _duration(time.time() - process.started_at) if process.started_at and process.pid else ""
    busy = f"{process.in_flight}/{process.slots}" if process.slots and process.in_flight is not None else ""
    return (
        process.name,
        str(process.port),
        str(process.pid or ""),
        process.state,
        process.model,
        gib(sum(process.planned_bytes.values())) if process.planned_bytes else "",
        gib(sum(process.measured_bytes.values())) if process.measured_bytes else "",
        f"{process.in_ram_percent:.0f}% {process.in_ram}".strip() if process.in_ram_percent is not None else "",
        busy,
        str(process.queued or ""),
        f"{process.tokens_per_second:.1f}" if process.tokens_per_second else "",
        str(process.restarts),
        up,
    )


def _duration(seconds: float) -> str:
    """`42s`, `8m 23s`, `3h 5m`, `12d 4h`."""
    whole = max(0, int(seconds))
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller}{part}"
    return f"{whole}s"


def stop_servers(names: tuple[str, ...], *, everything: bool, as_json: bool, no_color: bool) -> int:
    """`launch stop`. Fleets whose runtime is gone are stopped from their state files, installed ones by systemd."""
    out, err = terminals(no_color=no_color)
    called_off = everything and not names and call_off()
    statuses, managed = fleets(), installed_here()
    if bool(names) == everything:
        finding = Finding(
            code="config/usage",
            severity="error",
            key="",
            message="stop what? name servers, or stop all of them",
            notes=("launch stop NAME…", "launch stop --all"),
        )
        raise ConfigError([finding])
    _require_known(names, [*statuses.values(), *map(fleet_status, managed)])
    stopped: list[str] = []
    for directory, status in statuses.items():
        mine = tuple(p.name for p in status.processes if p.name in names)
        if everything:
            stopped += _stop_fleet(directory, status, err)
        elif mine and status.runtime_pid is not None:
            with _asked(directory) as control:
                control.stop(mine)
            stopped += mine
        elif mine:
            stopped += _stop_left(directory, mine, err)
    for installed in managed:
        theirs = [name for name in names_of(installed) if name in names]
        if everything or theirs:
            stopped += stop_installed(installed, theirs)
    if as_json:
        print_json(out, {"schema": "launch.stop/v1", "stopped": stopped})
    else:
        if called_off:
            out.line("called off a start that was still compiling")
        out.line(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


def _stop_fleet(directory: Path, status: FleetStatus, err: Terminal) -> list[str]:
    """End a fleet, its runtime too, and what a dead runtime left of it; gives what was ended, by name."""
    running = [p.name for p in status.processes if p.pid is not None]
    if status.runtime_pid is not None:
        end_runtime(directory, wait_s=_STOP_WAIT_S, say=err.line)
        left = _stop_left(directory, (), err)
        # one that is stopped before it started a server has only its own name
        return running + [name for name in left if name not in running] or [status.deployment]
    return _stop_left(directory, (), err)


def _stop_left(directory: Path, names: tuple[str, ...], err: Terminal) -> list[str]:
    """Stop what a dead runtime left, by its state files (all, or `names`). SuperviseError when one lives again."""
    try:
        report = stop_orphans(directory, names)
    except RuntimeAliveError:
        raise SuperviseError([no_answer_finding(directory)]) from None
    for bad in report.rejected:
        err.line(f"{bad.path} was not trusted, nothing was signalled: {bad.reason}")
    return [o.name for o in report.stopped]


@contextlib.contextmanager
def _asked(directory: Path) -> Iterator[ControlClient]:
    """The runtime of `directory`, to be asked. SuperviseError: it does not answer; ConfigError: it has no such name."""
    try:
        with reach_runtime(directory) as control:
            yield control
    except NoRuntimeError:
        raise SuperviseError([no_answer_finding(directory)]) from None
    except KeyError as error:
        message = str(error.args[0])
        finding = Finding(code="supervise/unknown-name", severity="error", key="", message=message)
        raise ConfigError([finding]) from None


def reload_servers(names: tuple[str, ...], *, as_json: bool, no_color: bool) -> int:
    """`launch reload`: compile again with the overrides of `up` and those among `names`, hand it to the runtime."""
    from launcher.cli.arguments import is_override
    from launcher.cli.fleet import recompile
    from launcher.cli.reinstall import reload_installed
    from launcher.cli.reloaded import restart_reasons, show_reloaded, without_those_down

    out, err = terminals(no_color=no_color)
    overrides = tuple(word for word in names if is_override(word))
    names = tuple(word for word in names if word not in overrides)
    statuses = {d: s for d, s in fleets().items() if s.runtime_pid is not None}
    managed = installed_here()
    if not statuses and not managed:
        finding = Finding(
            code="supervise/nothing-runs",
            severity="error",
            key="",
            message="no runtime lives, so that nothing was reloaded",
            notes=("`launch up` starts one; while it still compiles, it is not there yet",),
        )
        raise SuperviseError([finding])
    _require_known(names, [*statuses.values(), *map(fleet_status, managed)])
    results = []
    for directory, status in statuses.items():
        mine = tuple(p.name for p in status.processes if p.name in names)
        if names and not mine:
            continue
        reasons = restart_reasons(directory)
        target, findings = recompile(directory, overrides)
        show_findings(err, findings)
        why = reasons(target, mine)
        with _asked(directory) as control:
            done = control.reload(mine, target)
            now = control.status()
        results.append({"deployment": status.deployment, **without_those_down(done, now), "reasons": why})
    for installed in managed:
        theirs = [name for name in names_of(installed) if name in names]
        if theirs or not names:
            done = reload_installed(installed, theirs, overrides, err)
            now = fleet_status(again(installed))
            results.append({"deployment": installed.name, **without_those_down(done, now)})
    if as_json:
        print_json(out, {"schema": "launch.reload/v1", "fleets": results})
    for result in results if not as_json else ():
        show_reloaded(out, result)
    return SuperviseError.exit_code if any(result.get("failed") for result in results) else 0


def show_logs(name: str, *, follow: bool, lines: int) -> int:
    """`launch logs`. A log that is cut or replaced meanwhile is followed from its new start."""
    out, _ = terminals()
    for installed in installed_here():
        if name in names_of(installed):
            return follow_journal(installed, name, follow=follow, lines=lines)
    statuses = list(fleets().values())
    files = [p.log_file for s in statuses for p in s.processes if p.name == name and p.log_file]
    if not files:
        files = [str(f) for d in known_deployments() for f in (deployment_state_dir(d) / "logs").glob(f"{name}.log")]
    if not files:
        _require_known((name,), statuses)
        return 0
    path = Path(files[0])
    from launcher.supervise.logs import tail

    for line in tail(path, lines):
        out.line(line)
    position = path.stat().st_size if path.exists() else 0
    while follow:
        time.sleep(0.2)
        try:
            size = path.stat().st_size
            position = min(position, size) if size >= position else 0
            with path.open("rb") as file:
                file.seek(position)
                chunk = file.read(1 << 20)
        except FileNotFoundError:
            position = 0
            continue
        position += len(chunk)
        if chunk:
            out.stream.write(chunk.decode(errors="replace"))
            out.stream.flush()
    return 0
