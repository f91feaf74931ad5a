"""What the fuzzer kept, played again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.route.fuzz import Arena, Case, kept


async def test_the_corpus() -> None:
    """Every kept case is answered, nothing crosses, nothing hangs."""
    arena = Arena()
    cases = {path: msgspec.json.decode(path.read_bytes(), type=Case) for path in kept()}
    assert cases
    failed: list[Path] = []
    async with arena.open():
        for path, case in cases.items():
            try:
                await arena.play(case)
            except (AssertionError, TimeoutError):
                failed.append(path)
    assert failed == []
