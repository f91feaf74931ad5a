"""The ladder after out-of-memory: down once a failure, never below the last rung, up again when there is room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.supervise.ladder import CLIMB_FIRST_S, CLIMB_MAX_S, Standing, climb, may_climb, slip

MOVES = st.lists(st.tuples(st.sampled_from(("oom", "look")), st.floats(0, 5000)), max_size=60)


@given(st.integers(0, 5), MOVES)
def test_a_ladder_ends_and_never_thrashes(rungs: int, moves: list[tuple[str, float]]) -> None:
    """Whatever happens: between the planned setting and the last rung; climbs are a pause apart; slips are counted."""
    standing, now, slips, last_move = Standing(), 0.0, 0, -1e9
    for what, after in moves:
        now += after
        if what == "oom":
            lower = slip(standing, rungs, now)
            assert (lower is None) == (standing.rung == rungs)
            if lower is not None:
                assert lower.rung == standing.rung + 1
                standing, slips, last_move = lower, slips + 1, now
        elif may_climb(standing, now, {}, {}, {}):
            assert now - last_move >= CLIMB_FIRST_S
            higher = climb(standing, now)
            assert higher.rung == standing.rung - 1
            standing, last_move = higher, now
        assert 0 <= standing.rung <= rungs
        assert CLIMB_FIRST_S <= standing.pause_s <= CLIMB_MAX_S
        assert (standing.climb_at is None) == (standing.rung == 0)
    assert standing.slips == slips


def test_failures_in_a_row_end_after_as_many_as_there_are_rungs() -> None:
    """A server that never fits is started once as planned and once a rung."""
    standing: Standing | None = Standing()
    starts = 0
    while standing is not None:
        starts += 1
        standing = slip(standing, 4, float(starts))
    assert starts == 5


def test_a_climb_that_does_not_hold_doubles_the_pause_and_one_that_holds_ends_that() -> None:
    """60 s, 120 s, 240 s …; after a whole pause up there it begins anew."""
    standing = slip(Standing(), 2, 0)
    assert standing is not None
    assert standing.climb_at == CLIMB_FIRST_S
    now = CLIMB_FIRST_S
    for expected in (120, 240, 480):
        standing = slip(climb(standing, now), 2, now + 1)
        assert standing is not None
        assert standing.pause_s == expected
        now = standing.climb_at or 0
    standing = slip(climb(standing, now), 2, now + 481)
    assert standing is not None
    assert standing.pause_s == CLIMB_FIRST_S


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_it_climbs_only_into_memory_that_is_there(here: int, above: int, free: int) -> None:
    """What the rung above takes more must be available; a device that nobody can measure does not hold it back."""
    standing = slip(Standing(), 1, 0)
    assert standing is not None
    later = CLIMB_FIRST_S + 1
    known = {"ram": free}
    assert may_climb(standing, later, {"ram": here}, {"ram": above}, known) == (above - here <= max(0, free))
    assert may_climb(standing, later, {"cuda0": here}, {"cuda0": above}, known)
    assert not may_climb(standing, CLIMB_FIRST_S - 1, {"ram": here}, {"ram": above}, {"ram": 10**9})
