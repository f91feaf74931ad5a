"""Clients that know what each model says, and count every outcome."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import httpx

PROMPT = "soak"
TOKENS = 6
BODY = {"prompt": PROMPT, "n_predict": TOKENS, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
TYPED = frozenset(
    (
        "breaker_open",
        "no_room",
        "queue_full",
        "queue_timeout",
        "request_ended_server",  # the chaos sends SIGSEGV, which nobody can tell from a crash of the server's own
        "server_failed",
        "server_stopped",
        "start_timeout",
        "upstream_died",
        "upstream_unreachable",
        "upstream_timeout",
    )
)


async def say(client: httpx.AsyncClient, **body: object) -> str:
    """What a server answers to the one prompt that everybody asks."""
    answer = await client.post("/completion", json={**BODY, **body})
    answer.raise_for_status()
    text: str = answer.json()["content"]
    return text


_PATIENCE_S = 180
"""The front's own patience (a queue of 120 s, a request of 30 s) ends first, with a typed error."""


class Crowd:
    """Clients that ask at random until told to end; `expected` gives the answer of every name."""

    def __init__(self, url: str, expected: dict[str, str], seed: int) -> None:
        """Nobody asks yet."""
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.asked = 0
        self.ending = False
        self._url = url
        self._expected = expected
        self._random = random.Random(seed)  # noqa: S311 - the same crowd again

    async def run(self, clients: int) -> None:
        """`clients` at once, until `ending`; returns when each has its last answer."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=_PATIENCE_S, limits=limits, trust_env=False) as client:
            await asyncio.gather(*(self._ask_on(client) for _ in range(clients)))

    async def _ask_on(self, client: httpx.AsyncClient) -> None:
        """One client."""
        while not self.ending:
            name = self._random.choice(sorted(self._expected))
            self.asked += 1
            dice = self._random.random()
            try:
                if dice < 0.25:
                    await self._stream(client, name)
                elif dice < 0.35:
                    await self._leave(client, name)
                else:
                    await self._whole(client, name)
            except httpx.RemoteProtocolError:
                self._note("wrong: cut without an answer", name)
            except httpx.TimeoutException:
                self._note(f"wrong: no answer within {_PATIENCE_S} s", name)
            except httpx.TransportError as error:
                self._note(f"wrong: {type(error).__name__}", name)
            await asyncio.sleep(self._random.random() * 0.01)

    async def _whole(self, client: httpx.AsyncClient, name: str) -> None:
        """An answer in one piece."""
        answer = await client.post("/completion", json={"model": name, **BODY})
        if answer.status_code == 200:
            self._judge(name, answer.json()["content"])
        else:
            self._refused(name, answer.status_code, answer.content)

    async def _leave(self, client: httpx.AsyncClient, name: str) -> None:
        """A client that does not wait for its answer."""
        try:
            async with asyncio.timeout(self._random.random() * 0.05):
                await client.post("/completion", json={"model": name, **BODY, "n_predict": 200})
        except TimeoutError:
            pass
        self._note("left", name)

    async def _stream(self, client: httpx.AsyncClient, name: str) -> None:
        """An answer token by token: whole, or with an error at its end."""
        asked = {"model": name, **BODY, "stream": True}
        async with client.stream("POST", "/completion", json=asked) as answer:
            if answer.status_code != 200:
                self._refused(name, answer.status_code, await answer.aread())
                return
            lines = [line async for line in answer.aiter_lines() if line]
        events = [json.loads(line.partition(":")[2]) for line in lines if line.startswith("data:")]
        if any("error" in event for event in events) or any(line.startswith("error:") for line in lines):
            self._note("stream ended with an error event", name)
        elif events and events[-1].get("stop"):
            self._judge(name, "".join(event.get("content", "") for event in events))
        else:
            self._note("wrong: stream ended cleanly, unfinished", name)

    def _judge(self, name: str, text: str) -> None:
        """An answer must be that model's."""
        if text == self._expected[name]:
            self._note("answered", name)
            return
        others = [other for other, says in self._expected.items() if says == text]
        self._note(f"wrong: answer of {others[0] if others else 'nobody'}", f"{name}: {text!r}")

    def _refused(self, name: str, status: int, body: bytes) -> None:
        """A refusal must be typed."""
        try:
            code = json.loads(body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            code = ""
        if code in TYPED:
            self._note(f"{status} {code}", name)
        else:
            self._note(f"wrong: {status} untyped", f"{name}: {body[:200]!r}")

    def _note(self, outcome: str, detail: str) -> None:
        """Count it; what must not be is kept."""
        self.outcomes[outcome] += 1
        if outcome.startswith("wrong"):
            self.wrong.append(f"{outcome} ({detail})")
