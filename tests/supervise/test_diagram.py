"""The diagram beside the lifecycle shows what the code does: every transition, and no other."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from launcher.ir.live import ServerState
from launcher.supervise import lifecycle
from launcher.supervise.lifecycle import (
    Broken,
    Event,
    Exited,
    Flag,
    Life,
    Marked,
    Progress,
    Ready,
    Slept,
    Start,
    Stop,
    Tick,
    deadline_of,
    routing_state,
    step,
)
from tests.supervise.test_lifecycle import POLICY

DIAGRAM = Path(lifecycle.__file__).with_suffix(".mmd")
ARROW = re.compile(r"^\s*(\w+) --> (\w+): (.+)$", re.MULTILINE)
EVENTS: tuple[Event, ...] = (
    Start(),
    Start(adopt=True),
    Stop(),
    Stop(force=True),
    Ready(),
    Progress(),
    Slept(asleep=True),
    Slept(asleep=False),
    Broken("of no use"),
    Broken("of no use", final=True),
    Exited("it ended"),
    Exited("it ended", unexplained=True),
    Exited("out of memory", again=True),
    Tick(),
)


def kind_of(life: Life) -> tuple[Any, ...]:
    """What of a life decides where it may go: everything but its times."""
    flags = tuple(getattr(life, flag) for flag in get_args(Flag))
    return (
        life.state,
        life.wanted,
        life.alive,
        life.proven,
        life.killed,
        life.failing,
        len(life.failures),
        life.silent_retries,
        *flags,
    )


def transitions() -> Iterator[tuple[str, str, str]]:
    """Every change of state that `step` makes from any life it can reach, with the event that makes it."""
    waiting, known = deque([(Life(), 0.0)]), {kind_of(Life())}
    while waiting:
        life, now = waiting.popleft()
        for event in EVENTS:
            at = now + 1 if not isinstance(event, Tick) else deadline_of(life, POLICY) or now
            following, _ = step(life, event, at, POLICY)
            if following.state != life.state:
                yield life.state, following.state, type(event).__name__
            if (kind := kind_of(following)) not in known:
                known.add(kind)
                waiting.append((following, at))


def test_the_diagram_is_the_code() -> None:
    """Each arrow is made by the events that it names, and there is no other way from state to state."""
    drawn = {
        (before, after, event)
        for before, after, names in ARROW.findall(DIAGRAM.read_text())
        for event in names.split(", ")
    }
    assert drawn == set(transitions())


@pytest.mark.parametrize("state", get_args(ServerState))
def test_flags_say_what_requests_go_by(state: ServerState) -> None:
    """A flag changes no state; requests are kept away from what drains, hangs or ended, and wait for what returns."""
    life = Life(state=state, alive=state not in ("stopped", "failed", "backoff"))
    assert life.usable == (state in ("ready", "sleeping"))
    for flag in get_args(Flag):
        marked, actions = step(life, Marked(flag, on=True), 1.0, POLICY)
        assert (marked.state, actions) == (state, ())
        assert marked.usable == (life.usable and flag not in ("draining", "suspended", "over"))
        assert step(marked, Marked(flag, on=False), 1.0, POLICY)[0] == life
    draining, _ = step(life, Marked("draining", on=True), 1.0, POLICY)
    assert (draining.shown, routing_state(draining, 1.0, on_demand=True)) == ("stopping", "stopping")
    returning, _ = step(draining, Marked("returning", on=True), 1.0, POLICY)
    assert routing_state(returning, 1.0, on_demand=True) == "starting"
    over, _ = step(life, Marked("over", on=True), 1.0, POLICY)
    assert routing_state(over, 1.0, on_demand=False) == ("backoff" if life.usable else life.state)
    closed, _ = step(life, Marked("closed", on=True), 1.0, POLICY)
    assert step(closed, Start(), 2.0, POLICY) == (closed, ())
    held, _ = step(life, Marked("held", on=True), 1.0, POLICY)
    assert step(held, Start(), 2.0, POLICY) == (held, ())
    assert not step(held, Start(adopt=True), 2.0, POLICY)[0].held  # who starts it by hand wants it
