"""Turns of exclusive servers: a swap is worth its time, and nobody starves, whoever asks how often."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.supervise.turns import Client, bound_s, played

OFTEN = (*[Client("one", 0.1)] * 3, Client("two", 0.1, 0.5))
"""F21: three clients ask for one model, one client for the other."""


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory; nothing is written there."""
    directory = tmp_path_factory.mktemp("state")
    (directory / "servers").mkdir()
    return directory


clients = st.lists(
    st.builds(
        Client,
        st.sampled_from(["one", "two", "three"]),
        st.sampled_from([0.05, 0.7, 4.0]),
        st.sampled_from([0.01, 0.4, 3.0, 40.0]),
    ),
    min_size=1,
    max_size=5,
)
stay = st.sampled_from([None, 0.0, 0.5, 6.0])


@settings(
    max_examples=int(os.environ.get("LAUNCH_SCHEDULES", "60")) // 10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(clients=clients, stays=st.fixed_dictionaries(dict.fromkeys(("one", "two", "three"), stay)), load_s=st.just(3.0))
@example(clients=[*OFTEN, Client("three", 0.7, 3.0)], stays={"one": 6.0, "two": None, "three": 0.0}, load_s=3.0)
@example(clients=[Client(n, 4.0, 0.01) for n in ("one", "two", "three")], stays={}, load_s=3.0)
def test_nobody_starves_and_no_turn_is_cut_short(
    somewhere: Path, clients: list[Client], stays: dict[str, float | None], load_s: float
) -> None:
    """Whoever asks waits for one turn of each other member at most; who is asked stays as long as it should."""
    stays = dict.fromkeys(("one", "two", "three")) | stays
    turns = played(somewhere, clients, stays, seconds=40, load_s=load_s)
    waited = max(one.granted - one.came for one in turns.asked)
    assert waited <= bound_s(stays, clients, load_s)
    assert {one.model for one in turns.asked} == {client.model for client in clients}
    assert turns.cut_short == []


def test_collected_turns_serve_more_than_they_swap(somewhere: Path) -> None:
    """F21's load for two minutes: plain FIFO swaps nearly all the time, turns at most half of it."""
    plain = played(somewhere, OFTEN, {"one": 0.0, "two": 0.0}, seconds=120, load_s=3)
    kept = played(somewhere, OFTEN, {"one": None, "two": None}, seconds=120, load_s=3)
    long = played(somewhere, OFTEN, {"one": 20.0, "two": 20.0}, seconds=120, load_s=3)
    assert plain.swapping_s > 0.8 * 120
    assert kept.swapping_s < 0.7 * 120
    assert long.swapping_s < 0.3 * 120
    assert len(long.asked) > 1.5 * len(kept.asked) > 3 * len(plain.asked)
