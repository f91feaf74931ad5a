"""Commands about fleets that run: status and stop; and how any command finds and asks a runtime."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from launcher import supervise
from launcher.cli.findings import printable, show_findings
from launcher.cli.installed import fleet_status, installed_here, names_of, stop_installed
from launcher.cli.onefile import found_fleet_file
from launcher.cli.terminal import Terminal, terminals
from launcher.cli.terminal import watch as watch_screen
from launcher.errors import ConfigError, Finding, HostError, SuperviseError, fault
from launcher.files import cannot_read
from launcher.files.state import call_off, deployment_state_dir, known_deployments, state_root
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.sizes import gib
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.ending import no_answer_finding

_STATE_STYLE = {"ready": "green", "failed": "red", "backoff": "red", "starting": "yellow", "stopping": "yellow"}
_COLUMNS = (
    *("COMPONENT", "PORT", "PID", "STATUS", "MODEL", "PLANNED", "MEASURED", "IN RAM", "BUSY", "QUEUE", "TOK/S"),
    *("RESTARTS", "UP"),
)
_IF_KNOWN = {_COLUMNS.index(title) for title in ("IN RAM", "QUEUE", "TOK/S")}
_RIGHT = set(range(len(_COLUMNS))) - {_COLUMNS.index(title) for title in ("COMPONENT", "STATUS", "MODEL")}
_STOP_WAIT_S = 120.0


def fleets(problems: list[Finding] | None = None) -> dict[Path, FleetStatus]:
    """State directory → status of every fleet with a living process or runtime; the runtime is asked if it lives.

    A fleet whose state is gone is known by the marks of its processes. One that cannot be looked into is a finding in
    `problems`, and hides no other.
    """
    found: dict[Path, FleetStatus] = {}
    try:
        known = {*known_deployments(), *supervise.marked_deployments(state_root())}
    except HostError as error:
        if problems is None:
            raise
        problems += error.findings
        return found
    for name in sorted(known):
        directory = deployment_state_dir(name)
        try:
            status = supervise.offline_status(directory)
            if status.runtime_pid is not None:
                # while it starts or ends, what its state files say is the best that is known
                with contextlib.suppress(NoRuntimeError), ControlClient(directory) as control:
                    status = control.status()
        except OSError as error:
            if problems is not None:
                note = "whether it runs is not known; the others are as said"
                problems.append(cannot_read(error.filename or directory, error.strerror or str(error), note))
            continue
        if status.runtime_pid is not None or status.processes:
            found[directory] = status
    return found


def running_names() -> list[str]:
    """Names of all processes of all running and installed fleets."""
    installed = [name for fleet in installed_here() for name in names_of(fleet)]
    return [p.name for status in fleets().values() for p in status.processes] + installed


def names_up() -> list[str]:
    """Names of all processes that are not stopped, of all fleets: what a restart of everything restarts."""
    statuses = (*fleets().values(), *map(fleet_status, installed_here()))
    return [p.name for status in statuses for p in status.processes if p.state != "stopped"]


def require_known(names: Sequence[str], statuses: Iterable[FleetStatus]) -> None:
    """Raise ConfigError for names that no running fleet has."""
    known = sorted({p.name for status in statuses for p in status.processes})
    findings = []
    for name in (name for name in names if name not in known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'nothing runs'}"
        message = f"no running fleet has {name}"
        findings.append(fault("supervise/unknown-name", f"servers.{name}", message, hint))
    if findings:
        raise ConfigError(findings)


def show_status(names: tuple[str, ...], *, watch: bool, as_json: bool) -> int:
    """Run `launch status`.

    Returns exit code 7 if something that should run has failed, 6 if a fleet cannot be looked into.
    """
    out, err = terminals()
    statuses: list[FleetStatus] = []
    problems: list[Finding] = []

    def draw(page: Terminal) -> None:
        """Ask all fleets, and write the answers. Raises ConfigError for a name that no fleet has."""
        problems.clear()
        statuses[:] = [*fleets(problems).values(), *map(fleet_status, installed_here(problems))]
        require_known(names, statuses)
        if as_json:
            page.json({"schema": "launch.statuses/v1", "fleets": statuses})
            return
        for status in statuses:
            _fleet(page, status, names)
        if not statuses and not problems:
            page.line(_nothing_runs())

    if watch:
        watch_screen(out, draw)
    else:
        draw(out)
    show_findings(err, problems)
    if watch:
        return 0
    if any(p.state in {"failed", "backoff"} for s in statuses for p in s.processes):
        return SuperviseError.exit_code
    return HostError.exit_code if problems else 0


def _nothing_runs() -> str:
    path = found_fleet_file()
    if path is not None:
        return f"nothing runs; `launch` starts what {path} says, `launch plan` shows it"
    return "nothing runs; `launch init` finds your models, `launch profile=dev` starts the packaged one"


def _fleet(out: Terminal, status: FleetStatus, names: tuple[str, ...]) -> None:
    runtime = f"runtime pid {status.runtime_pid}"
    if not status.runtime_pid:
        runtime = out.style("no runtime" if status.runtime_pid is None else "its lock names no runtime", "red")
    if status.manager != "runtime":
        runtime = f"run by {status.manager}, {runtime}"
    front = f", front {status.front}" if status.front else ""
    out.line(f"{out.style(status.deployment, 'bold')}  {'ready' if status.ready else 'not ready'}, {runtime}{front}")
    shown = [p for p in status.processes if not names or p.name in names]
    out.table(_COLUMNS, [_row(p) for p in shown], right=_RIGHT, optional=_IF_KNOWN)
    for process in shown:
        _wrong(out, process)
    for target in status.targets:
        if target.met is not None and target.measured is not None:
            word = out.style("met", "green") if target.met else out.style("missed", "red")
            apart = target.measured - target.limit
            what = f"{target.name.replace('_', ' ')} {target.server}".strip()
            out.line(f"  target {what}: {word}: {target.measured:.2f}, {apart:+.2f} against {target.limit:g}")
    for hook in status.hooks:
        took = f" in {hook.seconds:.2f} s" if hook.seconds is not None else ""
        style = {"done": "green", "failed": "red"}.get(hook.state, "yellow")
        why = f": {printable(hook.error)}" if hook.error else ""
        out.line(f"  hook {hook.name}: {out.style(hook.state, style)}{took}{why}")
    for line in status.drift:
        out.line(f"  {out.style('drift', 'yellow')}: {printable(line)}")


def _wrong(out: Terminal, process: ProcessStatus) -> None:
    if process.error:
        style = _STATE_STYLE.get(process.state, "yellow")
        out.line(f"  {out.style(process.name, style)}: {printable(process.error)}")
    if process.starting_s is not None:
        out.line(f"  {out.style(process.name, 'yellow')}: {_start_line(process, process.starting_s)}")
    if process.breaker_s:
        again = f"asked again within {process.breaker_s:.0f} s, or as soon as it answers"
        out.line(f"  {process.name}: {out.style('requests failed', 'yellow')}: {again}")
    if process.rung:
        out.line(f"  {process.name}: {out.style('out of memory', 'yellow')}: now on rung {process.rung}")
    if process.drift:
        out.line(f"  {process.name}: {out.style('drift', 'yellow')}: {printable(process.drift)}")


def _start_line(process: ProcessStatus, starting_s: float) -> str:
    line = f"starting for {_duration(starting_s)}"
    if process.left_s is not None:
        line += f", about {_duration(process.left_s)} left"
    if process.load_s is not None and starting_s > process.load_s:
        line += f"; slower than the {_duration(process.load_s)} that reading it should take"
    return line


def _row(process: ProcessStatus) -> tuple[str, ...]:
    up = _duration(time.time() - process.started_at) if process.started_at and process.pid else ""
    busy = f"{process.in_flight}/{process.slots}" if process.slots and process.in_flight is not None else ""
    return (
        process.name,
        process.socket or str(process.port),
        str(process.pid or ""),
        process.state,
        process.model,
        gib(sum(process.planned_bytes.values())) if process.planned_bytes else "",
        gib(sum(process.measured_bytes.values())) if process.measured_bytes else "",
        _in_ram(process),
        busy,
        str(process.queued or ""),
        f"{process.tokens_per_second:.1f}" if process.tokens_per_second else "",
        str(process.restarts),
        up,
    )


def _in_ram(process: ProcessStatus) -> str:
    if process.in_ram_percent is None:
        return ""
    words = (f"{process.in_ram_percent:.0f}%", process.in_ram, "pinned" if process.pinned else "")
    return " ".join(filter(None, words))


def _duration(seconds: float) -> str:
    """Seconds as `42s`, `8m 23s`, `3h 5m` or `12d 4h`."""
    whole = max(0, int(seconds))
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // smaller}{part}"
    return f"{whole}s"


def stop_servers(names: tuple[str, ...], *, everything: bool, as_json: bool) -> int:
    """Run `launch stop`. A fleet without runtime is stopped by its state files, an installed one by systemd."""
    out, err = terminals()
    called_off = everything and not names and call_off()
    problems: list[Finding] = []
    statuses, managed = fleets(problems), installed_here(problems)
    if bool(names) == everything:
        message = "stop what? name servers, or stop all of them"
        raise ConfigError.of("config/usage", message, "launch stop NAME…", "launch stop --all")
    require_known(names, [*statuses.values(), *map(fleet_status, managed)])
    stopped: list[str] = []
    for directory, status in statuses.items():
        mine = tuple(p.name for p in status.processes if p.name in names)
        stopped += _stop_fleet(directory, status, err) if everything else _stop_named(directory, status, mine, err)
    for installed in managed:
        theirs = [name for name in names_of(installed) if name in names]
        if everything or theirs:
            stopped += stop_installed(installed, theirs)
    if as_json:
        out.json({"schema": "launch.stop/v1", "stopped": stopped})
    else:
        if called_off:
            out.line("called off a start that was still compiling")
        if stopped or not problems:
            out.line(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    show_findings(err, problems)
    return HostError.exit_code if problems and everything else 0


def _stop_fleet(directory: Path, status: FleetStatus, err: Terminal) -> list[str]:
    """End a fleet, its runtime too, and what a dead runtime left of it. Returns the names of what was ended."""
    if status.runtime_pid is None:
        return _stop_left(directory, (), err)
    running = [p.name for p in status.processes if p.pid is not None]
    supervise.end_runtime(directory, wait_s=_STOP_WAIT_S, report=err.line)
    try:
        left = _stop_left(directory, (), err)
    except SuperviseError:  # somebody removed its lock a moment ago, and it has made that again
        supervise.end_runtime(directory, wait_s=_STOP_WAIT_S, report=err.line)
        left = _stop_left(directory, (), err)
    # one that is stopped before it started a server has only its own name
    return running + [name for name in left if name not in running] or [status.deployment]


def _stop_named(directory: Path, status: FleetStatus, names: tuple[str, ...], err: Terminal) -> Sequence[str]:
    if names and status.runtime_pid is None:
        return _stop_left(directory, names, err)
    if names:
        with asked(directory) as control:
            control.stop(names)
    return names


def _stop_left(directory: Path, names: tuple[str, ...], err: Terminal) -> list[str]:
    """Stop what a dead runtime left, by its state files (all, or `names`).

    Raises SuperviseError if a runtime lives again.
    """
    try:
        report = supervise.stop_orphans(directory, names)
    except supervise.RuntimeAliveError:
        raise SuperviseError([no_answer_finding(directory)]) from None
    for bad in report.rejected:
        err.line(f"{bad.path} was not trusted, nothing was signalled: {bad.reason}")
    return [o.name for o in report.stopped]


@contextlib.contextmanager
def asked(directory: Path) -> Iterator[ControlClient]:
    """A client of the runtime of `directory`, for the block.

    Raises SuperviseError if the runtime does not answer, ConfigError if it does not know a name.
    """
    try:
        with supervise.reach_runtime(directory) as control:
            yield control
    except NoRuntimeError:
        raise SuperviseError([no_answer_finding(directory)]) from None
    except KeyError as error:
        raise ConfigError.of("supervise/unknown-name", str(error.args[0])) from None


def nothing_runs(so: str) -> SuperviseError:
    """The error of a command that changes a running fleet, if none runs; `so`: the consequence, in words."""
    return SuperviseError.of(
        "supervise/nothing-runs",
        f"no runtime lives, so that {so}",
        "`launch up` starts one; while it still compiles, it is not there yet",
    )


def state_dirs(problems: list[Finding]) -> list[tuple[str, Path]]:
    """Name and state directory of each fleet that ever ran here, and of each that is installed.

    An installed one's belongs to its runtime alone: if we may not look into it, that is a finding in `problems`. Raises
    HostError if the directory above those of `launch up` cannot be read.
    """
    found = [(name, deployment_state_dir(name)) for name in known_deployments()]
    for installed in installed_here(problems):
        try:
            found += [(installed.name, installed.state_dir)] if installed.state_dir.is_dir() else []
        except OSError as error:
            note = f"what the runtime of {installed.name} keeps is for root and itself: sudo launch …"
            problems.append(cannot_read(installed.state_dir, error.strerror or str(error), note))
    return found


def all_fleets() -> dict[Path, FleetStatus]:
    """Directory where a runtime is asked → status, for every living fleet of `launch up` and every installed one."""
    return fleets() | {installed.state_dir: fleet_status(installed) for installed in installed_here()}
