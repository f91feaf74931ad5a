"""Prediction of the next worker: rules, patterns, history, frequency, and what a pool that follows it hits."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from launcher.orchestrate.pool_room import HeldFiles, PoolLimits, pool_moves
from launcher.orchestrate.predict import Predictor

WORKERS = tuple("abcdef")
SIZE = 10


def first(predictor: Predictor) -> tuple[str, str]:
    """The likeliest worker and why."""
    forecast = predictor.forecast()[0]
    return forecast.worker, forecast.why


@given(st.lists(st.tuples(st.sampled_from((*WORKERS, "stranger")), st.sampled_from(("", "code", "talk"))), max_size=60))
def test_every_other_worker_is_forecast_once(notes: list[tuple[str, str]]) -> None:
    """Whatever happened: each worker but the current one, once; the same notes give the same forecasts."""
    predictors = [Predictor(WORKERS, {"code": "b", "talk": "nobody"}, [("a", "b", "c")]) for _ in range(2)]
    for predictor in predictors:
        for worker, domain in notes:
            predictor.domain(domain)
            predictor.note(worker)
    one, other = (predictor.forecast() for predictor in predictors)
    assert one == other
    assert sorted(f.worker for f in one) == sorted(set(WORKERS) - {predictors[0].current})


def test_an_empty_history_is_normal() -> None:
    """Nothing is known: declared order."""
    assert [f.worker for f in Predictor("abc", {}).forecast()] == ["a", "b", "c"]


def test_rules_then_patterns_then_history_then_frequency() -> None:
    """Each speaks where those before it are silent."""
    predictor = Predictor("abcd", {"code": "d"}, [("a", "b", "a", "c")])
    for worker in "abab":
        predictor.note(worker)
    assert first(predictor) == ("a", "history")
    predictor.note("a")
    assert first(predictor) == ("c", "pattern")
    predictor.domain("code")
    assert first(predictor) == ("d", "rule")
    fresh = Predictor("abcd", {})
    for worker in "cbcbd":
        fresh.note(worker)
    assert first(fresh) == ("c", "frequency")


def test_a_rule_that_is_wrong_gives_way_to_history() -> None:
    """After a few swaps elsewhere it comes after what really happens, and is believed again when it is right again."""
    predictor = Predictor("abc", {"code": "c"})
    predictor.domain("code")
    for worker in "abababab":
        predictor.note(worker)
    assert first(predictor) == ("a", "history")
    for worker in "cacacaca":
        predictor.note(worker)
    assert first(predictor) == ("c", "rule")


def thousand() -> Iterator[str]:
    """1,000 requests: two patterns of swaps that repeat, taking turns, each worker asked one to four times in a row."""
    chance = random.Random(8)  # noqa: S311 - a fixed history
    patterns = ("abacad", "efebec")
    sent = 0
    while True:
        pattern = patterns[chance.randrange(2)]
        for worker in pattern * chance.randint(3, 8):
            for _ in range(chance.randint(1, 4)):
                yield worker
                sent += 1
                if sent == 1000:
                    return


def replay(*, spare: int, foresight: bool) -> tuple[float, int]:
    """Share of swaps with the file there after 100 requests, and files read, in a pool with room for `spare` others."""
    predictor = Predictor(WORKERS, {})
    sizes = dict.fromkeys(WORKERS, SIZE)
    held: dict[str, float] = {}
    hits = swaps = reads = 0
    for number, worker in enumerate(thousand()):
        if worker != predictor.current:
            if number >= 100:
                swaps += 1
                hits += worker in held
            predictor.note(worker)
        held[worker] = number
        forecast = predictor.forecast() if foresight else ()
        likely = [f.worker for f in forecast if f.why in ("rule", "pattern", "history")]
        everyone = {n: HeldFiles(size_bytes=SIZE, last_used=at, kept=n == worker) for n, at in held.items()}
        limits = PoolLimits((spare + 1) * SIZE, spare)
        moves = pool_moves(likely[:spare], [f.worker for f in forecast], sizes, everyone, limits)
        assert worker not in moves.drop
        for name in moves.drop:
            del held[name]
        for name in moves.load:
            held[name] = number
            reads += 1
        assert len(held) <= spare + 1
    return hits / swaps, reads


def test_two_repeating_patterns_are_hit_in_four_of_five_swaps() -> None:
    """Six workers, room for one file beside the running one: 80 % hits; without foresight, far fewer."""
    hits, _ = replay(spare=1, foresight=True)
    blind, _ = replay(spare=1, foresight=False)
    assert hits >= 0.8
    assert blind < 0.5
    roomy, _ = replay(spare=2, foresight=True)
    assert roomy >= 0.9


NAMES = st.sampled_from(tuple("abcdefgh"))
HELD = st.dictionaries(
    NAMES,
    st.builds(HeldFiles, size_bytes=st.integers(0, 30), last_used=st.integers(0, 9).map(float), kept=st.booleans()),
)


@given(
    st.lists(NAMES, max_size=6),
    st.lists(NAMES, max_size=6),
    HELD,
    st.dictionaries(NAMES, st.integers(1, 30)),
    st.integers(0, 80),
    st.integers(0, 4),
)
def test_the_pool_keeps_its_limits_and_its_promises(
    predicted: list[str],
    others: list[str],
    held: dict[str, HeldFiles],
    sizes: dict[str, int],
    budget: int,
    models: int,
) -> None:
    """Within bytes and count; never a busy or pinned one; nobody in vain; nothing is dropped and loaded at once."""
    limits = PoolLimits(budget, models)
    moves = pool_moves(predicted, others, sizes, held, limits)
    assert not any(held[name].kept for name in moves.drop)
    assert not set(moves.drop) & set(moves.load)
    assert not set(moves.load) & set(held)
    stay = {name: h for name, h in held.items() if name not in moves.drop}
    stay |= {name: HeldFiles(size_bytes=sizes[name], last_used=99.0) for name in moves.load}
    if any(not h.kept for h in stay.values()) or moves.load:
        assert limits.hold(stay)
    if limits.hold(held) and not moves.load:
        assert moves.drop == ()
    if limits.hold(held) and not set(predicted) & set(moves.load):
        assert moves.drop == ()
    if limits.hold(held):
        for name in moves.drop:
            assert not limits.hold({**stay, name: held[name]})


def test_the_least_recently_used_goes_and_the_likeliest_stays() -> None:
    """Room for two: the older one goes for a predicted one; for one that is only possible, nobody goes."""
    held = {n: HeldFiles(size_bytes=SIZE, last_used=at) for n, at in (("a", 1.0), ("b", 2.0))}
    sizes = dict.fromkeys("abcd", SIZE)
    two = PoolLimits(2 * SIZE, 2)
    assert pool_moves(["c"], [], sizes, held, two).drop == ("a",)
    assert pool_moves(["a", "c"], [], sizes, held, two).drop == ("b",)
    assert pool_moves(["a", "b", "c"], ["d"], sizes, held, two).load == ()
    assert pool_moves([], ["d"], sizes, held, two).load == ()
    assert pool_moves([], [], sizes, held, PoolLimits(SIZE, 2)).drop == ("a",)
