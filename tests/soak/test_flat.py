"""The soak's verdict on memory: what grows is found, what has grown is not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.soak.flat import growth
from tests.soak.soak import leaks

COUNT = 60


def series(shape: Callable[[int], float], noise: float = 0.002) -> list[float]:
    """Figures around `shape`, of some 50 MB."""
    chance = random.Random(5)  # noqa: S311 - the same noise again
    return [50e6 * (shape(n) + chance.uniform(-noise, noise)) for n in range(COUNT)]


@pytest.mark.parametrize(
    "shape",
    [
        lambda _: 1.0,
        lambda n: 1.0 if n < 20 else 1.6,  # what comes at first
        lambda n: 2.0 - 0.6 ** (n / 4),  # it flattens
        lambda n: 1.3 if n % 4 == 3 else 1.0,  # crowds come and go
        lambda n: 1.0 if n < 45 else 1.03,  # one step
        lambda n: 1.5 if n < 40 else 1.0,  # it is given back
    ],
)
def test_what_does_not_grow(shape: Callable[[int], float]) -> None:
    """Whatever the start was."""
    assert growth(series(shape)) < 0.01


@pytest.mark.parametrize(
    "shape",
    [
        lambda n: 1 + n * 0.0015,  # 75 kB a figure
        lambda n: (1.4 if n < 20 else 1.2) + n * 0.0015,  # behind a peak at the start
        lambda n: (1.3 if n % 4 == 3 else 1.0) + n * 0.0015,  # below crowds
        lambda n: 1 + (n // 6) * 0.009,  # in steps
    ],
)
def test_what_grows_is_found(shape: Callable[[int], float]) -> None:
    """Two megabytes in the second half, of fifty."""
    assert growth(series(shape)) > 0.02


def test_too_few_figures_say_nothing() -> None:
    """Three looks are no slope."""
    assert growth([1, 2, 3]) == 0


def test_the_soaks_own_limits() -> None:
    """Each figure is judged, and named."""
    steady = {"tasks": ["a"], "descriptors": 20, "allocated": 40_000_000, "resident": 60_000_000, "objects": 40_000}
    flat = [dict(steady) for _ in range(COUNT)]
    assert leaks(steady, steady, flat, 600) == []
    for what in ("allocated", "resident", "objects"):
        grows = [{**steady, what: steady[what] * (1 + n * 0.004)} for n in range(COUNT)]  # type: ignore[operator]
        (found,) = leaks(steady, steady, grows, 600)
        assert found.startswith(f"{what} grows")
    (found,) = leaks(steady, {**steady, "tasks": ["a", "b"]}, flat, 600)
    assert "tasks" in found
    (found,) = leaks(steady, {**steady, "descriptors": 99}, flat, 600)
    assert "descriptors" in found
