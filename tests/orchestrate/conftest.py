"""The orchestration's tests run on uvloop, as the runtime does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """One loop factory: uvloop's."""
    return {"uvloop": uvloop.new_event_loop}
