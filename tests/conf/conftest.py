"""The packaged config, composed as the compiler does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from launcher.config.composing import compose
from launcher.ir.config import FleetConfig

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="session")
def fleet() -> Callable[..., FleetConfig]:
    """A function from overrides to the decoded fleet; even a warning about the config fails."""

    @cache
    def composed(*overrides: str) -> FleetConfig:
        result = compose(overrides, config_dirs=[CONF])
        assert result.findings == ()
        return result.fleet

    return composed
