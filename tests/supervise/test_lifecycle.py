"""The lifecycle as a state machine: whatever happens in whatever order, its promises hold."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from launcher.supervise.lifecycle import (
    KILL_WAIT_S,
    SILENT_RETRIES,
    Action,
    Broken,
    Event,
    Exited,
    Life,
    Policy,
    Progress,
    Ready,
    Slept,
    Start,
    Stop,
    Tick,
    backoff_s,
    deadline_of,
    step,
)

POLICY = Policy(
    start_timeout_s=30,
    stall_timeout_s=10,
    stop_grace_s=5,
    backoff_s=0.5,
    backoff_max_s=8,
    crash_loop_failures=3,
    crash_loop_window_s=60,
)


def play(*script: tuple[Event, float]) -> tuple[Life, list[Action]]:
    """The life after the script of events with their times, and all actions."""
    life, done = Life(), []
    for event, now in script:
        life, actions = step(life, event, now, POLICY)
        done += actions
    return life, done


class World(RuleBasedStateMachine):
    """The lifecycle with an environment that behaves as badly as it can."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Life()
        self.now = 0.0
        self.processes = 0
        self.signalled = False
        self.spawns_since_start = 0
        self.served_s = 0.0

    def feed(self, event: Event) -> None:
        """One event, and its actions carried out."""
        self.life, actions = step(self.life, event, self.now, POLICY)
        for action in actions:
            if action == "spawn":
                self.processes += 1
                self.spawns_since_start += 1
                self.signalled = False
            if action in ("terminate", "kill"):
                self.signalled = True

    @rule()
    def start(self) -> None:
        """Somebody wants it."""
        if self.life.state in ("stopped", "failed", "backoff", "stopping") and self.life.failing is None:
            self.spawns_since_start = 0
            self.served_s = 0.0
        self.feed(Start())

    @rule(force=st.booleans())
    def stop(self, force: bool) -> None:
        """Nobody wants it."""
        self.feed(Stop(force=force))

    @rule(
        event=st.sampled_from(
            [Ready(), Progress(), Progress(True), Slept(True), Slept(False), Broken("b"), Broken("b", True)]
        )
    )
    def report(self, event: Event) -> None:
        """Anything the outside may say at any time."""
        self.feed(event)

    @precondition(lambda self: self.processes > 0)
    @rule(jitter=st.floats(0, 1, exclude_max=True), spawned=st.booleans(), unexplained=st.booleans())
    def end(self, jitter: float, spawned: bool, unexplained: bool) -> None:
        """The process ends, or never came to be."""
        self.processes -= 1
        self.feed(Exited("x", jitter, unexplained and spawned))

    @rule(seconds=st.sampled_from([0.1, 1, 6, 31]))
    def wait(self, seconds: float) -> None:
        """Time passes, and the timer fires when it is due."""
        if self.life.state in ("ready", "sleeping"):
            self.served_s += seconds
        self.now += seconds
        self.feed(Tick())

    @rule()
    def stop_ends(self) -> None:
        """From anywhere, Stop and time lead to an end, at the latest with SIGKILL."""
        life, signals = self.life, []
        life, actions = step(life, Stop(), self.now, POLICY)
        signals += actions
        now = self.now
        while life.state == "stopping":
            due = deadline_of(life, POLICY)
            assert due is not None
            assert due - now <= max(POLICY.stop_grace_s, KILL_WAIT_S) + 1e-6
            now = due
            if life.killed:
                life, actions = step(life, Exited("killed"), now, POLICY)
            else:
                life, actions = step(life, Tick(), now, POLICY)
                assert "kill" in actions
        assert life.state == "stopped"

    @invariant()
    def never_two(self) -> None:
        """There is at most one process, and the life knows of it."""
        assert self.processes == int(self.life.alive)
        assert self.processes <= 1

    @invariant()
    def waits_for_something(self) -> None:
        """Every state that must not last has a deadline; STARTING ends with ready or failure."""
        if self.life.state in ("starting", "stopping", "backoff"):
            assert deadline_of(self.life, POLICY) is not None
        if self.life.state in ("stopped", "backoff"):
            assert not self.life.alive
        if self.life.state == "stopping":
            assert self.signalled

    @invariant()
    def bounded_restarts(self) -> None:
        """Within one crash-loop window of service there are no more starts than the limit."""
        if self.served_s < POLICY.crash_loop_window_s:
            assert self.spawns_since_start <= POLICY.crash_loop_failures + 1 + SILENT_RETRIES


World.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWorld = World.TestCase


def test_a_first_start_that_fails_is_not_repeated() -> None:
    """A broken model stays broken: FAILED at once, with the reason."""
    life, actions = play((Start(), 0), (Exited("exited with code 1"), 1))
    assert (life.state, life.error) == ("failed", "exited with code 1")
    assert actions == ["spawn", "probe"]


def test_a_first_start_that_says_nothing_is_looked_at_again() -> None:
    """Twice more, at once; a reason ends it, and so does the last look."""
    mute = Exited("exited with code 1", unexplained=True)
    life, actions = play((Start(), 0), (mute, 1), (mute, 2))
    assert (life.state, life.silent_retries, actions.count("spawn")) == ("starting", 2, 3)
    assert step(life, mute, 3, POLICY)[0].state == "failed"
    assert step(play((Start(), 0), (mute, 1))[0], Exited("no model"), 2, POLICY)[0].error == "no model"


def test_a_crash_after_ready_backs_off_and_restarts() -> None:
    """BACKOFF, then a new process, counted."""
    life, _ = play((Start(), 0), (Ready(), 1), (Exited("killed by SIGKILL", 0.0), 9))
    assert (life.state, life.deadline) == ("backoff", 9.25)
    life, actions = step(life, Tick(), 9.25, POLICY)
    assert (life.state, life.restarts, actions) == ("starting", 1, ("spawn", "probe"))


def test_a_crash_loop_is_cut() -> None:
    """The third failure without a window of service between them is the last."""
    script: list[tuple[Event, float]] = [(Start(), 0.0)]
    for round_ in range(3):
        script += [(Tick(), round_ * 100.0), (Ready(), round_ * 100.0 + 1), (Exited("x"), round_ * 100.0 + 2)]
    life, _ = play(*script)
    assert life.state == "failed"
    assert "given up" in (life.error or "")


def test_long_service_forgives_failures() -> None:
    """A failure a day is no crash loop."""
    script: list[tuple[Event, float]] = [(Start(), 0.0)]
    for day in range(1, 20):
        script += [(Ready(), day * 86400.0), (Exited("x"), day * 86400.0 + 1000), (Tick(), day * 86400.0 + 2000)]
    life, _ = play(*script)
    assert (life.state, life.restarts) == ("starting", 19)


def test_slow_is_allowed_and_stalled_is_not() -> None:
    """Progress moves the stall deadline; silence ends in SIGTERM."""
    life, _ = play((Start(), 0), (Progress(), 8), (Tick(), 12))
    assert life.state == "starting"
    life, actions = step(life, Tick(), 18, POLICY)
    assert (life.state, actions) == ("stopping", ("terminate",))
    assert "stalled" in (life.failing or "")


def test_a_late_start_that_loads_is_left_alone_and_said_once() -> None:
    """After `start_timeout_s` progress decides, however long it takes; a pause as long as a stall ends it."""
    script: list[tuple[Event, float]] = [(Start(), 0.0)]
    for second in range(5, 1000, 5):
        script += [(Progress(loading=True), float(second)), (Tick(), second + 4.0)]
    life, actions = play(*script)
    assert (life.state, life.slow, actions.count("say_slow")) == ("starting", True, 1)
    life, actions = play(*script, (Tick(), 1006.0))
    assert (life.state, actions[-1]) == ("stopping", "terminate")
    ready, _ = play(*script, (Ready(), 996.0), (Tick(), 2000.0))
    assert ready.state == "ready"
    assert not step(step(ready, Exited("x"), 2001, POLICY)[0], Tick(), 2010, POLICY)[0].slow


def test_a_late_start_that_only_talks_ends() -> None:
    """Ten times `start_timeout_s`: a log alone proves no load."""
    script: list[tuple[Event, float]] = [(Start(), 0.0)]
    for second in range(5, 305, 5):
        script += [(Progress(), float(second)), (Tick(), float(second))]
    life, actions = play(*script)
    assert actions == ["spawn", "probe", "say_slow", "terminate"]
    assert life.failing == "not ready after 30 s, nor after 300 s: it got no further for 10 s"


def test_without_stall_detection_the_timeout_is_hard() -> None:
    """`stall_timeout_s` 0, as services have: progress is not looked at."""
    hard = msgspec.structs.replace(POLICY, stall_timeout_s=0)
    life, _ = step(Life(), Start(), 0, hard)
    life, _ = step(life, Progress(loading=True), 29, hard)
    life, actions = step(life, Tick(), 30, hard)
    assert (actions, life.failing) == (("terminate",), "not ready after 30 s")


def test_a_start_while_stopping_starts_again_afterwards() -> None:
    """Stop then Start is a restart, one process after the other."""
    life, actions = play((Start(), 0), (Ready(), 1), (Stop(), 2), (Start(), 3), (Exited("x"), 4))
    assert (life.state, actions) == ("starting", ["spawn", "probe", "terminate", "spawn", "probe"])


def test_an_adopted_process_is_not_spawned() -> None:
    """Adoption only proves."""
    life, actions = play(
        (Start(adopt=True), 0),
    )
    assert (life.state, life.alive, actions) == ("starting", True, ["probe"])


def test_what_does_not_die_is_said_to_be_there() -> None:
    """A process that survives SIGKILL ends in FAILED, still alive, so nothing is spawned beside it."""
    life, actions = play((Start(), 0), (Stop(), 1), (Tick(), 6), (Tick(), 11), (Start(), 12))
    assert (life.state, life.alive, actions) == ("failed", True, ["spawn", "probe", "terminate", "kill"])


@pytest.mark.parametrize(("failures", "low", "high"), [(1, 0.25, 0.5), (2, 0.5, 1), (5, 4, 8), (500, 4, 8)])
def test_backoff_doubles_to_its_limit(failures: int, low: float, high: float) -> None:
    """Half of the pause is jitter."""
    assert backoff_s(failures, 0.0, POLICY) == low
    assert low <= backoff_s(failures, 0.999, POLICY) <= high
