"""Life of one process as a pure function `(life, event, now) → (life, actions)`. Pure.

States and transitions are drawn in `lifecycle.mmd`, which a test compares with `step`. Time is a float of seconds from
any fixed point; jitter comes in with the event that needs it. The action `spawn` is asked for only while no process is
alive, and `alive` ends only with `Exited`, so that there are never two processes.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from launcher.ir.live import ServerState

SILENT_RETRIES = 2
"""How often a first start is repeated that failed without saying why (llama-server's logger is a thread: as it exits it
may lose its last lines, about one time in five; it loses all of them one time in forty)."""
FAILED_PAUSE_S = 30.0
"""Seconds after which a request may start a failed on-demand server again (`Retry-After` of its 503)."""
CHATTER = 10
"""Limit of a start that writes to its log but loads nothing, as a multiple of `start_timeout_s`."""
KILL_WAIT_S = 5.0
"""Seconds that a process may take to exit after SIGKILL (uninterruptible sleep) before it is reported as failed."""


Flag = Literal["draining", "held", "closed", "returning", "suspended", "over"]
_USABLE = ("ready", "sleeping")
_ENDED = ("stopped", "backoff", "failed")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits and restart rules of one process, in seconds.

    `stall_timeout_s` 0: no stall is detected, and a start ends at `start_timeout_s` in any case; otherwise a start that
    still makes progress goes on after it.
    """

    start_timeout_s: float
    stall_timeout_s: float
    stop_grace_s: float
    backoff_s: float
    backoff_max_s: float
    crash_loop_failures: int
    crash_loop_window_s: float


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """State of one process.

    `wanted`: it should run. `alive`: a process exists. `proven`: it was ready since it was last asked to start, so a
    failure now is worth a restart. `failing`: why it is being stopped although it is wanted. `since`: when the state
    began. `failures`: times of its failures on the clock of seconds served (`served_s`).
    """

    state: ServerState = "stopped"
    wanted: bool = False
    alive: bool = False
    proven: bool = False
    killed: bool = False
    failing: str | None = None
    why: str = "stop"
    """The reason given with the last `Stop`."""
    error: str | None = None
    since: float = 0.0
    progress_at: float = 0.0
    loaded_at: float = 0.0
    """When it last made progress in loading."""
    slow: bool = False
    """It is still starting after `start_timeout_s`, because it makes progress."""
    deadline: float | None = None
    failures: tuple[float, ...] = ()
    ended_at: float | None = None
    """When its last process ended."""
    served_s: float = 0.0
    restarts: int = 0
    silent_retries: int = 0
    """Repetitions of a first start that failed without saying why."""
    draining: bool = False
    """It takes no more requests, because it is about to be stopped."""
    held: bool = False
    """An operator stopped it: nothing starts it again before this is cleared."""
    closed: bool = False
    """The fleet ends, or a reload removed it: nothing starts it again."""
    returning: bool = False
    """A reload stops it in order to start it again: requests wait for it."""
    suspended: bool = False
    """Its process is stopped by a signal (SIGSTOP, a debugger): it does not answer, and may resume at any time."""
    over: bool = False
    """Its process has ended, and how is not known yet."""

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return self.state in _USABLE and not (self.draining or self.suspended or self.over)

    @property
    def shown(self) -> ServerState:
        """The state to show to people: one that drains is shown as stopping."""
        return "stopping" if self.draining else self.state


class Start(msgspec.Struct, frozen=True):
    """The process should run. `adopt`: it exists already."""

    adopt: bool = False


class Stop(msgspec.Struct, frozen=True):
    """The process should not run; `why` is for people. `force`: SIGKILL at once."""

    why: str = "stop"
    force: bool = False


class Ready(msgspec.Struct, frozen=True):
    """The process was proven ready."""


class Progress(msgspec.Struct, frozen=True):
    """The process wrote to its log while starting; `loading`: it has read, or holds in memory, more than before."""

    loading: bool = False


class Slept(msgspec.Struct, frozen=True):
    """The server's own sleep began (`asleep`) or ended."""

    asleep: bool


class Broken(msgspec.Struct, frozen=True):
    """The process is alive and cannot be used: `reason`. `final`: another try would end the same way."""

    reason: str
    final: bool = False


class Exited(msgspec.Struct, frozen=True):
    """The process ended, or none could be made. `reason` says how; `jitter` in [0, 1) spreads restarts.

    `unexplained`: neither its log nor its exit code says why.
    """

    reason: str
    jitter: float = 0.5
    unexplained: bool = False
    again: bool = False
    """It ran out of memory and has a smaller fallback, which is started at once; this counts as no failure."""
    final: bool = False
    """Another try would end the same way, until something else changes that is watched elsewhere (a missing RPC
    peer)."""


class Marked(msgspec.Struct, frozen=True):
    """A `flag` of the life was set or cleared from outside; it changes no state."""

    flag: Flag
    on: bool


class Tick(msgspec.Struct, frozen=True):
    """Time passed; `deadline_of` says when one is due."""


Event = Start | Stop | Ready | Progress | Slept | Broken | Exited | Tick | Marked
Action = Literal["spawn", "probe", "terminate", "kill", "say_slow"]
Step = tuple[Life, tuple[Action, ...]]
"""The next life, and the actions to carry out, in order."""


def step(life: Life, event: Event, now: float, policy: Policy) -> Step:
    """The life after `event` at the time `now`, and the actions to carry out."""
    following: Life = life
    actions: tuple[Action, ...] = ()
    match event:
        case Marked():
            return replace(life, **{event.flag: event.on}), ()
        case Start():
            following, actions = _start(life, event, now, policy)
        case Stop():
            following, actions = _stop(life, event, now, policy)
        case Ready() if life.state == "starting":
            following = replace(life, state="ready", proven=True, deadline=None, error=None, since=now)
        case Progress():
            following = replace(life, progress_at=now, loaded_at=now if event.loading else life.loaded_at)
        case Slept() if life.state in _USABLE:
            following = replace(life, state="sleeping" if event.asleep else "ready")
        case Broken():
            following, actions = _broken(life, event, now, policy)
        case Exited():
            following, actions = _exited(life, event, now, policy)
        case Tick():
            following, actions = _tick(life, now, policy)
    ended = following.state != life.state and following.state in _ENDED
    return replace(following, draining=following.draining and not ended), actions


def routing_state(life: Life, now: float, *, on_demand: bool) -> ServerState:
    """The state by which requests are routed: a process that will soon be back is worth waiting for."""
    if life.returning and (life.draining or life.state in ("stopping", "stopped")):
        return "starting"
    if life.draining:
        return "stopping"
    restarts = life.state == "stopping" and life.failing is not None and life.proven
    if restarts or ((life.suspended or life.over) and life.state in _USABLE):
        return "backoff"
    if life.state == "failed" and on_demand and not life.alive and now - life.since >= FAILED_PAUSE_S:
        return "stopped"  # a request may try again
    return life.state


def deadline_of(life: Life, policy: Policy) -> float | None:
    """When the next `Tick` is due; None: never."""
    if life.state == "starting" and policy.stall_timeout_s > 0:
        stalled = life.progress_at + policy.stall_timeout_s
        return stalled if life.deadline is None else min(stalled, life.deadline)
    return life.deadline


def backoff_s(failures: int, jitter: float, policy: Policy) -> float:
    """Seconds before restart number `failures`: doubling from `backoff_s` to `backoff_max_s`, half of them jitter."""
    doubled = min(policy.backoff_max_s, policy.backoff_s * 2.0 ** min(failures - 1, 60))
    return doubled * (0.5 + 0.5 * jitter)


def _start(life: Life, event: Start, now: float, policy: Policy) -> Step:
    """Start, unless a process exists; one that is stopping is followed by a new one."""
    if (life.closed or life.held) and not event.adopt:
        return life, ()
    life = replace(life, held=False, draining=False)
    if life.state == "stopping" and life.failing is None:
        return replace(life, wanted=True, proven=False, failures=(), silent_retries=0), ()
    if life.state not in _ENDED or life.alive:
        return life, ()
    fresh = replace(life, wanted=True, proven=False, failures=(), error=None, silent_retries=0)
    return _begin(fresh, now, policy, adopt=event.adopt)


def _served(life: Life, now: float) -> Life:
    """Add the time since it was ready to `served_s`: the crash-loop window counts only that (a load takes minutes)."""
    if life.state not in _USABLE:
        return life
    return replace(life, served_s=life.served_s + now - life.since)


def _begin(life: Life, now: float, policy: Policy, *, adopt: bool = False) -> Step:
    begun = replace(
        life,
        state="starting",
        alive=True,
        killed=False,
        failing=None,
        since=now,
        progress_at=now,
        loaded_at=now,
        slow=False,
        deadline=now + policy.start_timeout_s,
    )
    return begun, ("probe",) if adopt else ("spawn", "probe")


def _stop(life: Life, event: Stop, now: float, policy: Policy) -> Step:
    """Stop: at once where no process is alive, otherwise SIGTERM, grace, SIGKILL."""
    life = replace(life, wanted=False, why=event.why)
    if not life.alive:
        return replace(life, state="stopped", deadline=None, since=now, failures=()), ()
    if life.state == "failed" or (life.state == "stopping" and event.force and not life.killed):
        killing = replace(life, state="stopping", failing=None, killed=True, deadline=now + KILL_WAIT_S)
        return killing, ("kill",)
    if life.state == "stopping":
        return replace(life, failing=None), ()
    return _terminate(life, None, now, policy, force=event.force)


def _terminate(life: Life, failing: str | None, now: float, policy: Policy, *, force: bool = False) -> Step:
    life = _served(life, now)
    grace = KILL_WAIT_S if force else policy.stop_grace_s
    stopping = replace(life, state="stopping", failing=failing, killed=force, since=now, deadline=now + grace)
    return stopping, ("kill",) if force else ("terminate",)


def _broken(life: Life, event: Broken, now: float, policy: Policy) -> Step:
    """Stop a process that cannot be used; whether it is restarted is decided when it has exited."""
    if life.state not in ("starting", *_USABLE):
        return life, ()
    if event.final:
        life = replace(life, proven=False)
    return _terminate(life, event.reason, now, policy)


def _exited(life: Life, event: Exited, now: float, policy: Policy) -> Step:
    """Stopped as asked, or a failure: backoff if it was ever ready and is in no crash loop, otherwise failed."""
    if not life.alive:
        return life, ()
    life = _served(replace(life, alive=False, suspended=False, over=False, ended_at=now), now)
    if life.state == "stopping" and life.failing is None:
        stopped = replace(life, state="stopped", deadline=None, since=now)
        return _begin(stopped, now, policy) if life.wanted else (stopped, ())
    if life.state == "failed":
        return life, ()
    reason = life.failing or event.reason
    if event.again:
        return _begin(replace(life, restarts=life.restarts + 1, draining=False), now, policy)
    window = policy.crash_loop_window_s
    recent = (*(t for t in life.failures if life.served_s - t < window), life.served_s)
    life = replace(life, failures=recent)
    if not life.proven or event.final:
        if event.unexplained and life.failing is None and life.silent_retries < SILENT_RETRIES:
            return _begin(replace(life, silent_retries=life.silent_retries + 1), now, policy)
        return _failed(life, reason, now), ()
    if len(recent) >= policy.crash_loop_failures:
        return _failed(life, f"{reason} (failure {len(recent)} within {window:g} s of service: given up)", now), ()
    pause = backoff_s(len(recent), event.jitter, policy)
    return (
        replace(life, state="backoff", failing=None, error=reason, since=now, deadline=now + pause),
        (),
    )


def _failed(life: Life, reason: str, now: float) -> Life:
    return replace(life, state="failed", failing=None, error=reason, since=now, deadline=None)


def _tick(life: Life, now: float, policy: Policy) -> Step:
    due = deadline_of(life, policy)
    if due is None or now < due:
        return life, ()
    if life.state == "starting":
        return _overdue(life, now, policy)
    if life.state == "stopping" and not life.killed:
        return replace(life, killed=True, deadline=now + KILL_WAIT_S), ("kill",)
    if life.state == "stopping":
        return _failed(life, f"does not die: still there {KILL_WAIT_S:g} s after SIGKILL", now), ()
    if life.state == "backoff":
        return _begin(replace(life, restarts=life.restarts + 1), now, policy)
    return life, ()


def _overdue(life: Life, now: float, policy: Policy) -> Step:
    """End a start that stalled, or that is late and makes no progress any more."""
    if life.deadline is None or now < life.deadline:
        reason = f"stalled: no log output and no memory loaded for {policy.stall_timeout_s:g} s"
        return _terminate(life, reason, now, policy)
    patience = min(policy.stall_timeout_s, policy.start_timeout_s)
    talks_until = min(life.progress_at + patience, life.since + CHATTER * policy.start_timeout_s)
    until = talks_until if life.progress_at > life.since else life.deadline
    if life.loaded_at > life.since:
        until = max(until, life.loaded_at + patience)
    if now < until:
        return replace(life, slow=True, deadline=until), () if life.slow else ("say_slow",)
    reason = f"not ready after {policy.start_timeout_s:g} s"
    if life.slow:
        reason += f", nor after {now - life.since:.0f} s: it got no further for {patience:g} s"
    return _terminate(life, reason, now, policy)
