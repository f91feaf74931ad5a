"""The fleet in one event loop: start in order, keep running, stop; implements `Upstreams` and most of `Control`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import msgspec

from launcher.base import claimed_name
from launcher.errors import SuperviseError
from launcher.ir.fleet import FleetManifest
from launcher.ir.live import FleetStatus, Lease, ProcessStatus, ServerState, UnavailableError, Upstreams
from launcher.manifest import argv_changes
from launcher.supervise import events
from launcher.supervise.findings import failure_finding, front_finding, is_fatal, refuse_none_started, stopping_finding
from launcher.supervise.hooks import Hooks
from launcher.supervise.measuring import Measurer, gpu_names
from launcher.supervise.owner import ProcessOwner
from launcher.supervise.ports import look_for_intruder, stranger_behind
from launcher.supervise.recovery import change_rung, retry_after_oom
from launcher.supervise.reload import Changes, compare_specs
from launcher.supervise.rolling import replicas_of, waves
from launcher.supervise.runner import Runner, SharedContext
from launcher.supervise.spec import ProcessSpec, boot_names, process_specs
from launcher.supervise.status import process_status
from launcher.supervise.strays import look_behind, take_over
from launcher.supervise.upkeep import Upkeep
from launcher.supervise.waker import Waker


class Supervisor(Upstreams):
    """Every process of one deployment. All methods are called in one event loop.

    `owner` has the processes; `emit` gets every event and must not block; `front` is the URL under which the builtin
    front answers. The caller holds the deployment's lock.
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
        """Nothing is started or adopted yet."""
        self.manifest = manifest
        self.front = front
        self.runtime_pid: int | None = None
        self._emit = emit
        self._owner = owner
        self._shared = SharedContext(
            deployment=manifest.deployment,
            input_digest=manifest.input_digest,
            state_dir=state_dir,
            owner=owner,
            emit=emit,
        )
        self._specs = process_specs(manifest)
        self._compiled = frozenset(self._specs)
        self._runners = {s.name: Runner(s, self._shared) for s in self._specs.values() if not s.builtin}
        budgets = {device.name: device.budget_bytes for device in manifest.devices}
        self._waker = Waker(self._runners, budgets, manifest.supervisor.drain_timeout_s, None if owner.local else dict)
        self._waker.waits = True
        self._upkeep = Upkeep(
            self._runners, manifest.supervisor, self._fill_groups, self._look_behind if owner.outlives else None
        )
        self._hooks = Hooks(manifest.hooks, emit)
        self._measurer = Measurer(self._clients, gpu_names(manifest), pss=owner.pss_bytes)
        self._settled: dict[str, asyncio.Event] = {}
        self._abandoned = False
        self._ended = False

    # --- Upstreams -----------------------------------------------------------------------------------------

    def state(self, name: str) -> ServerState:
        """State of `name` now; an unknown name is stopped, one of which it is not known yet may run already."""
        runner = self._runners.get(name)
        state = "stopped" if runner is None else runner.routing_state
        return "starting" if state == "stopped" and runner is not None and self._waker.waits else state

    def left_s(self, name: str) -> float | None:
        """See `launcher.ir.live.Upstreams`."""
        runner = self._runners.get(name)
        return None if runner is None else runner.left_s

    def ended_from_outside(self, name: str) -> bool:
        """See `launcher.ir.live.Upstreams`."""
        runner = self._runners.get(name)
        return runner is None or runner.ended_from_outside

    def try_lease(self, name: str) -> Lease | None:
        """See `launcher.ir.live.Upstreams`."""
        runner = self._runners.get(name)
        return runner.grant(name) if runner is not None and runner.usable else None

    async def acquire(self, name: str, timeout_s: float) -> Lease:
        """See `launcher.ir.live.Upstreams`."""
        return await self._waker.acquire(name, timeout_s)

    async def unload(self, name: str) -> None:
        """See `launcher.ir.live.Upstreams`."""
        await self._waker.unload(name)

    async def stranger(self, name: str, ask: Callable[[], Awaitable[bytes]], peer: int | None = None) -> str | None:
        """See `launcher.ir.live.Upstreams`: who owns processes here knows whose the port, or the other end, is."""
        runner = self._runners.get(name)
        if not self._owner.local:
            return claimed_name.stranger(name, await ask())
        if runner is None or runner.pid is None:
            raise ProcessLookupError
        if peer is not None:
            return stranger_behind(runner.pid, peer)
        return await look_for_intruder(runner.pid, runner.spec.unit.port, runner.spec.unit.host)

    async def retry_after_oom(self, name: str, since: float, said: str = "") -> bool:
        """See `launcher.ir.live.Upstreams`."""
        runner = self._runners.get(name)
        return runner is not None and await retry_after_oom(
            runner, since, said, self.manifest.supervisor.drain_timeout_s
        )

    # --- start and stop --------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Adopt what an earlier runtime left and what is as compiled; stop the rest of it; report what is not ours."""
        for bad in await take_over(self._owner, self._specs, self._runners, self._waker.rivals, self._emit):
            self._emit(events.StateIgnored(path=bad.path, reason=bad.reason))
        await self._owner.clear([r.spec for r in self._runners.values() if not r.life.alive])

    async def start(self) -> None:
        """Start everything of `start=boot` along its `after` edges; return when all is ready or failed harmlessly.

        Raises SuperviseError when a fatal one fails, or every server; then everything, adopted ones too, is stopped.
        """
        begun, boot = asyncio.get_running_loop().time(), self.boot_names()
        self._settled = {name: asyncio.Event() for name in boot}
        self._waker.waits = False
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
        self._measurer.start()
        ready = tuple(name for name in boot if self._runners[name].usable)
        self._emit(
            events.FleetReady(
                seconds=asyncio.get_running_loop().time() - begun,
                front=self.front,
                ready=ready,
                failed=tuple(name for name in boot if name not in ready and not self._stands_back(name)),
            )
        )

    def _stands_back(self, name: str) -> bool:
        """Whether another member of its exclusive group has the device, which an earlier runtime had swapped in."""
        group = self._specs[name].unit.exclusive
        others = [
            n for n, spec in self._specs.items() if group is not None and spec.unit.exclusive == group and n != name
        ]
        return any(self.state(other) not in ("stopped", "failed") for other in others)

    async def stop_all(self, reason: str) -> None:
        """Stop everything and wait until it is gone, also what a cut-short `recover` did not get to adopt.

        A second call waits too, and says nothing again.
        """
        told, self._ended = self._ended, True
        if not told:
            self._emit(events.Stopping(reason=reason))
        self._upkeep.stop()
        self._measurer.stop()
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
        if not told:
            self._emit(events.Stopped())

    async def sweep(self) -> None:
        """Stop what the state files still name: after `stop_all` there should be nothing."""
        left, _ = await self._owner.living(self._specs)
        await self._owner.end(left)

    def kill_all(self) -> None:
        """SIGKILL to everything now; `stop_all`, which is under way, then ends."""
        for runner in self._runners.values():
            runner.stop("stop", force=True)

    async def stop(self, names: tuple[str, ...]) -> None:
        """Stop `names`, drained; no request starts a boot server again until `reload`.

        KeyError on an unknown name; SuperviseError for the builtin front, which ends with the runtime alone.
        """
        fronts = [name for name in names if name in self._specs and self._specs[name].builtin]
        runners = [self._runners[name] for name in names if name not in fronts]
        for runner in runners:
            runner.mark("held", on=runner.spec.unit.start == "boot")
        await asyncio.gather(*(self._drain_and_stop(r, "stop") for r in runners))
        if fronts:
            raise SuperviseError([front_finding(fronts[0], [runner.spec.name for runner in runners])])

    async def change_rung(self, name: str, *, down: bool) -> None:
        """See `launcher.supervise.recovery.change_rung`; KeyError on an unknown name."""
        await change_rung(self._runners[name], self.manifest.supervisor.drain_timeout_s, down=down)

    async def reload(self, manifest: FleetManifest, names: tuple[str, ...]) -> Changes:
        """Take over `manifest`; restart `names`, or with none, what changed. KeyError on an unknown name.

        With `names`, other servers that changed keep running as they are, and `status` shows their drift.
        Raises SuperviseError once the fleet is stopping, also when that begins meanwhile: then nothing is started.
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
        self._waker.room.budgets = {device.name: device.budget_bytes for device in manifest.devices}
        touched = (*changes.stopped, *changes.restarted, *changes.started)
        groups = {specs[n].unit.exclusive for n in touched for specs in (self._specs, new) if n in specs}
        try:
            async with self._waker.turn(*groups):
                changes = await self._roll(changes, new, names)
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

    async def _roll(self, changes: Changes, new: dict[str, ProcessSpec], names: tuple[str, ...]) -> Changes:
        """Carry out `changes`, replicas one after the other; gives what became of them.

        When a restarted replica does not come up, those that would follow are left as they are: they still serve.
        """
        first, *later = waves(changes.restarted, self._specs, new) or ((),)
        waiting = {name for wave in later for name in wave}
        await self._end((*changes.stopped, *first), returning=first)
        self._take_over(new, changes, keep=waiting)
        for name in changes.started:
            self._runners[name].mark("returning", on=True)
        await self._bring_back((*changes.started, *first), names)
        spared: set[str] = set()
        for wave in later:
            broken = [n for n, r in self._runners.items() if r.life.state == "failed" and n in changes.restarted]
            going = tuple(name for name in wave if not replicas_of(name, broken, new))
            spared |= set(wave) - set(going)
            await self._end(going, returning=going)
            for name in going:
                self._runners[name].spec = new[name]
            await self._bring_back(going, names)
        touched = (*changes.started, *changes.restarted)
        idle = {n for n in changes.started if n in self._runners and self._runners[n].life.state == "stopped"}
        return msgspec.structs.replace(
            changes,
            started=tuple(n for n in changes.started if n not in idle),
            restarted=tuple(n for n in changes.restarted if n not in spared),
            kept=tuple(sorted({*changes.kept, *spared, *idle})),
            failed=tuple(n for n in touched if n in self._runners and self._runners[n].life.state == "failed"),
        )

    async def _end(self, names: tuple[str, ...], *, returning: tuple[str, ...]) -> None:
        """Drain and stop `names`; requests to those that are `returning` wait for them."""
        going = [self._runners[name] for name in names]
        for name in returning:
            self._runners[name].mark("returning", on=True)
        for runner in going:
            runner.mark("draining", on=True)  # at once: no request may meet the new routes with the old process
        await asyncio.gather(*(self._drain_and_stop(runner, "changed") for runner in going))
        self._refuse_ended()

    def _take_over(self, new: dict[str, ProcessSpec], changes: Changes, *, keep: Collection[str] = ()) -> None:
        """Replace the specs, those of `keep` later; what is gone is never started again by who still waits for it."""
        for name in changes.stopped:
            self._runners.pop(name).mark("closed", on=True)
        kept_old = {n: self._specs[n] for n in changes.kept if n not in new}
        self._specs = {**kept_old, **new}
        self._compiled = frozenset(new)
        for name, spec in new.items():
            if spec.builtin:
                continue
            if name in self._runners:
                if name not in keep:
                    self._runners[name].spec = spec
            else:
                self._runners[name] = Runner(spec, self._shared)

    def why_failed(self, name: str) -> str:
        """What `name` failed of; "" when it did not."""
        return self._runners[name].life.error or ""

    def abandon(self) -> None:
        """Let go of every process without ending one: what a dying runtime does, on purpose."""
        self._abandoned = True
        self._upkeep.stop()
        self._measurer.stop()
        for runner in self._runners.values():
            runner.abandon()

    # --- status ------------------------------------------------------------------------------------------------

    def boot_names(self) -> tuple[str, ...]:
        """What is started at boot, in order."""
        return boot_names(self._specs.values())

    def status(self) -> FleetStatus:
        """Every process now, in start order; `ready` when every boot server takes requests."""
        processes = [
            process_status(r, note=self._beyond(n, r), measured=self._measurer.of(r.pid), queued=self._waker.waiting(n))
            for n, r in self._runners.items()
        ]
        processes += [self._builtin(spec) for spec in self._specs.values() if spec.builtin]
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

    def _beyond(self, name: str, runner: Runner) -> str:
        """How `runner` differs from what is compiled, beyond its own spec: gone, or spared by a reload that failed."""
        if name not in self._compiled:
            return "no longer compiled"
        return "; ".join(argv_changes(runner.fallbacks.planned.unit.argv, self._specs[name].unit.argv))

    def ready(self) -> bool:
        """Whether every boot server takes requests; of an exclusive group any member. Services do not count."""
        serving = {r.spec.unit.exclusive for r in self._runners.values() if r.spec.unit.exclusive and r.usable}
        servers = [self._runners[name] for name in self.boot_names() if self._specs[name].kind == "server"]
        return all(r.usable or r.spec.unit.exclusive in serving for r in servers)

    # --- inside --------------------------------------------------------------------------------------------------

    def _refuse_ended(self) -> None:
        """Raises SuperviseError when the fleet is stopping."""
        if self._ended:
            raise SuperviseError([stopping_finding(self.manifest.deployment)])

    async def _boot(self, name: str, earlier: list[str], limit: asyncio.Semaphore) -> None:
        """Start one boot process after `earlier`; SuperviseError when it fails and is fatal."""
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

    async def _drain_and_stop(self, runner: Runner, why: str) -> None:
        """Let requests in flight end, then stop, and wait for the end."""
        try:
            if runner.life.state in ("ready", "sleeping"):
                await runner.drain(self.manifest.supervisor.drain_timeout_s)
            runner.stop(why)
            await runner.until("stopped", "failed")
        finally:
            runner.mark("draining", on=False)

    async def _bring_back(self, names: tuple[str, ...], asked: tuple[str, ...]) -> None:
        """Start `names` after a reload, a few at a time, and wait until each is ready or failed.

        Of an exclusive group the first is started, and what runs is displaced only by one that was `asked` for by
        name. The caller has the groups' turns.
        """
        limit = asyncio.Semaphore(self.manifest.supervisor.max_parallel_starts)
        runners = [self._runners[n] for n in names if n in self._runners]
        first = {(r.spec.unit.exclusive, r.spec.unit.exclusive or r.spec.name): r for r in reversed(runners)}

        async def bring(runner: Runner) -> None:
            async with limit:
                if self._waker.rivals(runner):
                    if runner.spec.name not in asked:
                        return
                    try:
                        await self._waker.clear_group(runner, [])
                    except UnavailableError:  # a process that does not even end by SIGKILL has the device
                        return
                await self._waker.start_in_room(runner)
                await runner.until("ready", "sleeping", "failed", "stopped")

        await asyncio.gather(*(bring(r) for r in runners if r in first.values()))

    async def _fill_groups(self) -> None:
        await self._waker.fill_groups([self._runners[name] for name in self.boot_names()])

    async def _look_behind(self) -> None:
        await look_behind(self._owner, self._specs, self._runners, self._waker.rivals, self._emit)

    def _clients(self) -> dict[int, tuple[str, ...]]:
        """The processes that run now, with the commands of those that are containers' clients."""
        running = [r for r in self._runners.values() if r.pid is not None]
        return {r.pid or 0: r.spec.unit.argv if r.spec.container else () for r in running}

    def _builtin(self, spec: ProcessSpec) -> ProcessStatus:
        """Our own front, up as long as this runtime."""
        state: ServerState = "ready" if self.front else "stopped"
        pid, unit = self.runtime_pid if self.front else None, spec.unit
        return ProcessStatus(name=spec.name, kind="service", state=state, port=unit.port, pid=pid, model=unit.model)
