"""Commands that meet: a stop during a reload, a stop during a start, a reload during a start."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import SuperviseError
from launcher.files import lock_owner
from launcher.runtime import ControlClient, spawn_detached
from launcher.supervise import LOCK_NAME, events, offline_status
from tests.supervise.conftest import fake, manifest
from tests.supervise.test_runtime import deploy, wait_until

__all__ = ["deploy"]

FreePort = Callable[[], int]


def test_stop_during_reloads_leaves_no_server(deploy: Any, state_dir: Path, free_port: FreePort) -> None:
    """Eight reloads run and wait when everything is stopped: each is answered with a typed refusal, nothing lives."""
    names = ("a", "b", "c")
    spawn_detached(deploy(*(fake(name, free_port(), "slow-loading") for name in names)))
    refused: list[str] = []

    def reload() -> None:
        """One reload of everything; how it was refused."""
        try:
            with ControlClient(state_dir) as client:
                client.reload(names)
        except SuperviseError as error:
            refused.append(error.findings[0].code)

    threads = [threading.Thread(target=reload) for _ in range(8)]
    with ControlClient(state_dir) as client:
        for thread in threads:
            thread.start()
        wait_until(lambda: any(p.state != "ready" for p in client.status().processes))
        client.stop()
    for thread in threads:
        thread.join(10)
    assert offline_status(state_dir).processes == ()
    assert set(refused) == {"supervise/stopping"}
    assert lock_owner(state_dir / LOCK_NAME) is None


async def test_a_reload_that_meets_the_end_starts_nothing(fleet: Any, free_port: FreePort) -> None:
    """The supervisor itself refuses: before, in the middle of, and after `stop_all`."""
    supervisor, watcher = fleet(a := fake("a", free_port(), "slow-loading"))
    await supervisor.start()
    reloading = asyncio.create_task(supervisor.reload(manifest(a, fake("new", free_port())), ("a", "new")))
    await watcher.until(events.ServerStopping, "a")
    await supervisor.stop_all("test")
    with pytest.raises(SuperviseError, match="is stopping"):
        await reloading
    with pytest.raises(SuperviseError, match="is stopping"):
        await supervisor.reload(manifest(a), ("a",))
    assert {p.state for p in supervisor.status().processes} == {"stopped"}
    assert len(watcher.of(events.ServerStarting)) == 1
