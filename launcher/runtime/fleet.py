"""One run of one deployment: its lock, its listeners, its fleet, and the control of it. I/O."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from launcher import files, supervise
from launcher.base.locks import LockOwner
from launcher.base.procfs import birth
from launcher.errors import ConfigError, SuperviseError
from launcher.events import FILE_NAME, EventLog
from launcher.files.state import deployment_state_dir, is_called_off
from launcher.ir.events import Happened
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.manifest import front_changes
from launcher.runtime.deployment import read_deployment
from launcher.runtime.host import front_url, notify, signals
from launcher.runtime.keeping import StateKeeper, keep_pins
from launcher.runtime.observing import Observer
from launcher.runtime.telling import happened
from launcher.supervise.control import control_socket, serve_control, socket_address
from launcher.supervise.events import AnyEvent, RuntimeStarted

_LOG = logging.getLogger("launch.runtime")


class UnitsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The names of our units, `PREFIX-NAME.service`, in the system's service manager or in our `user`'s."""

    prefix: str
    user: bool = False


class Runtime:
    """One run of one deployment; implements `launcher.ir.live.Control`."""

    def __init__(
        self,
        deployment_dir: Path,
        on_event: Callable[[AnyEvent], None],
        asked_ns: int | None = None,
        *,
        units: UnitsOptions | None = None,
        api_key_file: Path | None = None,
    ) -> None:
        """Read the manifest. Raises ConfigError. See `launcher.runtime.run`."""
        self._api_key_file = api_key_file
        self._asked_ns = asked_ns
        self._directory = deployment_dir.absolute()
        self._on_event = on_event
        self._manifest, self._table = read_deployment(self._directory, api_key_file=api_key_file)
        self._state_dir = self._make_state_dir()
        self._url = front_url(self._table)
        self._owner = self._make_owner(units)
        self._supervisor = supervise.Supervisor(
            self._manifest, state_dir=self._state_dir, owner=self._owner, emit=self._emit, front=self._url
        )
        self._supervisor.runtime_pid = os.getpid()
        self._keeping = StateKeeper(self._state_dir, self._holder, self._make_state_dir)
        self._observer = Observer(self._manifest, self._table, self._processes, emit=self.emit)
        self._events: EventLog | None = None
        """Opened once the lock is held: the store has one writer."""
        self._front: Any = None
        self._listening: socket.socket | None = None  # where clients come already, before the front is there
        self._listeners: Any = None
        self._shutdown = asyncio.Event()
        self._reason = "control"
        self._serving: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[dict[str, Any]]] = set()
        self._started = False
        self._ending = False
        self._processes_stay = False
        """The processes keep running when the runtime ends."""

    @property
    def in_cluster(self) -> bool:
        """Whether a cluster runs the processes, so that this is one of several fronts."""
        return self._manifest.cluster is not msgspec.UNSET or self._manifest.slurm is not msgspec.UNSET

    def _make_owner(self, units: UnitsOptions | None) -> supervise.ProcessOwner:
        """The owner of the processes: systemd, or this runtime."""
        name, settings = self._manifest.deployment, self._manifest.supervisor
        write = functools.partial(files.write_atomic, mode=0o600)
        if units is not None:
            return supervise.SystemdUnits(name, self._state_dir, write, prefix=units.prefix, user=units.user)
        count, size = settings.log_files, settings.log_max_bytes
        return supervise.Children(name, self._state_dir, write, log_files=count, log_max_bytes=size)

    def _tell_owner(self, manifest: FleetManifest) -> None:
        """Pass on the settings of `manifest` for processes started from now on."""
        if isinstance(self._owner, supervise.Children):
            self._owner.log_files = manifest.supervisor.log_files
            self._owner.log_max_bytes = manifest.supervisor.log_max_bytes

    # --- Control ---------------------------------------------------------------------------------------------

    def status(self) -> FleetStatus:
        """The fleet's status now."""
        status = self._observer.status(self._with_figures(self._supervisor.status()))
        return msgspec.structs.replace(status, drift=(*status.drift, *self._keeping.problems))

    def _processes(self) -> tuple[ProcessStatus, ...]:
        return self._with_figures(self._supervisor.status()).processes

    def _with_figures(self, status: FleetStatus) -> FleetStatus:
        """`status` with the front's figures: requests that wait for a slot, speeds of answers."""
        from launcher import route  # noqa: PLC0415 - late, as below

        known = route.figures(self._front.view.targets) if self._front is not None else {}
        processes = tuple(
            msgspec.structs.replace(p, **(msgspec.structs.asdict(f) | {"queued": p.queued + f.queued}))
            if (f := known.get(p.name)) is not None
            else p
            for p in status.processes
        )
        return msgspec.structs.replace(status, processes=processes)

    async def stop(self, names: tuple[str, ...]) -> None:
        """Stop `names`; with none, end everything (returns at once, as the answer itself is in flight)."""
        if names:
            await self._supervisor.stop(names)
        else:
            self._shutdown.set()

    async def reload(self, names: tuple[str, ...], deployment_dir: str | None) -> dict[str, Any]:
        """Take over a manifest and its routes; one reload at a time.

        Raises ConfigError when they are unreadable or of another deployment; SuperviseError while the fleet is still
        starting, and when it is stopping, also when that begins meanwhile.
        """
        self._refuse_unless_up()
        task = asyncio.create_task(self._take_over(names, deployment_dir))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and self._ending:
                raise SuperviseError([supervise.stopping_finding(self._manifest.deployment)]) from None
            raise

    def _refuse_unless_up(self) -> None:
        """Raise SuperviseError when the fleet is ending, or has not come up yet."""
        if self._ending or self._shutdown.is_set():
            raise SuperviseError([supervise.stopping_finding(self._manifest.deployment)])
        if not self._started:
            raise SuperviseError([supervise.starting_finding(self.status())])

    async def _take_over(self, names: tuple[str, ...], deployment_dir: str | None) -> dict[str, Any]:
        """One reload, after those before it."""
        from launcher import route  # noqa: PLC0415 - late, as below

        async with self._reloading:
            self._refuse_unless_up()
            directory, manifest, table = self._read(deployment_dir)
            unknown = set(names) - {p.name for p in self.status().processes} - {s.name for s in manifest.servers}
            if unknown:
                raise KeyError(min(unknown))
            if manifest.supervisor.state_dir != self._manifest.supervisor.state_dir:
                raise SuperviseError([supervise.state_moved_finding(manifest.deployment)])
            fronts = [unit.name for unit in manifest.services if unit.builtin is not None and unit.name in names]
            front = front_changes(self._table, table)
            # everything that may fail comes first: a reload that is refused has changed nothing
            door = self._listeners.prepare(table.front)
            try:
                self._front.replace_table(table)
            except BaseException:
                door.close()
                raise
            self._front.upstreams = route.with_remote(self._supervisor, table)
            await self._listeners.take(door)
            self._directory, self._manifest, self._table = directory, manifest, table
            self._url = self._supervisor.front = front_url(table)
            self._keeping.update_lock()
            self._remember()
            self._listeners.drain_timeout_s = manifest.supervisor.drain_timeout_s
            self._tell_owner(manifest)
            changes = await self._supervisor.reload(manifest, names)
            self._observer.take_over(manifest, table)
            return {
                **{verb: list(getattr(changes, verb)) for verb in ("started", "stopped", "restarted", "kept")},
                "reloaded": fronts,
                "front": front,
                "failed": {name: self._supervisor.why_failed(name) for name in changes.failed},
            }

    def _read(self, deployment_dir: str | None) -> tuple[Path, FleetManifest, RoutingTable]:
        """The deployment to take over (None: the present one), and its directory. Raises ConfigError."""
        directory = self._directory if deployment_dir is None else Path(deployment_dir).absolute()
        manifest, table = read_deployment(directory, api_key_file=self._api_key_file)
        if manifest.deployment != self._manifest.deployment:
            message = f"{directory} is {manifest.deployment}, this runtime serves {self._manifest.deployment}"
            raise ConfigError.of("manifest/other-deployment", message)
        return directory, manifest, table

    # --- the run ---------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """The whole run, with the deployment's lock held."""
        with signals(self._on_signal), self._keeping.locked():
            files.drop_leftovers(self._state_dir)
            try:
                self._events = EventLog(self._state_dir / FILE_NAME)
                self._observer.pool.remember(e.name for e in self._events.after() if e.kind in ("starting", "adopted"))
                keep_pins(self._observer.pool, lambda: self._state_dir)
                # With the lock held: whoever stops everything from now on finds it.
                if self._asked_ns is not None and is_called_off(self._asked_ns):
                    raise SuperviseError([supervise.early_finding(self._manifest.deployment)])
                # At once: who sees the lock held can ask from now on, and is answered when the doors open.
                with contextlib.ExitStack() as doors:
                    with files.writing(self._state_dir):
                        sock = doors.enter_context(control_socket(self._state_dir))
                    address = doors.enter_context(socket_address(self._state_dir))
                    await self._run_with_control(sock, Path(address))
            finally:
                # Nothing can start a server any more; one that a late start left would live on without a runtime.
                if not self._processes_stay:
                    await self._supervisor.sweep()
                if self._events is not None:
                    self._events.close()

    def _make_state_dir(self) -> Path:
        return deployment_state_dir(self._manifest.deployment, self._manifest.supervisor.state_dir, create=True)

    def _holder(self) -> LockOwner:
        return LockOwner(
            **birth(os.getpid()),
            deployment=self._manifest.deployment,
            deployment_dir=str(self._directory),
            front=self._url,
        )

    def _remember(self) -> None:
        """Keep copies of the files that commands read, in case they are lost."""
        served = (self._directory / name for name in ("fleet.json", "routes.json"))
        self._keeping.remember((self._state_dir / "request.json", *served))

    async def _run_with_control(self, control_sock: socket.socket, control_address: Path) -> None:
        from launcher import route  # noqa: PLC0415 - uvicorn and starlette, 0.15 s

        self._open_doors(control_address)
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
        self._remember()
        app = route.control_app(self, self._page_routes())
        async with serve_control(app, control_sock):
            keeping = asyncio.create_task(self._keeping.watch(app, self._owner.heal))
            unit, drain_s = self._table.front, self._manifest.supervisor.drain_timeout_s
            serving = route.serve(
                self._front,
                host=unit.host,
                port=unit.port,
                doors=self._listeners,
                shutdown=closing,
                drain_timeout_s=drain_s,
            )
            self._serving = asyncio.create_task(serving)
            self._front.more_metrics = self._observer.metrics
            try:
                await self._run_fleet(self._serving)
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, self._end_reloads(), return_exceptions=True)
                closing.set()
                await asyncio.gather(self._serving, return_exceptions=True)
                if self._processes_stay:
                    self._supervisor.abandon()
                else:
                    await self._supervisor.stop_all(self._reason)
                await self._observer.close()

    def _open_doors(self, control_address: Path) -> None:
        """Make the front and let it listen: clients may connect, and are answered once it is served."""
        from launcher import orchestrate, route  # noqa: PLC0415 - late, as above

        orchestrator = orchestrate.Orchestrator(self._table, lambda: self._state_dir)
        orchestrator.on_domain, orchestrator.emit = self._observer.pool.domain, self.emit
        upstreams = route.with_remote(self._supervisor, self._table)
        self._front = route.Front(self._table, upstreams, control=control_address, orchestrator=orchestrator)
        self._front.expansion.emit = self.emit
        sock = self._listening or route.bind(self._front, self._table.front.host, self._table.front.port)
        with contextlib.ExitStack() as unless_made:
            unless_made.callback(sock.close)
            self._listeners = route.Listeners(self._front, sock, route.bind_more(self._front))
            unless_made.pop_all()

    def _page_routes(self) -> Any:
        from launcher.runtime.page.app import page_routes  # noqa: PLC0415 - late, as above
        from launcher.runtime.paging import Pages  # noqa: PLC0415

        assert self._events is not None  # noqa: S101 - the lock is held
        pages = Pages(
            *(self, self._front, self._supervisor, self._events, self._observer),
            served=lambda: (self._manifest, self._table),
            state_dir=lambda: self._state_dir,
        )
        return page_routes(pages)

    async def _end_reloads(self) -> None:
        """Cancel the reloads that run or wait, and refuse more: they would start what is being stopped."""
        self._ending = True
        reloads = tuple(self._reloads)
        for task in reloads:
            task.cancel()
        await asyncio.gather(*reloads, return_exceptions=True)

    async def _run_fleet(self, serving: asyncio.Task[None]) -> None:
        """Adopt, start, then wait to be told to end. Raises the error of a failed start or of the front."""
        shutdown = asyncio.create_task(self._shutdown.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait({shutdown, starting, serving}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not starting.exception():
                await asyncio.wait({shutdown, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            starting.cancel()
            shutdown.cancel()
            await asyncio.gather(starting, shutdown, return_exceptions=True)
        for task in (starting, serving):
            if task.done() and not task.cancelled():
                task.result()
        if not self._started and self._reason == "control":
            raise SuperviseError([supervise.early_finding(self._manifest.deployment)])

    async def _start(self) -> None:
        await self._supervisor.recover()
        await self._supervisor.start()
        self._started = True
        notify("READY=1")

    def _emit(self, event: AnyEvent) -> None:
        """Pass an event on; an error of a watcher is logged and does not stop the fleet."""
        try:
            self._observer(event)
            self.emit(happened(event, is_up=self._started))
            self._on_event(event)
        except Exception:  # noqa: BLE001 - whatever it is, it is logged
            _LOG.exception("the watcher of events failed")

    def emit(self, what: Happened) -> None:
        """Store an event for people."""
        if self._events is not None:
            self._events.add(what)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._shutdown.is_set():
            if not self._owner.outlives:  # else the manager has limits of its own
                self._supervisor.kill_all()
            if self._serving is not None:
                self._serving.cancel()
            return
        self._reason = number.name
        self._processes_stay = self._owner.outlives
        notify("STOPPING=1")
        self._shutdown.set()
