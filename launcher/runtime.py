"""The runtime: from `generated/<deployment>/` to a served fleet, in one process and one event loop.

Lock → adopt or stop leftovers → open the front (it answers /health while models load) → start servers in order →
serve → drain → stop. `python -m launcher.runtime DIR` is what `spawn_detached` and units run. I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import ConfigError, Finding, HostError, LaunchError, SuperviseError
from launcher.files import (
    LockHeldError,
    LockOwner,
    OwnedLock,
    deployment_state_dir,
    write_atomic,
)
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.live import FleetStatus
from launcher.manifest import argv_digest, decode_fleet, decode_routes
from launcher.supervise import LOCK_NAME, Supervisor, boot_id, early_finding, proc_stat, stopping_finding
from launcher.supervise.control import ControlClient, NoRuntimeError, control_socket, serve_control
from launcher.supervise.detached import spawn_runtime
from launcher.supervise.events import AnyEvent, FleetFailed, FleetReady, RuntimeStarted, encode_event

__all__ = ["ControlClient", "NoRuntimeError", "read_deployment", "run", "spawn_detached"]

_LOG = logging.getLogger("launch.runtime")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ignore_event(_: AnyEvent) -> None:
    """For callers that do not watch."""


def run(
    deployment_dir: Path,
    *,
    on_event: Callable[[AnyEvent], None] = ignore_event,
    route_only: bool = False,
    api_key_file: Path | None = None,
) -> int:
    """Run the deployment in the foreground until SIGTERM, SIGINT or a stop over the control socket; 0 then.

    `route_only` starts and stops no server: the front alone, for fleets whose processes systemd owns; it
    reads its keys from `api_key_file` where that is given (a unit's credential), else where the routes say.
    `on_event` is called in the event loop and must not block. A second signal kills instead of draining.
    Raises ConfigError (unreadable manifest), HostError (already running, port taken), SuperviseError (a fatal server
    did not become ready, or a stop over the control socket came before all were; everything that was started is
    stopped), each after a `FleetFailed` event.
    """
    import uvloop  # noqa: PLC0415 - only who runs a fleet pays for it

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                _route_only(deployment_dir, on_event, api_key_file)
                if route_only
                else _Runtime(deployment_dir, on_event).main()
            )
    except LaunchError as error:
        on_event(FleetFailed(exit_code=error.exit_code, findings=error.findings))
        raise
    return 0


def spawn_detached(deployment_dir: Path, *, on_event: Callable[[AnyEvent], None] = ignore_event) -> int:
    """Run the deployment in the background; return the runtime's pid once the fleet is ready. Raises as `run`."""
    manifest, _ = read_deployment(deployment_dir)
    state_dir = deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir, create=True)
    return spawn_runtime(deployment_dir, state_dir, on_event)


def read_deployment(deployment_dir: Path, *, trusted: bool = False) -> tuple[FleetManifest, RoutingTable]:
    """`fleet.json` and `routes.json` of a rendered deployment. Raises ConfigError.

    With `trusted`, the directory and both files must be ours or root's, and nobody else's to write: what they say
    is executed, and whoever asks for it over the control API need not be who wrote them.
    """
    fleet, routes = _read_pair(deployment_dir, trusted=trusted)
    manifest = decode_fleet(fleet, str(deployment_dir / "fleet.json"))
    table = decode_routes(routes, str(deployment_dir / "routes.json"))
    for server in manifest.servers:
        if server.argv_digest != argv_digest(server.argv):
            message = (
                f"{deployment_dir / 'fleet.json'} cannot be used: argv of {server.name} is not what its digest says"
            )
            notes = ("run `launch render` to write it again",)
            raise ConfigError(
                [Finding(code="manifest/invalid", severity="error", key="", message=message, notes=notes)]
            )
    return manifest, table


def _read_pair(directory: Path, *, trusted: bool) -> tuple[bytes, bytes]:
    """The bytes of both files, read through the descriptors that were looked at. Raises ConfigError."""
    path = directory
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if trusted:
                _require_ours(path, os.fstat(descriptor))
            texts = []
            for name in ("fleet.json", "routes.json"):
                path = directory / name
                # never blocks, not even on a pipe that lies there
                file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=descriptor)
                with os.fdopen(file, "rb") as opened:
                    if not stat.S_ISREG(os.fstat(file).st_mode):
                        raise OSError(errno.EINVAL, "it is no regular file")
                    if trusted:
                        _require_ours(path, os.fstat(file))
                    texts.append(opened.read())
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        message = f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        notes = ("`launch render` writes it",)
        finding = Finding(code="manifest/missing", severity="error", key="", message=message, notes=notes)
        raise ConfigError([finding]) from None
    return texts[0], texts[1]


def _require_ours(path: Path, facts: os.stat_result) -> None:
    """Raises ConfigError unless `path` is ours or root's, and only its owner may write it."""
    if facts.st_uid not in (0, os.getuid()):
        why = f"it belongs to user {facts.st_uid}, this runtime runs as {os.getuid()}"
    elif facts.st_mode & 0o022:
        why = f"others than its owner may write it (mode {facts.st_mode & 0o7777:04o})"
    else:
        return
    finding = Finding(
        code="manifest/untrusted",
        severity="error",
        key="",
        message=f"{path} is not taken over: {why}",
        notes=(f"chmod go-w {path}, and have it owned by the user that runs the fleet",),
    )
    raise ConfigError([finding])


class _Runtime:
    """One run of one deployment; implements `launcher.ir.live.Control`."""

    def __init__(self, deployment_dir: Path, on_event: Callable[[AnyEvent], None]) -> None:
        """Reads the manifest. Raises ConfigError."""
        self._directory = deployment_dir.absolute()
        self._on_event = on_event
        self._manifest, self._table = read_deployment(self._directory)
        self._state_dir = deployment_state_dir(
            self._manifest.deployment, self._manifest.supervisor.state_dir, create=True
        )
        self._url = _url(self._table)
        self._supervisor = Supervisor(
            self._manifest,
            state_dir=self._state_dir,
            write=lambda path, data: write_atomic(path, data, mode=0o600),
            emit=self._emit,
            front=self._url,
        )
        self._supervisor.runtime_pid = os.getpid()
        self._front: Any = None
        self._told = asyncio.Event()
        self._reason = "control"
        self._serving: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[dict[str, Any]]] = set()
        self._started = False
        self._ending = False

    # --- Control ---------------------------------------------------------------------------------------------

    def status(self) -> FleetStatus:
        """Every process now."""
        return self._supervisor.status()

    async def stop(self, names: tuple[str, ...]) -> None:
        """Stop `names`; with none, have everything end (at once it returns: the answer itself is in flight)."""
        if names:
            await self._supervisor.stop(names)
        else:
            self._told.set()

    async def reload(self, names: tuple[str, ...], deployment_dir: str | None) -> dict[str, Any]:
        """Take over a manifest and its routes; several wait for each other.

        Raises ConfigError when they are not of this deployment, or unreadable, SuperviseError while the fleet is
        still starting, and when it is stopping, also when that begins meanwhile.
        """
        self._refuse_unless_up()
        task = asyncio.create_task(self._take_over(names, deployment_dir))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and self._ending:
                raise SuperviseError([stopping_finding(self._manifest.deployment)]) from None
            raise

    def _refuse_unless_up(self) -> None:
        """Raises SuperviseError when everything was told to end, or has not come up yet."""
        if self._ending or self._told.is_set():
            raise SuperviseError([stopping_finding(self._manifest.deployment)])
        if not self._started:
            raise SuperviseError([_starting(self.status())])

    async def _take_over(self, names: tuple[str, ...], deployment_dir: str | None) -> dict[str, Any]:
        """One reload, when it is its turn."""
        async with self._reloading:
            self._refuse_unless_up()
            directory, manifest, table = self._read(deployment_dir)
            unknown = set(names) - {p.name for p in self.status().processes} - {s.name for s in manifest.servers}
            if unknown:
                raise KeyError(min(unknown))
            self._front.replace_table(table)
            changes = await self._supervisor.reload(manifest, names)
            self._directory, self._manifest, self._table = directory, manifest, table
            return {
                "started": list(changes.started),
                "stopped": list(changes.stopped),
                "restarted": list(changes.restarted),
                "kept": list(changes.kept),
            }

    def _read(self, deployment_dir: str | None) -> tuple[Path, FleetManifest, RoutingTable]:
        """The deployment to take over (None = the present one), and where it is. Raises ConfigError."""
        directory = self._directory if deployment_dir is None else Path(deployment_dir).absolute()
        manifest, table = read_deployment(directory, trusted=True)
        if manifest.deployment != self._manifest.deployment:
            message = f"{directory} is {manifest.deployment}, this runtime serves {self._manifest.deployment}"
            finding = Finding(code="manifest/other-deployment", severity="error", key="", message=message)
            raise ConfigError([finding])
        return directory, manifest, table

    # --- the run ---------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """The whole run, with the deployment's lock held."""
        lock = OwnedLock(self._state_dir / LOCK_NAME)
        mine = proc_stat(os.getpid())
        owner = LockOwner(
            pid=os.getpid(),
            start_ticks=mine.start_ticks if mine else 0,
            boot_id=boot_id(),
            deployment=self._manifest.deployment,
            deployment_dir=str(self._directory),
            front=self._url,
        )
        with _signals(self._on_signal):
            try:
                lock.acquire(owner)
            except LockHeldError as error:
                raise HostError([_held(self._manifest.deployment, error)]) from None
            try:
                # At once: who sees the lock held can ask from now on, and is answered when the doors open.
                with control_socket(self._state_dir) as sock:
                    await self._hold(sock)
            finally:
                # Nothing can start a server any more; one that a late start left would live on without a runtime.
                await self._supervisor.sweep()
                lock.release()

    async def _hold(self, control_sock: socket.socket) -> None:
        """Open the doors, run the fleet until told, close in order."""
        from launcher import route  # noqa: PLC0415 - uvicorn and starlette, 0.15 s

        control = route.control_app(self)
        self._front = route.Front(self._table, self._supervisor, control=control)
        unit, drain_s = self._table.front, self._manifest.supervisor.drain_timeout_s
        sock = route.bind(self._front, unit.host, unit.port)
        closing = asyncio.Event()
        self._emit(
            RuntimeStarted(
                deployment=self._manifest.deployment,
                pid=os.getpid(),
                state_dir=str(self._state_dir),
                front=self._url,
                processes=self._supervisor.boot_names(),
            )
        )
        async with serve_control(control, control_sock):
            self._serving = asyncio.create_task(
                route.serve(
                    self._front, host=unit.host, port=unit.port, sock=sock, shutdown=closing, drain_timeout_s=drain_s
                )
            )
            try:
                await self._run_fleet(self._serving)
            finally:
                await self._end_reloads()
                closing.set()
                await asyncio.gather(self._serving, return_exceptions=True)
                await self._supervisor.stop_all(self._reason)

    async def _end_reloads(self) -> None:
        """Cut short the reloads that run or wait, and refuse more: they would start what is being stopped."""
        self._ending = True
        reloads = tuple(self._reloads)
        for task in reloads:
            task.cancel()
        await asyncio.gather(*reloads, return_exceptions=True)

    async def _run_fleet(self, serving: asyncio.Task[None]) -> None:
        """Adopt, start, then wait to be told to end. Raises what made it impossible to go on."""
        told = asyncio.create_task(self._told.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait({told, starting, serving}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not starting.exception():
                await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            starting.cancel()
            told.cancel()
            await asyncio.gather(starting, told, return_exceptions=True)
        for task in (starting, serving):
            if task.done() and not task.cancelled():
                task.result()
        if not self._started and self._reason == "control":
            raise SuperviseError([early_finding(self._manifest.deployment)])

    async def _start(self) -> None:
        """Find what an earlier runtime left, start the rest, tell systemd."""
        await self._supervisor.recover()
        await self._supervisor.start()
        self._started = True
        _notify("READY=1")

    def _emit(self, event: AnyEvent) -> None:
        """Pass an event on; whoever watches cannot stop the fleet by failing."""
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - whatever it is, it is logged
            _LOG.exception("the watcher of events failed")

    def _on_signal(self, number: signal.Signals) -> None:
        """End; if that is under way, end now."""
        if self._told.is_set():
            self._supervisor.kill_all()
            if self._serving is not None:
                self._serving.cancel()
            return
        self._reason = number.name
        _notify("STOPPING=1")
        self._told.set()


async def _route_only(deployment_dir: Path, on_event: Callable[[AnyEvent], None], api_key_file: Path | None) -> None:
    """The front alone, until SIGTERM: somebody else (systemd units) keeps the servers running."""
    from launcher import route  # noqa: PLC0415 - late, as above

    manifest, table = _with_keys(deployment_dir, api_key_file)
    front = route.Front(table, route.StaticUpstreams())
    sock = route.bind(front, table.front.host, table.front.port)
    url = _url(table)
    told = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        """SIGHUP: read the routes again, or keep the old ones; any other ends."""
        if number != signal.SIGHUP:
            told.set()
            return
        try:
            front.replace_table(_with_keys(deployment_dir, api_key_file)[1])
        except LaunchError as error:
            _LOG.error("the routes are kept: %s", error)

    on_event(RuntimeStarted(deployment=manifest.deployment, pid=os.getpid(), state_dir="", front=url, processes=()))
    on_event(FleetReady(seconds=0, front=url, ready=()))
    _notify("READY=1")
    with _signals(on_signal):
        await route.serve(
            front,
            host=table.front.host,
            port=table.front.port,
            sock=sock,
            shutdown=told,
            drain_timeout_s=manifest.supervisor.drain_timeout_s,
        )


def _with_keys(deployment_dir: Path, api_key_file: Path | None) -> tuple[FleetManifest, RoutingTable]:
    """The deployment, with its keys read from `api_key_file` where that is given. Raises ConfigError."""
    manifest, table = read_deployment(deployment_dir)
    if api_key_file is not None:
        unit = msgspec.structs.replace(table.front, api_key_file=str(api_key_file))
        table = msgspec.structs.replace(table, front=unit)
    return manifest, table


@contextlib.contextmanager
def _signals(on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Within the block SIGTERM, SIGINT and SIGHUP (unless ignored, as under nohup) call `on_signal`."""
    loop = asyncio.get_running_loop()
    ours = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in ours:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in ours:
            loop.remove_signal_handler(number)


def _url(table: RoutingTable) -> str:
    """Where the front is reached from this machine."""
    unit = table.front
    host = "127.0.0.1" if unit.host in ("0.0.0.0", "::") else unit.host  # noqa: S104 - shown, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{unit.port}"


def _held(deployment: str, error: LockHeldError) -> Finding:
    """The finding for a second runtime."""
    owner = error.owner
    who = f"process {owner.pid} ({owner.deployment_dir})" if owner else "another process"
    return Finding(
        code="supervise/already-running",
        severity="error",
        key="",
        message=f"{deployment} is already run by {who}",
        notes=("`launch status` shows it, `launch reload` changes it, `launch stop --all` ends it",),
    )


def _starting(status: FleetStatus) -> Finding:
    """The finding for a reload that comes too early: two that start the same servers would meet."""
    waiting = ", ".join(f"{p.name} ({p.state})" for p in status.processes if p.state not in ("ready", "sleeping"))
    return Finding(
        code="supervise/starting",
        severity="error",
        key="",
        message=f"{status.deployment} is still starting: {waiting or 'its hooks run'}",
        notes=("`launch status` shows when it is ready; reload then",),
    )


def _notify(message: str) -> None:
    """Tell systemd (`NOTIFY_SOCKET`), where it runs us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def main(argv: Sequence[str]) -> int:
    """`python -m launcher.runtime DIR [--route-only] [--events-fd N]`; events as JSON lines on stderr.

    The events up to ready or failed also go to descriptor N. The exit code is that of the LaunchError.
    """
    descriptor = int(argv[argv.index("--events-fd") + 1]) if "--events-fd" in argv else -1
    if descriptor >= 0:
        os.set_inheritable(descriptor, False)

    def on_event(event: AnyEvent) -> None:
        nonlocal descriptor
        line = encode_event(event)
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        if descriptor >= 0:
            # Whoever watched may be gone: that is no reason to stop.
            with contextlib.suppress(OSError):
                os.write(descriptor, line)
            if isinstance(event, (FleetReady, FleetFailed)):
                os.close(descriptor)
                descriptor = -1

    try:
        return run(Path(argv[0]), on_event=on_event, route_only="--route-only" in argv)
    except LaunchError as error:
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
