"""Slots across a swap, with real servers: what is kept is what the server itself counts as cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from launcher.supervise import events
from tests.supervise.conftest import real, rung
from tests.supervise.test_out_of_memory import ask, front_of

FreePort = Callable[[], int]
BEGINNING = 1
"""The token that every prompt begins with, the readiness probe's too."""
STORY = "Once upon a time there was a fox. " * 12


class Told(msgspec.Struct):
    """An answer: tokens of its prompt that were cached, all tokens of its prompt, its text."""

    cached: int
    prompt: int
    text: str


async def told(client: httpx.AsyncClient, prompt: str) -> Told:
    """What the worker that keeps its slots answers."""
    answer = (await ask(client, "keeps", prompt=prompt, n_predict=4, temperature=0, cache_prompt=True)).json()
    timings = answer["timings"]
    return Told(timings["cache_n"], timings["cache_n"] + timings["prompt_n"], answer["content"])


@pytest.mark.parametrize(
    ("arch", "flags", "continued", "repeated"),
    [
        ("llama", (), True, True),
        ("gemma3", ("--swa-full",), True, True),
        ("qwen3next", (), True, False),
        ("gemma3", (), False, False),
    ],
)
async def test_what_a_swap_keeps_of_a_prompt(
    fleet: Any,
    free_port: FreePort,
    llama_server: Path,
    tiny_models: Callable[..., Path],
    tmp_path: Path,
    arch: str,
    flags: tuple[str, ...],
    continued: bool,
    repeated: bool,
) -> None:
    """Away and back: a conversation that goes on, and one that is asked again, find their tokens where the build can.

    A sliding window without swa_full loses all, recurrent layers what is not exactly continued.
    """
    port, kept = free_port(), tmp_path / "slots"
    save = ("--slot-save-path", str(kept), "-c", "2048", "--no-repack", *flags)
    keeps = real("keeps", port, llama_server, tiny_models(arch), *save, exclusive="gpu", default=True)
    other = real("other", port, llama_server, tiny_models("llama"), exclusive="gpu", start="demand")
    supervisor, watcher = fleet(msgspec.structs.replace(keeps, slot_save_path=str(kept)), other)
    await supervisor.start()
    async with front_of(supervisor, free_port()) as client:
        first = await told(client, STORY)
        assert first.cached <= BEGINNING
        await ask(client, "other")
        assert kept.stat().st_mode & 0o777 == 0o700
        assert len(list(kept.iterdir())) == 1
        goes_on = await told(client, STORY + first.text + "And then")
        restored = watcher.of(events.SlotsRestored, "keeps")[-1].tokens
        assert restored >= first.prompt
        assert (goes_on.cached >= restored) == continued
        assert continued or goes_on.cached <= BEGINNING
        assert list(kept.iterdir()) == []
        await ask(client, "other")
        again = await told(client, STORY)
        assert (again.cached >= first.prompt - 1) == repeated
        assert again.text == first.text


async def test_slots_of_another_rung_are_not_restored(
    fleet: Any, free_port: FreePort, llama_server: Path, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    """Saved as planned, back on a rung with another K/V type: nothing is restored, the files go."""
    port, save = free_port(), ("--slot-save-path", str(tmp_path / "slots"))
    keeps = real("keeps", port, llama_server, tiny_models("llama"), *save, exclusive="gpu", default=True)
    smaller = real("keeps", port, llama_server, tiny_models("llama"), *save, "-ctk", "q8_0")
    other = real("other", port, llama_server, tiny_models("llama"), exclusive="gpu", start="demand")
    keeps = msgspec.structs.replace(keeps, slot_save_path=save[1], rungs=(rung("K q8_0", smaller),))
    supervisor, watcher = fleet(keeps, other)
    await supervisor.start()
    async with front_of(supervisor, free_port()) as client:
        await told(client, STORY)
        await ask(client, "other")
        assert supervisor._runners["keeps"].fallbacks.degrade()
        assert (await told(client, STORY)).cached <= BEGINNING
    assert watcher.of(events.SlotsRestored) == []
    assert list((tmp_path / "slots").iterdir()) == []
