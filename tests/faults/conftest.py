"""Fixtures of the fault suite: those of the supervisor's tests, and a site."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.site import Site, site
from tests.supervise.conftest import state_dir
from tests.supervise.test_runtime import deploy

__all__ = ["deploy", "state_dir"]

Sites = Callable[..., AbstractAsyncContextManager[Site]]


@pytest.fixture
def sites(state_dir: Path, free_port: Callable[[], int], no_orphans: None) -> Sites:
    """`sites(*servers, …)`: see `tests.faults.site.site`."""
    return functools.partial(_site, state_dir, free_port())


def _site(state: Path, front: int, *servers: Any, **changes: Any) -> AbstractAsyncContextManager[Site]:
    """A site at fixed places."""
    return site(state, front, *servers, **changes)
