"""One process of the fleet in the event loop: carries out what the lifecycle decides, and tells it what happens."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.base import procfs
from launcher.base.addresses import socket_path
from launcher.ir.live import Lease, ServerState
from launcher.supervise import events, lifecycle, readiness, slots
from launcher.supervise.causes import UNEXPLAINED, cause_of_end, overdue
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.fallbacks import OUT_OF_MEMORY_CODES, Fallbacks
from launcher.supervise.identity import ServerRecord, new_record
from launcher.supervise.lifecycle import Action, Event, Flag, Life
from launcher.supervise.owner import Ending, OwnedProcess, ProcessOwner, RefusedError, Watcher
from launcher.supervise.peers import MISSING, AfterPeers
from launcher.supervise.process import describe_exit
from launcher.supervise.scheduler import Tenant
from launcher.supervise.spec import ProcessSpec

_BRIEF_S = 10.0
"""Seconds; a start that took longer is not repeated only to learn why it failed."""
_EXIT_NOTICE_S = 0.2
"""Seconds that it may take to notice the end of a process after its connection broke."""


class SharedContext(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes of a deployment share. `emit` gets every event; it must not block."""

    deployment: str
    input_digest: str
    state_dir: Path
    owner: ProcessOwner
    emit: Callable[[events.AnyEvent], None]


class Runner:
    """One server or service: its spec, its life, its process, and its requests."""

    def __init__(self, spec: ProcessSpec, shared: SharedContext) -> None:
        self.name = spec.name
        self.fallbacks = Fallbacks(spec)
        self.life = Life()
        self.record: ServerRecord | None = None
        self.failure: Diagnosis | None = None
        self.ending = Ending(code=None)
        """How its last process ended."""
        self.start_took_s: float | None = None
        """Seconds that its last start took; None: unknown."""
        self.unhealthy = 0
        """Health checks in a row without an answer."""
        self.saved_slots: dict[str, int] = {}
        """Tokens by file of the slots saved when it was swapped out."""
        self.in_flight = 0
        self.last_used = self.last_ok = self.ready_at = 0.0
        self.emit = shared.emit
        self._shared = shared
        self._process: OwnedProcess | None = None
        self._watcher = Watcher(on_exit=self._on_exit, on_end=lambda: self.mark("over", on=True))
        self._probe: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until: list[tuple[tuple[ServerState, ...], asyncio.Future[ServerState]]] = []
        self._changed: asyncio.Event | None = None

    @property
    def spec(self) -> ProcessSpec:
        """The spec in use: the planned one or, after out-of-memory, a fallback; at its real address."""
        return self.fallbacks.spec

    @spec.setter
    def spec(self, planned: ProcessSpec) -> None:
        self.fallbacks.take(planned)

    # --- what others see ---------------------------------------------------------------------------------

    @property
    def routing_state(self) -> ServerState:
        """The state by which requests are routed, see `lifecycle.routing_state`."""
        by_request = self.spec.unit.start == "demand" or self.spec.unit.exclusive is not None
        return lifecycle.routing_state(self.life, asyncio.get_running_loop().time(), on_demand=by_request)

    @property
    def starting_s(self) -> float | None:
        """Seconds since its start began; None in every other state."""
        starting = self.life.state == "starting"
        return asyncio.get_running_loop().time() - self.life.since if starting else None

    @property
    def pid(self) -> int | None:
        """Pid of the process; None: there is none on this machine."""
        return self._process.pid or None if self._process is not None else None

    @property
    def running_argv(self) -> tuple[str, ...]:
        """The running command line for a reload to compare: at a fallback level, the planned one."""
        running = self.record.argv if self.record is not None else ()
        return self.fallbacks.planned.unit.argv if running == self.spec.unit.argv else running

    def tenant(self, now: float) -> Tenant:
        """The process as the scheduler sees it at `now` (loop time)."""
        return Tenant(
            spec=self.spec,
            life=self.life,
            in_flight=self.in_flight,
            idle_s=now - self.last_used,
            ready_s=self.start_took_s,
            up_s=now - self.ready_at,
        )

    # --- requests in it, and who waits for it ----------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of its process: those of its spec, which a reload changes between two processes."""
        return self.spec.unit.host, self.spec.unit.port

    @property
    def busy(self) -> bool:
        """Whether a request holds a lease on it."""
        return self.in_flight > 0

    def grant(self, name: str) -> Lease:
        """A lease on it under `name`, in flight until it is released."""
        self.in_flight += 1
        return Lease(name, self._released, address=self.address, granted_at=asyncio.get_running_loop().time())

    def _released(self, ok: bool) -> None:
        self.in_flight -= 1
        self.last_used = asyncio.get_running_loop().time()
        if ok:
            self.last_ok = self.last_used
        self.notify_waiters()

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait until none is in flight; False when `timeout_s` has passed first."""
        self.mark("draining", on=True)
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_while(lambda: self.busy)
        except TimeoutError:
            return False
        finally:
            self.mark("draining", on=True)  # it may have ended meanwhile: the caller is about to stop it
        return True

    async def until(self, *states: ServerState) -> ServerState:
        """Wait until the state is, or for an instant was, one of `states`; returns that one."""
        if self.life.state in states:
            return self.life.state
        reached: asyncio.Future[ServerState] = asyncio.get_running_loop().create_future()
        self._until.append((states, reached))
        try:
            return await reached
        finally:
            self._until.remove((states, reached))

    async def wait_while(self, holds: Callable[[], bool]) -> None:
        """Wait as long as `holds()`, which is tested again after every `notify_waiters`."""
        while holds():
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()

    def notify_waiters(self, *passed: ServerState) -> None:
        """Make `wait_while` test its condition again, and `until` return for the states in `passed`."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        for states, waiter in self._until:
            reached = next((state for state in passed if state in states), None)
            if reached is not None and not waiter.done():
                waiter.set_result(reached)

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask the lifecycle to run it; has no effect once it is `closed`."""
        self.dispatch(lifecycle.Start())

    def adopt(self, record: ServerRecord, *, by_hand: bool = False) -> bool:
        """Take over the process of `record`; returns False when that is gone."""
        taken = self._shared.owner.adopt(record, self._watcher)
        if taken is None:
            return False
        self._process, self.record = taken, record
        self._shared.owner.keep(record)
        self.emit(events.ServerAdopted(name=self.name, pid=taken.pid, by_hand=by_hand))
        self.dispatch(lifecycle.Start(adopt=True))
        return True

    def stop(self, why: str, *, force: bool = False) -> None:
        """Ask the lifecycle to stop it. `why`: as in `ServerStopping`."""
        self.dispatch(lifecycle.Stop(why, force=force))

    def broken(self, reason: str, code: str, *, final: bool = False) -> None:
        """Report that the process is alive and cannot be used; the lifecycle decides what follows."""
        self.failure = Diagnosis(code=code, cause=reason, remedy="read its log")
        self.dispatch(lifecycle.Broken(reason, final=final))

    def mark(self, flag: Flag, *, on: bool) -> None:
        """Set or clear a flag of its life, and let waiters test their conditions again."""
        self.dispatch(lifecycle.Marked(flag, on))
        self.notify_waiters()

    def abandon(self) -> None:
        """Stop watching the process without ending it."""
        self._cancel_probe()
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._process.release()

    def dispatch(self, event: Event) -> None:
        """Feed `event` to the lifecycle, carry out its actions, set its timer, and emit what changed."""
        loop, policy = asyncio.get_running_loop(), self.spec.policy
        before = self.life
        self.life, actions = lifecycle.step(before, event, loop.time(), policy)
        for action in actions:
            self._act(action)
        if self._timer is not None:
            self._timer.cancel()
        due = lifecycle.deadline_of(self.life, policy)
        self._timer = None if due is None else loop.call_at(due, self.dispatch, lifecycle.Tick())
        state = self.life.state
        if state != before.state:
            self._emit_change(before)
            # one that was asked to start again while it stopped: the old process is gone
            passed: tuple[ServerState, ...] = ("stopped",) if (before.state, state) == ("stopping", "starting") else ()
            self.notify_waiters(*passed, state)

    def _act(self, action: Action) -> None:
        process = self._process
        if action == "spawn":
            self._spawn()
        elif action == "probe" and process is not None:
            self._probe = asyncio.get_running_loop().create_task(self._prove(process))
        elif action == "say_slow":
            seconds = asyncio.get_running_loop().time() - self.life.since
            self.emit(events.ServerSlow(name=self.name, seconds=seconds, expected_s=self.spec.unit.load_s))
        elif process is not None:
            self._cancel_probe()
            if action == "terminate":
                process.terminate()
            else:
                process.kill()

    # --- process ---------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        spec, shared = self.spec, self._shared
        log = "" if shared.owner.log_dir is None else str(shared.owner.log_dir / f"{self.name}.log")
        record = new_record(spec, shared.deployment, shared.input_digest, log, self.life.restarts)
        level = self.fallbacks.degradation.level
        start = functools.partial(shared.owner.start, spec, level, record, self._watcher)
        try:
            self._process = AfterPeers(spec, start, self._on_exit) if spec.unit.peers else start()
        except RefusedError as error:
            self.failure, self.ending = error.why, Ending(code=None)
            shared.owner.forget(self.name)
            reason = lifecycle.Exited(error.why.cause, jitter=random.random())  # noqa: S311 - spreads restarts
            asyncio.get_running_loop().call_soon(self.dispatch, reason)
            return
        self.record, self.failure, self.ending = record, None, Ending(code=None)
        self.unhealthy = 0

    async def _prove(self, process: OwnedProcess) -> None:
        """Wait for the process and for its readiness, and report them, or what makes it impossible."""

        def progressed(loading: bool) -> None:
            self.dispatch(lifecycle.Progress(loading))

        policy = self.spec.policy
        interval_s = min(1.0, max(0.05, min(policy.stall_timeout_s, policy.start_timeout_s) / 4))
        pid = process.pid or await readiness.wait_started(process, interval_s, progressed)
        if process.address is not None:
            self.fallbacks.set_address(process.address)
        if self.record is not None and not self.record.pid:
            self.record = msgspec.structs.replace(self.record, **procfs.birth(pid))
            self._shared.owner.keep(self.record)
            started = events.ServerStarting(
                name=self.name,
                pid=pid,
                port=self.spec.unit.port,
                log_file=self.record.log_file,
                restart=self.life.restarts,
                socket=socket_path(self.spec.unit.host),
            )
            self.emit(started)
        trim = functools.partial(self._shared.owner.trim_log, self.name)
        watcher = asyncio.create_task(readiness.watch_progress(process, pid, interval_s, progressed, trim))
        try:
            await readiness.prove(self.spec, pid, token=self.record is None or self.record.ready_s is None)
        except readiness.UnfitError as error:
            await asyncio.sleep(_EXIT_NOTICE_S)
            self.broken(str(error), "supervise/unfit", final=True)
        except OSError as error:
            await asyncio.sleep(_EXIT_NOTICE_S)
            self.broken(f"the readiness probe failed: {error or type(error).__name__}", "supervise/not-ready")
        else:
            if self.saved_slots:
                await self._restore_slots()
            self.dispatch(lifecycle.Ready())
        finally:
            watcher.cancel()

    async def _restore_slots(self) -> None:
        saved, self.saved_slots = self.saved_slots, {}
        tokens = await slots.restore_slots(self.spec, saved)
        if tokens:
            self.emit(events.SlotsRestored(name=self.name, slots=len(tokens), tokens=sum(tokens)))

    def _cancel_probe(self) -> None:
        """Cancel the readiness probe; one that reports right now ends by itself."""
        probe, self._probe = self._probe, None
        if probe is not None and probe is not asyncio.current_task():
            probe.cancel()

    def _on_exit(self, ending: Ending) -> None:
        """Nothing of the process is left: find the cause, and after out-of-memory go down a level."""
        self._cancel_probe()
        if self._process is not None and self._process.address is not None:
            self.fallbacks.set_address(None)
        self._process, self.ending = None, ending
        self._shared.owner.forget(self.name)
        life = self.life
        if life.failing is None and life.state != "stopping":
            self.failure = cause_of_end(self.spec, ending, starting=life.state == "starting")
        why = self.failure
        code, reason = ("", describe_exit(ending.code)) if why is None else (why.code, why.cause)
        again = code in OUT_OF_MEMORY_CODES and life.wanted and not life.closed and self.fallbacks.degrade()
        if again:
            self.emit(events.RungTaken(name=self.name, rung=self.fallbacks.label, why=reason))
        brief = asyncio.get_running_loop().time() - life.since < _BRIEF_S
        jitter = random.random()  # noqa: S311 - spreads restarts
        unexplained = brief and code in UNEXPLAINED
        self.dispatch(
            lifecycle.Exited(reason, jitter=jitter, unexplained=unexplained, again=again, final=code == MISSING)
        )

    # --- events ------------------------------------------------------------------------------------------------

    def _emit_change(self, before: Life) -> None:
        life = self.life
        if life.state == "ready" and before.state == "starting":
            self.start_took_s = life.since - before.since
            self.last_used = self.ready_at = life.since
            if self.record is not None and self._process is not None:
                if self.record.ready_s is not None:
                    self.start_took_s = self.record.ready_s  # an earlier runtime saw it start
                self.record = msgspec.structs.replace(self.record, ready_s=self.start_took_s)
                self._shared.owner.keep(self.record)
                self.emit(events.ServerReady(name=self.name, pid=self._process.pid, seconds=self.start_took_s))
        elif life.state == "stopping" and life.failing is None:
            self.emit(events.ServerStopping(name=self.name, why=life.why))
        elif life.state == "stopped":
            self.emit(events.ServerStopped(name=self.name))
        elif life.state in ("backoff", "failed"):
            self.emit(self.failed_event())

    def failed_event(self) -> events.ServerFailed:
        """The failure with its cause and the end of the log."""
        life = self.life
        if self.failure is None:
            self.failure = overdue(self.spec, life.error or "")
        return events.ServerFailed(
            name=self.name,
            code=self.failure.code,
            cause=life.error or self.failure.cause,
            remedy=self.failure.remedy,
            exit_code=self.ending.code,
            tail=self.ending.tail,
            fatal=self.spec.unit.fatal,
            final=life.state == "failed",
            retry_s=None if life.deadline is None else life.deadline - life.since,
        )
