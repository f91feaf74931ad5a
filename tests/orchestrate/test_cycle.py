"""The decision machine under every sequence of events that hypothesis thinks of."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from launcher.orchestrate.cycle import (
    MAX_WRITE_FAILURES,
    Action,
    Commit,
    CommitFailed,
    Committed,
    CycleLimits,
    Deliver,
    Escalate,
    Event,
    Finish,
    GiveUp,
    Judge,
    Write,
    WriteFailed,
    Wrote,
    begin,
    step,
)
from launcher.orchestrate.verdict import Kind, Verdict

kinds: st.SearchStrategy[Kind] = st.sampled_from(["pass", "pass", "fail", "malformed", "contradictory", "timeout"])
writes = st.one_of(
    st.builds(Wrote, text=st.sampled_from(["", "a", "b", "c"]), ends=st.sampled_from(["", "stop", "length"])),
    st.builds(Wrote, text=st.uuids().map(str)),
    st.builds(
        WriteFailed,
        status=st.just(502),
        code=st.just("x"),
        message=st.just("y"),
        again=st.booleans(),
        refused=st.booleans(),
    ),
)
verdicts = st.builds(Verdict, kind=kinds, reason=st.just("r"))
commits: st.SearchStrategy[Event] = st.one_of(
    st.just(Committed()), st.just(Committed()), st.just(Committed()), st.builds(CommitFailed, message=st.just("full"))
)
limits = st.builds(
    CycleLimits,
    max_corrections=st.integers(0, 4),
    max_blocks=st.integers(1, 6),
    max_retries=st.integers(0, 3),
    escalations=st.integers(0, 2),
)


def outcome(action: Action, data: Any) -> Event | None:
    """What comes of an action: anything that can."""
    if isinstance(action, Write):
        return data.draw(writes)  # type: ignore[no-any-return]
    if isinstance(action, Judge):
        return data.draw(verdicts)  # type: ignore[no-any-return]
    return data.draw(commits) if isinstance(action, Commit) else None


@given(limits=limits, resumed=st.lists(st.text(min_size=1), max_size=3), data=st.data())
def test_every_run_ends_and_commits_each_block_once(limits: CycleLimits, resumed: list[str], data: Any) -> None:
    """The laws of the cycle, over runs that go as they please and may be cut at any point."""
    state, actions = begin(limits, tuple(resumed))
    todo, done = deque(actions), list[Action]()
    cut = False
    while todo and not cut:
        action = todo.popleft()
        done.append(action)
        assert len(done) < 1000
        cut = data.draw(st.integers(0, 40)) == 0
        event = outcome(action, data)
        if event is not None and not cut:
            state, more = step(state, event)
            todo.extend(more)
    committed = [a for a in done if isinstance(a, Commit)]
    delivered = [a for a in done if isinstance(a, Deliver)]
    assert [c.seq for c in committed] == list(range(len(resumed), len(resumed) + len(committed)))
    assert [d.seq for d in delivered] == list(range(len(delivered)))
    assert [d.text for d in delivered] == (resumed + [c.text for c in committed])[: len(delivered)]
    for commit in committed:
        assert commit.verdicts[-1].kind == "pass"
        assert all(v.kind != "pass" for v in commit.verdicts[:-1])
        assert len(commit.verdicts) <= (1 + limits.max_corrections) * (1 + limits.escalations)
        assert commit.text
    for seq in {a.seq for a in done if isinstance(a, Judge)}:
        attempts = [a.attempt for a in done if isinstance(a, Judge) and a.seq == seq]
        assert attempts == list(range(1, len(attempts) + 1))
        assert len(attempts) <= (1 + limits.max_corrections) * (1 + limits.escalations)
    for seq in {a.seq for a in done if isinstance(a, Write)}:
        written = sum(isinstance(a, Write) and a.seq == seq for a in done)
        assert written <= (1 + limits.max_corrections + MAX_WRITE_FAILURES) * (1 + limits.escalations)
    rungs = [a.rung for a in done if isinstance(a, Escalate)]
    assert rungs == list(range(1, len(rungs) + 1))
    assert len(rungs) <= limits.escalations
    gave_up = [a for a in done if isinstance(a, GiveUp) and a.code == "validation_exhausted"]
    assert not gave_up or len(rungs) == limits.escalations
    ends = [a for a in done if isinstance(a, (Finish, GiveUp))]
    assert len(ends) == (0 if cut and not ends else 1)
    assert cut or done[-1] is ends[0]
    assert cut or state.phase == "done"
    if ends and isinstance(ends[0], Finish) and not cut:
        assert len(delivered) == len(resumed) + len(committed)
        assert delivered or limits.max_blocks == 0


@given(limits=limits, events=st.lists(st.one_of(writes, verdicts, commits), max_size=20))
def test_events_out_of_turn_change_nothing(limits: CycleLimits, events: list[Event]) -> None:
    """Late and foreign results neither raise nor make a block of what was not judged."""
    state, actions = begin(limits)
    expected: dict[Any, Any] = {Write: (Wrote, WriteFailed), Judge: (Verdict,), Commit: (Committed, CommitFailed)}
    waiting: type | None = type(actions[-1])
    for event in events:
        after, actions = step(state, event)
        if waiting is None or not isinstance(event, expected[waiting]):
            assert (after.phase, actions) == (state.phase, ())
        state = after
        asked = [a for a in actions if type(a) in expected]
        waiting = None if state.phase == "done" else type(asked[-1]) if asked else waiting


def test_what_ended_before_is_not_asked_for_again() -> None:
    """A generation whose last block said that it is the last only has to be delivered."""
    _, actions = begin(CycleLimits(max_corrections=3, max_blocks=8), ("one", "two"), "stop")
    assert actions == (Deliver(seq=0, text="one"), Deliver(seq=1, text="two"), Finish(reason="stop"))


def test_who_is_refused_often_enough_hands_over_for_good() -> None:
    """Two refusals, then the next worker, with a budget of its own, also for the blocks that follow."""
    state, actions = begin(CycleLimits(max_corrections=2, max_blocks=3, max_retries=2, escalations=1))
    refused, fine = Verdict(kind="fail", reason="no"), Verdict(kind="pass")
    seen = []
    events: list[Event] = [Wrote(text="a"), refused, Wrote(text="b"), refused]
    events += [Wrote(text="c"), refused, Wrote(text="d"), fine, Committed(), Wrote(text="e"), refused]
    events += [Wrote(text="f"), refused, Wrote(text="g"), refused]
    for event in events:
        state, actions = step(state, event)
        seen += [type(action).__name__ for action in actions if isinstance(action, Escalate | GiveUp)]
    assert seen == ["Escalate", "GiveUp"]
    assert (state.rung, state.phase, actions[0].seq) == (1, "done", 1)  # type: ignore[union-attr]
