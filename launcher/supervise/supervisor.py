"""The fleet in one event loop: start in order, keep running, stop; implements `Upstreams` and most of `Control`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from launcher.base import claimed_name
from launcher.errors import SuperviseError
from launcher.ir.fleet import FleetManifest
from launcher.ir.live import FleetStatus, Lease, ProcessStatus, ServerState, Upstreams
from launcher.manifest import argv_changes
from launcher.supervise import events
from launcher.supervise.causes import FROM_OUTSIDE
from launcher.supervise.findings import failure_finding, front_finding, is_fatal, refuse_none_started, stopping_finding
from launcher.supervise.hooks import Hooks
from launcher.supervise.measuring import Measurer, gpu_names
from launcher.supervise.owner import ProcessOwner
from launcher.supervise.ports import look_for_intruder, stranger_behind
from launcher.supervise.recovery import change_rung, retry_after_oom
from launcher.supervise.reload import Changes, compare_specs
from launcher.supervise.rolling import Rolling
from launcher.supervise.runner import Runner, SharedContext
from launcher.supervise.spec import ProcessSpec, boot_names, process_specs
from launcher.supervise.status import process_status
from launcher.supervise.strays import Strays
from launcher.supervise.upkeep import Upkeep
from launcher.supervise.waker import Waker


class Supervisor(Upstreams):
    """Every process of one deployment. All methods are called in one event loop.

    `owner` starts and finds the processes; `emit` gets every event and must not block; `front` is the URL under which
    the builtin front answers. The caller holds the deployment's lock.
    """

    def __init__(
        self,
        manifest: FleetManifest,
        *,
        state_dir: Path,
        owner: ProcessOwner,
        emit: Callable[[events.AnyEvent], None],
        front: str | None = None,
    ) -> None:
        self.manifest = manifest
        self.front = front
        self.runtime_pid: int | None = None
        self._emit = emit
        self._shared = SharedContext(
            deployment=manifest.deployment,
            input_digest=manifest.input_digest,
            state_dir=state_dir,
            owner=owner,
            emit=emit,
        )
        self._specs = process_specs(manifest)
        runners = {s.name: Runner(s, self._shared) for s in self._specs.values() if not s.unit.builtin}
        self._measurer = Measurer(gpu_names(manifest), pss=owner.pss_bytes)
        drain_s = manifest.supervisor.drain_timeout_s
        available, cards = (None, self._measurer.cards) if owner.local else (dict, None)
        waker = Waker(runners, _budgets(manifest), drain_s, available, cards)
        waker.is_recovering = True
        self._runners, self._waker, self._owner = runners, waker, owner
        self._strays = Strays(owner, self._specs, runners, waker.rivals, emit)
        self._upkeep = Upkeep(
            runners=runners,
            owner=owner,
            settings=manifest.supervisor,
            measurer=self._measurer,
            fill_groups=lambda: waker.fill_groups([runners[name] for name in self.boot_names()]),
            adopt_foreign=self._strays.adopt_foreign,
        )
        self._hooks = Hooks(manifest.hooks, emit)
        self._settled: dict[str, asyncio.Event] = {}
        self._abandoned = False
        self._ended = False

    # --- what the data plane asks: see `launcher.ir.live.Upstreams` -------------------------------------------------

    def state(self, name: str) -> ServerState:
        """State of `name` now; an unknown name is stopped, one of which it is not known yet may run already."""
        runner = self._runners.get(name)
        state = "stopped" if runner is None else runner.routing_state
        return "starting" if state == "stopped" and runner is not None and self._waker.is_recovering else state

    def left_s(self, name: str) -> float | None:
        """By its last start, else by its medium's speed."""
        runner = self._runners.get(name)
        if runner is None or runner.life.state not in ("starting", "stopped", "stopping", "backoff"):
            return None
        takes_s = runner.spec.unit.load_s if runner.start_took_s is None else runner.start_took_s
        return None if takes_s is None else max(0.0, takes_s - (runner.starting_s or 0.0))

    def ended_from_outside(self, name: str) -> bool:
        """Also while it is not known how it ended."""
        runner = self._runners.get(name)
        return runner is None or runner.life.usable or runner.ending.code in FROM_OUTSIDE

    def try_lease(self, name: str) -> Lease | None:
        """Of one that takes requests now."""
        runner = self._runners.get(name)
        return runner.grant(name) if runner is not None and runner.life.usable else None

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """See `launcher.supervise.waker`."""
        return await self._waker.acquire(name, timeout_s)

    async def unload(self, name: str) -> None:
        """See `launcher.supervise.waker`."""
        await self._waker.unload(name)

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:
        """Who owns processes here knows whose the port, or the other end, is."""
        runner = self._runners.get(name)
        if not self._owner.local:
            return claimed_name.wrong_server(name, await ask())
        if runner is None or runner.pid is None:
            raise ProcessLookupError
        if peer is not None:
            return stranger_behind(runner.pid, peer)
        return await look_for_intruder(runner.pid, runner.spec.unit.port, runner.spec.unit.host)

    async def retry_after_oom(self, name: str, since: float, error_text: str = "") -> bool:
        """See `launcher.supervise.recovery`."""
        runner = self._runners.get(name)
        return runner is not None and await retry_after_oom(runner, since, error_text, self._waker.drain_timeout_s)

    # --- start and stop --------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Adopt processes of an earlier runtime that run as compiled, stop its others, report untrusted records."""
        for bad in await self._strays.take_over():
            self._emit(events.StateIgnored(path=bad.path, reason=bad.reason))
        await self._owner.clear([r.spec for r in self._runners.values() if not r.life.alive])

    async def start(self) -> None:
        """Start everything of `start=boot` along its `after` edges; return when all is ready or failed harmlessly.

        Raises SuperviseError when a fatal process, every server, or a hook with `on_failure=fail` fails; then
        everything, adopted processes too, is stopped.
        """
        begun, boot = asyncio.get_running_loop().time(), self.boot_names()
        self._settled = {name: asyncio.Event() for name in boot}
        self._waker.is_recovering = False
        for name, runner in self._runners.items():
            runner.mark("returning", on=name in boot)
        limit = asyncio.Semaphore(self.manifest.supervisor.max_parallel_starts)
        if not self._owner.local:
            self._upkeep.start()  # one may wait for a node for hours, and others are up meanwhile
        try:
            async with asyncio.TaskGroup() as group:
                for position, name in enumerate(boot):
                    earlier = [d for d in self._specs[name].unit.after if d in boot[:position]]
                    group.create_task(self._boot(name, earlier, limit))
            refuse_none_started(self._runners.values())
            await self._hooks.run(self._specs, self._shared.state_dir)
        except BaseExceptionGroup as errors:
            await self.stop_all("a fatal failure")
            findings = [f for e in errors.exceptions if isinstance(e, SuperviseError) for f in e.findings]
            if not findings:
                raise
            raise SuperviseError(findings) from None
        except SuperviseError:
            await self.stop_all("a fatal failure")
            raise
        self._upkeep.start()
        ready = tuple(name for name in boot if self._runners[name].life.usable)
        self._emit(
            events.FleetReady(
                seconds=asyncio.get_running_loop().time() - begun,
                front=self.front,
                ready=ready,
                failed=tuple(name for name in boot if name not in ready and not self._is_displaced(name)),
            )
        )

    def _is_displaced(self, name: str) -> bool:
        """Whether another member of its exclusive group runs, which an earlier runtime had swapped in."""
        group = self._specs[name].unit.exclusive
        others = [
            n for n, spec in self._specs.items() if group is not None and spec.unit.exclusive == group and n != name
        ]
        return any(self.state(other) not in ("stopped", "failed") for other in others)

    async def stop_all(self, reason: str) -> None:
        """Stop everything and wait until it is gone, also what an interrupted `recover` did not adopt.

        A second call waits too, and emits no events.
        """
        ended_before, self._ended = self._ended, True
        if not ended_before:
            self._emit(events.Stopping(reason=reason))
        self._upkeep.stop()
        self._waker.closed = True
        # A reload may still be under way: it adds and removes runners only while the fleet has not ended.
        for runner in tuple(self._runners.values()):
            runner.mark("closed", on=True)
            runner.stop("stop")
        await self._waker.close()
        if not self._abandoned:  # else nobody tells when they end
            for runner in tuple(self._runners.values()):
                await runner.until("stopped", "failed")
        await self.sweep()
        if not ended_before:
            self._emit(events.Stopped())

    async def sweep(self) -> None:
        """Stop the processes that the owner still finds: after `stop_all` there should be none."""
        left, _ = await self._owner.living(dict(self._specs))
        await self._owner.end(left)

    def kill_all(self) -> None:
        """Send SIGKILL to every process; a `stop_all` that is under way then ends."""
        for runner in self._runners.values():
            runner.stop("stop", force=True)

    async def stop(self, names: tuple[str, ...]) -> None:
        """Drain and stop `names`; no request starts a boot server again until `reload`.

        Raises KeyError for an unknown name; SuperviseError for the builtin front, which ends with the runtime alone.
        """
        fronts = [name for name in names if name in self._specs and self._specs[name].unit.builtin]
        runners = [self._runners[name] for name in names if name not in fronts]
        for runner in runners:
            runner.mark("held", on=runner.spec.unit.start == "boot")
        await asyncio.gather(*(self._waker.end(r, "stop") for r in runners))
        if fronts:
            raise SuperviseError([front_finding(fronts[0], [runner.name for runner in runners])])

    async def change_rung(self, name: str, *, down: bool) -> None:
        """See `launcher.supervise.recovery.change_rung`; raises KeyError for an unknown name."""
        await change_rung(self._runners[name], self.manifest.supervisor.drain_timeout_s, down=down)

    async def reload(self, manifest: FleetManifest, names: tuple[str, ...]) -> Changes:
        """Take over `manifest`; restart `names`, or without names what changed. Raises KeyError for an unknown name.

        With `names`, other servers that changed keep running as they are, and `status` shows their drift. Raises
        SuperviseError once the fleet is stopping, also when that begins meanwhile: then nothing is started.
        """
        self._refuse_ended()
        new = process_specs(manifest)
        for name in names:
            if name not in new and name not in self._runners:
                raise KeyError(name)
        running = {n: r.running_argv for n, r in self._runners.items() if r.life.alive and r.record is not None}
        held = frozenset(n for n, r in self._runners.items() if r.life.held)
        changes = compare_specs(self._specs, new, running, names, held)
        self.manifest = manifest
        self._measurer.gpus = gpu_names(manifest)
        self._hooks.take_over(manifest.hooks)
        self._upkeep.settings, self._waker.drain_timeout_s = manifest.supervisor, manifest.supervisor.drain_timeout_s
        self._waker.room.budgets = _budgets(manifest)
        touched = (*changes.stopped, *changes.restarted, *changes.started)
        rolling = Rolling(
            runners=self._runners,
            specs=self._specs,
            new=new,
            asked=names,
            shared=self._shared,
            waker=self._waker,
            parallel=manifest.supervisor.max_parallel_starts,
            go_on=self._refuse_ended,
        )
        groups = {specs[n].unit.exclusive for n in touched for specs in (self._specs, new) if n in specs}
        try:
            async with self._waker.turn(*groups):
                changes = await rolling.roll(changes)
        finally:
            for runner in self._runners.values():
                runner.mark("returning", on=False)
        self._refuse_ended()
        await self._hooks.run_again({*changes.started, *changes.restarted}, self._specs, self._shared.state_dir)
        self._emit(
            events.FleetReloaded(
                started=changes.started, stopped=changes.stopped, restarted=changes.restarted, kept=changes.kept
            )
        )
        return changes

    def why_failed(self, name: str) -> str:
        """The error of `name`; "" when it has none."""
        return self._runners[name].life.error or ""

    def abandon(self) -> None:
        """Stop watching every process without ending one, for a runtime that ends while they keep running."""
        self._abandoned = True
        self._upkeep.stop()
        for runner in self._runners.values():
            runner.abandon()

    # --- status ------------------------------------------------------------------------------------------------

    def boot_names(self) -> tuple[str, ...]:
        """Names of what is started at boot, in order."""
        return boot_names(self._specs.values())

    def status(self) -> FleetStatus:
        """The fleet's status, in start order; `ready` when every boot server takes requests."""
        compiled = {s.name for s in self.manifest.servers} | {s.name for s in self.manifest.services}
        processes = [
            process_status(
                runner,
                note=self._spared_drift(runner) if name in compiled else "no longer compiled",
                measured=self._measurer.of(runner.pid),
                queued=self._waker.waiting(name),
            )
            for name, runner in self._runners.items()
        ]
        processes += [self._builtin(spec) for spec in self._specs.values() if spec.unit.builtin]
        order = {name: position for position, name in enumerate(self._specs)}
        processes.sort(key=lambda p: (order.get(p.name, len(order)), p.name))
        return FleetStatus(
            deployment=self.manifest.deployment,
            input_digest=self.manifest.input_digest,
            runtime_pid=self.runtime_pid,
            front=self.front,
            ready=self.ready(),
            processes=tuple(processes),
            hooks=self._hooks.status(),
            manager=self._owner.manager,
        )

    def _spared_drift(self, runner: Runner) -> str:
        """How the command line in use differs from the compiled one: a failed reload did not restart the process."""
        return "; ".join(argv_changes(runner.fallbacks.planned.unit.argv, self._specs[runner.name].unit.argv))

    def ready(self) -> bool:
        """Whether every boot server takes requests; of an exclusive group any member. Services do not count."""
        serving = {r.spec.unit.exclusive for r in self._runners.values() if r.spec.unit.exclusive and r.life.usable}
        servers = [self._runners[name] for name in self.boot_names() if self._specs[name].unit.kind == "server"]
        return all(r.life.usable or r.spec.unit.exclusive in serving for r in servers)

    # --- inside --------------------------------------------------------------------------------------------------

    def _refuse_ended(self) -> None:
        if self._ended:
            raise SuperviseError([stopping_finding(self.manifest.deployment)])

    async def _boot(self, name: str, earlier: list[str], limit: asyncio.Semaphore) -> None:
        """Start one boot process after `earlier`. Raises SuperviseError when it fails and is fatal."""
        runner = self._runners[name]
        try:
            for dependency in earlier:
                await self._settled[dependency].wait()
            if earlier and runner.spec.unit.cooldown_s and not runner.life.alive:
                await asyncio.sleep(runner.spec.unit.cooldown_s)
            async with self._waker.turn(runner.spec.unit.exclusive), limit:
                if not (runner.life.alive or runner.life.held or self._waker.rivals(runner)):
                    await self._waker.start_in_room(runner)
                state = await runner.until("ready", "sleeping", "failed", "stopped")
        finally:
            runner.mark("returning", on=False)
            self._settled[name].set()
        if state == "failed" and is_fatal(runner):
            raise SuperviseError([failure_finding(runner)])

    def _builtin(self, spec: ProcessSpec) -> ProcessStatus:
        state: ServerState = "ready" if self.front else "stopped"
        pid, unit = self.runtime_pid if self.front else None, spec.unit
        return ProcessStatus(name=spec.name, kind="service", state=state, port=unit.port, pid=pid, model=unit.model)


def _budgets(manifest: FleetManifest) -> dict[str, int]:
    return {device.name: device.budget_bytes for device in manifest.devices}
