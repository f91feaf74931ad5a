"""`launch up`: compile, check this host, hand the deployment to a runtime, show how it starts."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from launcher import files
from launcher.base.decoding import UNREADABLE
from launcher.base.regular import read_regular
from launcher.cli.arguments import later_wins
from launcher.cli.ask import AskThread, curl
from launcher.cli.findings import show_findings
from launcher.cli.installed import installed_here
from launcher.cli.onefile import switch_command
from launcher.cli.progress import ProgressView
from launcher.cli.reloaded import served_manifest
from launcher.cli.terminal import Terminal, terminals
from launcher.cli.this_host import host_findings, part_of_host
from launcher.compiler import Compilation, compile_fleet, error_class, render
from launcher.errors import ConfigError, Finding, HostError, LaunchError, Location, SuperviseError, fault, has_errors
from launcher.files.state import asked_at_ns, deployment_state_dir, start_under_way, state_root
from launcher.ir.deployment import Deployment, RenderedFile
from launcher.ir.fleet import FleetManifest
from launcher.ir.plan import FleetPlan
from launcher.manifest import diff_manifests
from launcher.proving import prove_here
from launcher.supervise import LOCK_NAME, offline_status, runtime_holder
from launcher.supervise.events import AnyEvent, FleetReady, Stopping

if TYPE_CHECKING:
    from launcher.render.fleet import Rendered

REQUEST_NAME = "request.json"
DEPLOYMENT_NAME = "deployment"


class UpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` was asked for, kept so that `reload` can compile the same again. Paths are absolute."""

    schema: str = "launch.request/v1"
    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...]
    host: str | None = None
    """The name of this host among several; None: the fleet is for one machine."""


class Announcer:
    """Shows events; once the fleet is ready, says how to talk to it, or asks it a question."""

    def __init__(self, show: Callable[[AnyEvent], None], on_ready: Callable[[str], AskThread | None] | None) -> None:
        """`on_ready` is called with the front's address, and returns the question that it asks, if any."""
        self._show, self._on_ready = show, on_ready
        self.question: AskThread | None = None
        self.was_ready = False

    def __call__(self, event: AnyEvent) -> None:
        """Show one event."""
        if isinstance(event, Stopping) and self.question is not None:
            self.question.dropped = True
        self._show(event)
        if isinstance(event, FleetReady):
            self.was_ready = True
            if self._on_ready is not None and event.front:
                self.question = self._on_ready(event.front)


def bring_up(
    overrides: list[str],
    config_dirs: list[Path],
    *,
    detach: bool,
    ask: str | None,
    host: str | None = None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Run `launch up`: check everything first; nothing is started if this host cannot run the plan.

    Of a fleet for several hosts, `host` (or the one with this machine's name) runs its own part here.
    """
    out, err = terminals()
    asked_ns = asked_at_ns()
    with start_under_way():
        rendered, target = _prepare(overrides, config_dirs, host, err, verbose=verbose)
    progress = ProgressView(err, verbose=verbose)
    on_ready = None if as_json else functools.partial(_report_ready, out, rendered, ask, detach=detach)
    announcer = Announcer(functools.partial(out.json, indent=0) if as_json else progress, on_ready)
    from launcher.runtime import run, spawn_detached

    try:
        if detach:
            spawn_detached(target, on_event=announcer, asked_ns=asked_ns)
        else:
            code = run(target, on_event=announcer, asked_ns=asked_ns)
    except KeyboardInterrupt:
        progress.finish()
        err.line("stopped")
        raise
    if detach:
        if announcer.question is not None:
            announcer.question.join()
        return 0
    # told to stop before it was ever ready: the start did not succeed
    return code if announcer.was_ready else 128 + signal.SIGINT


def _report_ready(out: Terminal, fleet: Rendered, ask: str | None, front: str, *, detach: bool) -> AskThread | None:
    """Print a request that anyone can paste; or with `ask`, ask that and print the answer first."""
    servers, key_file = fleet.manifest.servers, fleet.routes.front.api_key_file
    model = fleet.routes.default or (servers[0].name if servers else "")
    if not ask:
        out.line(curl(front, model, "Say hello.", key_file))
        return None
    ends = "`launch stop --all`" if detach else "Ctrl-C"
    question = AskThread(out, front, model, ask, key_file=key_file, ends=ends)
    question.start()
    return question


def _prepare(
    overrides: list[str], config_dirs: list[Path], host: str | None, err: Terminal, *, verbose: bool
) -> tuple[Rendered, Path]:
    """Compile, check this host and write what the runtime reads; returns it and its folder. Raises LaunchError."""
    whole = part_of_host(compile_fleet(overrides, config_dirs=config_dirs), host)
    require_not_installed(whole.plan.deployment)
    here = prove_here(whole)
    compiled = here.compiled
    rendered = render(compiled)
    manifest = rendered.manifest
    show_findings(err, [f for f in compiled.findings if f.severity != "note" or verbose])
    _make_server_key(compiled.plan)
    examination, _ = host_findings(compiled, manifest, rendered.routes)
    found = (*examination, *here.findings)
    if has_errors(found):
        found = _with_switch_note(found, rendered, switch_command(overrides, config_dirs), err)
        raise (error_class(found) or HostError)(found)
    show_findings(err, found)
    _require_stopped(manifest)
    state = _state_dir(manifest)
    request = UpRequest(
        overrides=tuple(overrides), config_dirs=tuple(str(d) for d in config_dirs), host=compiled.plan.on or None
    )
    return rendered, write_up(state, rendered.deployment, msgspec.json.encode(request))


def _with_switch_note(
    found: tuple[Finding, ...], rendered: Rendered, command: str, err: Terminal
) -> tuple[Finding, ...]:
    """The findings; if another fleet of ours has the front's port, show what `command` would do instead.

    Findings that the other fleet has ports of servers, too, are then left out.
    """
    taken = [f for f in found if f.code == "host/port-taken"]
    other = next(filter(None, (re.search(r"the front of (\S+) in (.+)\)$", f.message) for f in taken)), None)
    holder = runtime_holder(Path(other[2])) if other else None
    if other is None or holder is None:
        return found
    from launcher.cli.coming import runtime_change, show_fleet_changes

    show_fleet_changes(err, runtime_change(served_directory(Path(other[2])), rendered, command=command))
    note = f"`{command}` makes {other[1]} this fleet, and leaves up what both have; `launch down` ends it"
    theirs = f" of {other[1]} in {other[2]})"
    rest = (f for f in found if f not in taken or "the front of " in f.message or not f.message.endswith(theirs))
    return tuple(msgspec.structs.replace(f, notes=(note,)) if f.message.endswith(other[0]) else f for f in rest)


def require_not_installed(deployment: str) -> None:
    """Raise HostError if `deployment` is installed, running or not: it can have only one runtime."""
    for installed in installed_here([]):
        if installed.name == deployment:
            user = " --user" if installed.layout.scope == "user" else ""
            raise HostError.of(
                "supervise/already-running",
                f"{deployment} is installed: systemd{user} runs it",
                "`launch reload` starts it, and takes over what changed",
                f"`launch uninstall{user} {deployment}` takes it away; then `launch up` runs it",
            )


def _require_stopped(manifest: FleetManifest) -> None:
    """Raise HostError if a runtime serves this deployment: its files must not change meanwhile."""
    state = deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir)
    pid = offline_status(state).runtime_pid
    if pid is not None:
        runtime = f"its runtime is pid {pid}" if pid else f"{state / LOCK_NAME} is held and does not say by whom"
        raise HostError.of(
            "supervise/already-running",
            f"{manifest.deployment} is already running, {runtime}",
            "`launch status` shows it, `launch reload KEY=VALUE` changes it, `launch stop --all` ends it",
        )


def _state_dir(manifest: FleetManifest) -> Path:
    """Create the deployment's state directory; if config puts it elsewhere, the usual place links to it."""
    state = deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir, create=True)
    usual = state_root() / manifest.deployment
    if state != usual and not usual.exists():
        with files.writing(usual):
            usual.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            usual.unlink(missing_ok=True)
            usual.symlink_to(state)
    return state


def _make_server_key(plan: FleetPlan) -> None:
    """Create the key file of the servers, if the config names one that does not exist. Raises HostError."""
    path = plan.config.runtime.server_key_file
    if path is not None:
        with files.writing(Path(path)):
            files.make_key_file(Path(path))


def write_up(state: Path, deployment: Deployment, request: bytes | None) -> Path:
    """Write the deployment, and `request` unless it is None, into the state directory. Raises HostError.

    The folder is made private: a runtime takes a deployment over only if no other user may write it.
    """
    target = state / DEPLOYMENT_NAME
    files.write_deployment(deployment, target)
    with files.writing(target):
        target.chmod(0o700)
    if request is not None:
        with files.writing(state / REQUEST_NAME):
            files.write_atomic(state / REQUEST_NAME, request)
    return target


class Recompiled(NamedTuple):
    """What a request compiles to now for the fleet in `state`; nothing of it is written yet."""

    state: Path
    request: UpRequest
    compiled: Compilation
    rendered: Rendered


def recompile(state: Path, overrides: tuple[str, ...] = ()) -> Recompiled:
    """What the fleet in `state` was started with, compiled again, with more `overrides`.

    Raises what `read_request` and `compile_for` raise.
    """
    request = read_request(state)
    words = later_wins(request.overrides, overrides)
    try:
        return compile_for(state, msgspec.structs.replace(request, overrides=words))
    except LaunchError as error:
        raise type(error)(_kept_noted(error.findings, words, overrides)) from None


def _kept_noted(findings: Iterable[Finding], words: Sequence[str], typed: Sequence[str]) -> tuple[Finding, ...]:
    """`findings`, with a note on each that is about an override of `words` that nobody has `typed` now."""
    from launcher.config.typed import COMMAND_LINE

    kept = {Location(file=COMMAND_LINE, line=at) for at, word in enumerate(words, 1) if word not in typed}
    note = "this override is kept from an earlier start or reload; `launch switch` drops kept overrides"
    return tuple(msgspec.structs.replace(f, notes=(*f.notes, note)) if f.location in kept else f for f in findings)


def compile_for(state: Path, request: UpRequest) -> Recompiled:
    """Compile `request` for the fleet in `state`. Writes nothing.

    Raises what a compilation raises, ConfigError if the deployment has another name, HostError if a file is missing
    that it needs.
    """
    compiled = compile_fleet(request.overrides, config_dirs=[Path(d) for d in request.config_dirs])
    here = prove_here(part_of_host(compiled, request.host) if request.host else compiled)
    rendered = render(here.compiled)
    if has_errors(here.findings):
        raise (error_class(here.findings) or HostError)(here.findings)
    if rendered.deployment.name != state.name:
        message = f"{state.name} runs, these overrides make {rendered.deployment.name}"
        note = "`launch stop --all` ends what runs; then `launch up` starts the other"
        raise ConfigError.of("manifest/other-deployment", message, note)
    _require_files(state, rendered.manifest)
    return Recompiled(state, request, here.compiled, rendered)


def _require_files(state: Path, manifest: FleetManifest) -> None:
    """Raise HostError if a server that would be started anew lacks a file: then what runs is kept.

    A plan needs no files (`launch.lock`). Servers that run on are not checked: their disk may be away.
    """
    before = served_manifest(state)
    diff = diff_manifests(before, manifest) if before is not None else None
    anew = {*diff.started, *diff.restarted} if diff is not None else set()
    note = "nothing was changed: put it in its place, or mount its disk, and try again"
    needed = ((s.name, path) for s in manifest.servers if s.name in anew and s.start != "never" for path in s.files)
    found = [
        fault("host/file-missing", f"servers.{name}", f"{name} needs {path}, which is not there", note)
        for name, path in needed
        if not os.path.exists(path)  # noqa: PTH110 - paths are strings in a manifest
    ]
    if found:
        raise HostError(found)


def write_compiled(new: Recompiled) -> Path:
    """Write what the fleet's runtime is to take over, and what it was asked for; where. Raises HostError."""
    _make_server_key(new.compiled.plan)
    return write_up(new.state, new.rendered.deployment, msgspec.json.encode(new.request))


def written_last(state: Path) -> tuple[Deployment, bytes]:
    """What `write_up` wrote into `state` last, to be written again. Raises OSError."""
    directory = state / DEPLOYMENT_NAME
    kept = []
    for path in files.owned_files(directory):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            file = directory / path
            executable = bool(file.stat().st_mode & 0o100)
            kept.append(RenderedFile(path=path, text=file.read_text(encoding="utf-8"), executable=executable))
    return Deployment(name=state.name, input_digest="", files=tuple(kept)), (state / REQUEST_NAME).read_bytes()


def read_request(state: Path) -> UpRequest:
    """The request with which the fleet in `state` was started, or reloaded since.

    Raises SuperviseError if `up` left no request there, or if the runtime serves another directory than the one that
    `up` writes.
    """
    holder = runtime_holder(state)
    served = Path(holder.deployment_dir) if holder is not None else state / DEPLOYMENT_NAME
    if served.resolve() != (state / DEPLOYMENT_NAME).resolve():
        # A request here is one of an earlier `up`: it says nothing about what runs.
        raise _no_request(f"{state.name} was started from {served}, not by `launch up`")
    request = stored_request(state)
    if isinstance(request, Exception):
        raise _no_request(f"{state / REQUEST_NAME} cannot be read: {request}")
    return request


def served_directory(state: Path) -> Path:
    """Directory of the compiled deployment that the runtime of `state` serves, or that `up` wrote there last."""
    holder = runtime_holder(state)
    return Path(holder.deployment_dir) if holder is not None and holder.deployment_dir else state / DEPLOYMENT_NAME


def stored_request(state: Path) -> UpRequest | Exception:
    """The last request of `up` in `state`, or the error why it cannot be read."""
    try:
        return msgspec.json.decode(read_regular(state / REQUEST_NAME), type=UpRequest)
    except (OSError, *UNREADABLE) as error:
        return error


def _no_request(message: str) -> SuperviseError:
    note = "a fleet that `launch serve` runs is reloaded by rendering again and restarting serve"
    return SuperviseError.of("supervise/no-request", message, note)
