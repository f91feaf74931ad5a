"""One process of the fleet in the event loop: carries out what the lifecycle decides, and tells it what happens."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.base.addresses import socket_of
from launcher.ir.live import ServerState
from launcher.supervise import events, readiness, slots
from launcher.supervise.causes import FROM_OUTSIDE, UNEXPLAINED, cause_of_end, overdue
from launcher.supervise.diagnosis import Diagnosis
from launcher.supervise.fallbacks import Fallbacks
from launcher.supervise.identity import ServerRecord, new_record
from launcher.supervise.inflight import InFlight
from launcher.supervise.lifecycle import (
    Action,
    Broken,
    Event,
    Exited,
    Flag,
    Life,
    Marked,
    Progress,
    Ready,
    SpawnFailed,
    Start,
    Stop,
    Tick,
    deadline_of,
    routing_state,
    shown_state,
    step,
    usable,
)
from launcher.supervise.owner import Ending, OwnedProcess, ProcessOwner, RefusedError
from launcher.supervise.peers import MISSING, start_after_peers
from launcher.supervise.process import birth, describe_exit
from launcher.supervise.scheduler import Tenant
from launcher.supervise.spec import ProcessSpec

_LOG = logging.getLogger("launch.supervise")
_BRIEF_S = 10.0
"""A start that took longer is not repeated only to learn why it failed."""
_EXIT_NOTICE_S = 0.2
"""How long the end of a process may take to be noticed after its connection broke."""


class SharedContext(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes of a deployment share. `emit` gets every event; it must not block."""

    deployment: str
    input_digest: str
    state_dir: Path
    owner: ProcessOwner
    emit: Callable[[events.AnyEvent], None]


class Runner(InFlight):
    """One server or service: its spec, its life, its process, and the requests in it."""

    def __init__(self, spec: ProcessSpec, shared: SharedContext) -> None:
        """Nothing is started yet."""
        super().__init__()
        self.fallbacks = Fallbacks(spec)
        self.life = Life()
        self.record: ServerRecord | None = None
        self.failure: Diagnosis | None = None
        self.ending: Ending | None = None
        self.ready_s: float | None = None
        self._took_s: float | None = None
        self.unhealthy = 0
        self._saved_slots: dict[str, int] = {}
        """Tokens by file of the slots that were saved when it was swapped out."""
        self._shared = shared
        self._process: OwnedProcess | None = None
        self._probe: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[tuple[ServerState, ...], asyncio.Future[ServerState]]] = []
        self._why, self._proven_before = "stop", False

    @property
    def address(self) -> tuple[str, int]:
        """Where its process listens: that of its spec, which a reload changes between two processes."""
        return self.spec.unit.host, self.spec.unit.port

    @property
    def spec(self) -> ProcessSpec:
        """What it is run as: the planned spec, or after out-of-memory one of its fallbacks; where it landed."""
        return self.fallbacks.spec

    @spec.setter
    def spec(self, planned: ProcessSpec) -> None:
        self.fallbacks.take(planned)

    @property
    def running_argv(self) -> tuple[str, ...]:
        """What runs, as a reload compares it: fallen back it counts as run as planned."""
        running = self.record.argv if self.record is not None else ()
        return self.fallbacks.planned.unit.argv if running == self.spec.unit.argv else running

    # --- what others see ---------------------------------------------------------------------------------

    @property
    def state(self) -> ServerState:
        """What people are shown."""
        return shown_state(self.life)

    @property
    def routing_state(self) -> ServerState:
        """The state that requests go by."""
        by_request = self.spec.unit.start == "demand" or self.spec.unit.exclusive is not None
        return routing_state(self.life, asyncio.get_running_loop().time(), on_demand=by_request)

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return usable(self.life)

    @property
    def starting_s(self) -> float | None:
        """How long it has been starting; None in every other state."""
        starting = self.life.state == "starting"
        return asyncio.get_running_loop().time() - self.life.since if starting else None

    @property
    def left_s(self) -> float | None:
        """How long until it serves, by its last start, else by its medium's speed; None: not known, or not asked."""
        takes_s = self.spec.unit.load_s if self._took_s is None else self._took_s
        waits = self.life.state in ("starting", "stopped", "stopping", "backoff")
        return max(0.0, takes_s - (self.starting_s or 0.0)) if waits and takes_s is not None else None

    def tenant(self, now: float) -> Tenant:
        """As the scheduler sees it."""
        return Tenant(
            spec=self.spec,
            life=self.life,
            in_flight=self.in_flight,
            idle_s=now - self.last_used,
            ready_s=self.ready_s,
            up_s=now - self.ready_at,
        )

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._process.pid or None if self._process is not None else None

    @property
    def exit_code(self) -> int | None:
        """How its last process ended; None where nobody knows."""
        return self.ending.code if self.ending is not None else None

    @property
    def ended_from_outside(self) -> bool:
        """Whether nobody need have caused its last end by a request; also while it is not known how it ended."""
        return self.usable or self.exit_code in FROM_OUTSIDE

    @property
    def log_file(self) -> Path | None:
        """Where its log is written; None: in the journal."""
        return self._shared.owner.log_file(self.spec.name)

    async def trim_log(self) -> None:
        """Keep its log below the limit."""
        await self._shared.owner.trim_log(self.spec.name)

    async def until(self, *states: ServerState) -> ServerState:
        """Wait until the life is, or for an instant was, in one of `states`; gives which."""
        if self.life.state in states:
            return self.life.state
        reached: asyncio.Future[ServerState] = asyncio.get_running_loop().create_future()
        self._waiting.append((states, reached))
        try:
            return await reached
        finally:
            self._waiting.remove((states, reached))

    async def settled(self) -> ServerState:
        """Wait until it takes requests, or will not before somebody starts it; gives the state then."""
        over = ("failed", "stopped")
        await self.wait_while(lambda: not self.usable and (self.life.returning or self.life.state not in over))
        return self.life.state

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have it run; nothing happens once it is `closed`."""
        self._proven_before = False
        self.dispatch(Start())

    def adopt(self, record: ServerRecord, *, by_hand: bool = False) -> bool:
        """Take over the process of `record`; False when it is not there any more."""
        taken = self._shared.owner.adopt(record)
        if taken is None:
            return False
        self._process = taken
        self.record = record
        self._proven_before = record.ready_s is not None
        self._shared.owner.keep(record)
        taken.watch(self._gone, lambda: self.mark("over", on=True))
        self._shared.emit(events.ServerAdopted(name=self.spec.name, pid=taken.pid, by_hand=by_hand))
        self.dispatch(Start(adopt=True))
        return True

    def stop(self, why: str, *, force: bool = False) -> None:
        """Have it not run. `why` as in `ServerStopping`."""
        self._why = why
        self.dispatch(Stop(force=force))

    def broken(self, reason: str, code: str, *, final: bool = False) -> None:
        """It is alive and of no use; the lifecycle decides what follows."""
        self._why = "unhealthy"
        self.failure = Diagnosis(code=code, cause=reason, remedy="read its log")
        self.dispatch(Broken(reason, final=final))

    def dispatch(self, event: Event) -> None:
        """Feed `event` to the lifecycle, carry out its actions, tell what changed."""
        now = asyncio.get_running_loop().time()
        before = self.life
        self.life, actions = step(before, event, now, self.spec.policy)
        for action in actions:
            self._act(action)
        self._arm()
        if self.life.state != before.state:
            self._emit_change(before)
            passed = [self.life.state]
            if before.state == "stopping" and self.life.state == "starting":
                passed.insert(0, "stopped")  # it was asked to start again meanwhile: the old process is gone
            for states, waiter in self._waiting:
                reached = next((state for state in passed if state in states), None)
                if reached is not None and not waiter.done():
                    waiter.set_result(reached)
            self.notify_waiters()

    def mark(self, flag: Flag, *, on: bool) -> None:
        """Set or clear a flag of its life, and have who waits look again."""
        self.dispatch(Marked(flag, on))
        self.notify_waiters()

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait until none is in flight; False when `timeout_s` passed first."""
        self.mark("draining", on=True)
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_while(lambda: self.busy)
        except TimeoutError:
            return False
        finally:
            self.mark("draining", on=True)  # it may have ended meanwhile: the caller is about to stop it
        return True

    def abandon(self) -> None:
        """Let go of the process without ending it."""
        self._cancel_probe()
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._process.release()

    # --- actions -----------------------------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        """Carry out one action."""
        if action == "spawn":
            self._spawn()
        elif action == "probe" and self._process is not None:
            self._probe = asyncio.get_running_loop().create_task(self._prove(self._process))
        elif action == "terminate" and self._process is not None:
            self._cancel_probe()
            self._process.terminate()
        elif action == "kill" and self._process is not None:
            self._cancel_probe()
            self._process.kill()
        elif action == "say_slow":
            seconds = asyncio.get_running_loop().time() - self.life.since
            self.emit(events.ServerSlow(name=self.spec.name, seconds=seconds, expected_s=self.spec.unit.load_s))

    def _spawn(self) -> None:
        """Start the process, unless something is in the way."""
        spec, owner = self.spec, self._shared.owner
        log = str(self.log_file or "")
        record = new_record(spec, self._shared.deployment, self._shared.input_digest, log, self.life.restarts)
        try:
            self._process = start_after_peers(owner, spec, self.fallbacks.degradation.level, record)
        except RefusedError as error:
            self.failure, self.ending = error.why, None
            owner.forget(spec.name)
            reason = SpawnFailed(error.why.cause, jitter=random.random())  # noqa: S311 - spreads restarts
            asyncio.get_running_loop().call_soon(self.dispatch, reason)
            return
        self.record, self.failure, self.ending, self.ready_s, self.unhealthy = record, None, None, None, 0
        self._process.watch(self._gone, lambda: self.mark("over", on=True))
        if self._process.pid:
            self._started(self._process.pid)

    def _started(self, pid: int) -> None:
        """There is a process."""
        if self.record is None or self.record.pid:
            return
        self.record = msgspec.structs.replace(self.record, **birth(pid))
        self._shared.owner.keep(self.record)
        started = events.ServerStarting(
            name=self.spec.name,
            pid=pid,
            port=self.spec.unit.port,
            log_file=self.record.log_file,
            restart=self.life.restarts,
            socket=socket_of(self.spec.unit.host),
        )
        self.emit(started)

    async def _prove(self, process: OwnedProcess) -> None:
        """Wait for readiness and report it, or what makes it impossible."""
        policy = self.spec.policy
        interval_s = min(1.0, max(0.05, min(policy.stall_timeout_s, policy.start_timeout_s) / 4))
        pid = await readiness.begun(process, interval_s, lambda: self.dispatch(Progress(loading=True)))
        self.fallbacks.land(process.address)
        self._started(pid)

        async def log_mark() -> object:
            await self.trim_log()  # what floods its log before it is ready fills no disk
            return await process.log_mark()

        watcher = asyncio.create_task(
            readiness.watch_progress(pid, log_mark, interval_s, lambda loading: self.dispatch(Progress(loading)))
        )
        try:
            await readiness.prove(self.spec, pid, token=not self._proven_before)
        except readiness.UnfitError as error:
            await asyncio.sleep(_EXIT_NOTICE_S)
            self.broken(str(error), "supervise/unfit", final=True)
        except OSError as error:
            await asyncio.sleep(_EXIT_NOTICE_S)
            self.broken(f"the readiness probe failed: {error or type(error).__name__}", "supervise/not-ready")
        else:
            await self._restore_slots()
            self.dispatch(Ready())
        finally:
            watcher.cancel()

    async def save_slots(self) -> None:
        """Have the server, which no request is in, write its slots; they are read when it is back."""
        self._saved_slots = await slots.save_slots(self.spec) if self.life.state == "ready" else {}

    async def _restore_slots(self) -> None:
        saved, self._saved_slots = self._saved_slots, {}
        if not saved:
            return
        restored = await slots.restore_slots(self.spec, saved)
        if restored:
            self.emit(events.SlotsRestored(name=self.spec.name, slots=len(restored), tokens=sum(restored)))

    def _gone(self, ending: Ending) -> None:
        """Nothing of it is left."""
        self._cancel_probe()
        self._process, self.ending = None, ending
        self.fallbacks.land(None)
        self._shared.owner.forget(self.spec.name)
        if self.life.failing is None and self.life.state != "stopping":
            self.failure = self._cause(ending)
        why = self.failure
        code, reason = (why.code, why.cause) if why is not None else ("", describe_exit(ending.code))
        brief = asyncio.get_running_loop().time() - self.life.since < _BRIEF_S
        unexplained, again = brief and code in UNEXPLAINED, self._degrade()
        jitter = random.random()  # noqa: S311 - spreads restarts
        self.dispatch(Exited(reason, jitter=jitter, unexplained=unexplained, again=again, final=code == MISSING))

    def _cause(self, ending: Ending) -> Diagnosis | None:
        """What it failed of, as far as this host can be asked."""
        try:
            return cause_of_end(self.spec, ending, starting=self.life.state == "starting")
        except (OSError, ValueError) as error:  # no descriptor left, /proc hidden: it has ended all the same
            _LOG.warning("why %s ended cannot be looked into: %s", self.spec.name, error)
            return Diagnosis(code="supervise/exited", cause=describe_exit(ending.code), remedy="read its log")

    def _degrade(self) -> bool:
        """After out-of-memory: have it run by its next fallback; whether there is one."""
        failure = self.failure
        if failure is None or self.life.closed or not self.life.wanted or not self.fallbacks.degrade(failure.code):
            return False
        self.emit(events.RungTaken(name=self.spec.name, rung=self.fallbacks.label, why=failure.cause))
        return True

    def emit(self, event: events.AnyEvent) -> None:
        """Pass an event on to whoever watches the fleet."""
        self._shared.emit(event)

    def _cancel_probe(self) -> None:
        """End the readiness probe; one that reports right now ends by itself."""
        probe, self._probe = self._probe, None
        if probe is not None and probe is not asyncio.current_task():
            probe.cancel()

    def _arm(self) -> None:
        """Set the timer to the lifecycle's next deadline."""
        if self._timer is not None:
            self._timer.cancel()
        due = deadline_of(self.life, self.spec.policy)
        loop = asyncio.get_running_loop()
        self._timer = None if due is None else loop.call_at(due, self.dispatch, Tick())

    # --- events ------------------------------------------------------------------------------------------------

    def _emit_change(self, before: Life) -> None:
        """Emit what a change of state means to those outside."""
        name, life = self.spec.name, self.life
        if life.state == "ready" and before.state == "starting":
            self._became_ready(before)
        elif life.state == "stopping" and life.failing is None:
            self._shared.emit(events.ServerStopping(name=name, why=self._why))
        elif life.state == "stopped":
            self._shared.emit(events.ServerStopped(name=name))
        elif life.state in ("backoff", "failed"):
            self._shared.emit(self.failed_event())

    def _became_ready(self, before: Life) -> None:
        """Record and tell it."""
        self.ready_s = self._took_s = self.life.since - before.since
        self.last_used = self.ready_at = self.life.since
        if self.record is not None and self._process is not None:
            if self._proven_before and self.record.ready_s is not None:
                self.ready_s = self.record.ready_s
            self.record = msgspec.structs.replace(self.record, ready_s=self.ready_s)
            self._shared.owner.keep(self.record)
            self._shared.emit(events.ServerReady(name=self.spec.name, pid=self._process.pid, seconds=self.ready_s))

    def failed_event(self) -> events.ServerFailed:
        """The failure with its cause and the end of the log."""
        life = self.life
        if self.failure is None:
            self.failure = overdue(self.spec, life.error or "")
        retry_s = None if life.deadline is None else life.deadline - life.since
        return events.ServerFailed(
            name=self.spec.name,
            code=self.failure.code,
            cause=life.error or self.failure.cause,
            remedy=self.failure.remedy,
            exit_code=self.exit_code,
            tail=self.ending.tail if self.ending is not None else (),
            fatal=self.spec.unit.fatal,
            final=life.state == "failed",
            retry_s=retry_s,
        )
