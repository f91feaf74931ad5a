"""The ladder after out-of-memory: down once a failure, never below the last rung, up again when there is room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.supervise.fallbacks import RESTORE_FIRST_S, RESTORE_MAX_S, Degradation, degrade, may_restore, restore

MOVES = st.lists(st.tuples(st.sampled_from(("oom", "look")), st.floats(0, 5000)), max_size=60)


@given(st.integers(0, 5), MOVES)
def test_a_ladder_ends_and_never_thrashes(rungs: int, moves: list[tuple[str, float]]) -> None:
    """Whatever happens: between the planned setting and the last rung; climbs are a pause apart; slips are counted."""
    standing, now, slips, last_move = Degradation(), 0.0, 0, -1e9
    for what, after in moves:
        now += after
        if what == "oom":
            lower = degrade(standing, rungs, now)
            assert (lower is None) == (standing.level == rungs)
            if lower is not None:
                assert lower.level == standing.level + 1
                standing, slips, last_move = lower, slips + 1, now
        elif may_restore(standing, now, {}, {}, {}):
            assert now - last_move >= RESTORE_FIRST_S
            higher = restore(standing, now)
            assert higher.level == standing.level - 1
            standing, last_move = higher, now
        assert 0 <= standing.level <= rungs
        assert RESTORE_FIRST_S <= standing.pause_s <= RESTORE_MAX_S
        assert (standing.restore_at is None) == (standing.level == 0)
    assert standing.count == slips


def test_failures_in_a_row_end_after_as_many_as_there_are_rungs() -> None:
    """A server that never fits is started once as planned and once a rung."""
    standing: Degradation | None = Degradation()
    starts = 0
    while standing is not None:
        starts += 1
        standing = degrade(standing, 4, float(starts))
    assert starts == 5


def test_a_climb_that_does_not_hold_doubles_the_pause_and_one_that_holds_ends_that() -> None:
    """60 s, 120 s, 240 s …; after a whole pause up there it begins anew."""
    standing = degrade(Degradation(), 2, 0)
    assert standing is not None
    assert standing.restore_at == RESTORE_FIRST_S
    now = RESTORE_FIRST_S
    for expected in (120, 240, 480):
        standing = degrade(restore(standing, now), 2, now + 1)
        assert standing is not None
        assert standing.pause_s == expected
        now = standing.restore_at or 0
    standing = degrade(restore(standing, now), 2, now + 481)
    assert standing is not None
    assert standing.pause_s == RESTORE_FIRST_S


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_it_climbs_only_into_memory_that_is_there(here: int, above: int, free: int) -> None:
    """What the rung above takes more must be available; a device that nobody can measure does not hold it back."""
    standing = degrade(Degradation(), 1, 0)
    assert standing is not None
    later = RESTORE_FIRST_S + 1
    known = {"ram": free}
    assert may_restore(standing, later, {"ram": here}, {"ram": above}, known) == (above - here <= max(0, free))
    assert may_restore(standing, later, {"cuda0": here}, {"cuda0": above}, known)
    assert not may_restore(standing, RESTORE_FIRST_S - 1, {"ram": here}, {"ram": above}, {"ram": 10**9})
