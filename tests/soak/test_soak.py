"""Half a minute of the soak; `make soak` runs it for ten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.once import once
from tests.soak.soak import soak, tiny_fleet

SECONDS = 30.0
REQUESTS = 200


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("soak")
async def test_kills_swaps_and_reloads(
    tmp_path: Path,
    llama_server: Path,
    tiny_models: Callable[..., Path],
    no_orphans: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No orphan, zombie or leak, every request answered by its own model or refused with a type, memory flat."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    report = await soak(SECONDS, tmp_path, llama_server, tiny_fleet(tiny_models), seed=1)
    assert report["wrong"] == []
    assert report["outcomes"]["answered"] > 10
    assert report["chaos"]["killed"] > 0
    assert report["events"]["ServerStopping exclusive"] > 0


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("soak")
async def test_no_request_begins_twice(tmp_path: Path, no_orphans: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends once, answered by its own server or refused with a type; `make soak` asks ten thousand times."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    report = await once(REQUESTS, tmp_path, seed=2)
    assert report["wrong"] == []
    assert report["outcomes"]["answered"] > REQUESTS // 2
    assert report["begun"] <= REQUESTS
