"""What the runtime runs for a page: commands of `launch`, one after the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from launcher.runtime import paging
from launcher.runtime.paging import Pages


@pytest.fixture
def pages() -> Pages:
    """Of a fleet of which only the name is asked for."""

    class Manifest:
        """Its name."""

        deployment = "d"

    nothing: Any = None
    served: Any = lambda: (Manifest, None)  # noqa: E731
    return Pages(nothing, nothing, nothing, nothing, nothing, served=served, state_dir=nothing)


async def test_many_pages_compile_one_after_the_other(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty plans are one process at a time; one that fails, or whose page goes away, holds up no other."""
    running, most = 0, 0
    asked: list[tuple[str, ...]] = []

    async def launch(*words: str) -> dict[str, Any]:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        asked.append(words)
        try:
            await asyncio.sleep(0)
            if len(asked) == 2:
                raise OSError
            return {"said": words[0]}
        finally:
            running -= 1

    monkeypatch.setattr(paging, "_launch", launch)
    tasks = [asyncio.create_task(pages.command("reload", "--dry-run")) for _ in range(20)]
    await asyncio.sleep(0)
    tasks[5].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 1
    assert [type(one) for one in found if isinstance(one, BaseException)] == [OSError, asyncio.CancelledError]
    assert {words[-2:] for words in asked} == {("--fleet", "d")}
    assert (await pages.explain("plan/x"), asked[-1]) == ({"said": "explain"}, ("explain", "plan/x", "--json"))


async def test_what_a_command_says_is_read_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON as it is, with the exit code; anything else as the end of what it said."""
    for program, expected in (
        ("print('{\"a\": 1}')", {"a": 1, "exit_code": 0}),
        ("print('[]')", {"error": "", "findings": [], "exit_code": 0}),
        (
            "import sys; sys.stderr.write('x' * 5000 + 'end'); sys.exit(3)",
            {"error": "x" * 1997 + "end", "findings": [], "exit_code": 3},
        ),
    ):
        monkeypatch.setattr(paging, "_LAUNCH", program)
        assert await paging._launch("plan") == expected
