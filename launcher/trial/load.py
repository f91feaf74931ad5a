"""What servers on trial are asked, so many requests at once, and what they say of each. I/O."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec

from launcher.base.decoding import decoded
from launcher.ir.sweep import Workload
from launcher.trial.server import TrialError, plain

REQUEST_TIMEOUT_S = 3600.0
AT_ONCE_MAX = 10_000
PROMPT_TOKENS_MAX = 10_000_000
"""More than the context of any model."""
TEXT = (
    "A lighthouse keeper writes down the weather every evening. On Monday the wind came from the north and the sea was "
    "grey. On Tuesday two ships passed, one of them under sail. Compute the sum of the first hundred numbers; sort a "
    "list of names; explain how a bridge carries its load to both banks. def mean(values): return sum(values) / "
    "len(values). The committee met in April, heard three reports, and decided that the road should follow the river. "
    "Water boils at a lower temperature on a mountain. Translate: the cat sleeps on the warm stone beside the door. "
)
LENGTHS_MAX = 20
"""Of a journal: so many lengths, evenly spread over its requests from short to long."""


class Prompts(msgspec.Struct, frozen=True, kw_only=True):
    """Where prompts come from: `lengths` in tokens, of the text built in; or whole `texts`."""

    source: str = "built in"
    lengths: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


class _JournalLine(msgspec.Struct):
    prompt_tokens: int = 0


def read_prompts(path: Path) -> Prompts:
    """A journal (`*.jsonl`) gives its lengths, any other file one prompt a line.

    Raises OSError; ValueError where there are none.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix != ".jsonl":
        if not lines:
            raise ValueError("it has no line that is not empty")
        return Prompts(source=str(path), texts=tuple(lines))
    entries = (decoded(line, _JournalLine) for line in lines)  # None: a line that is torn
    found = sorted(entry.prompt_tokens for entry in entries if entry is not None and entry.prompt_tokens > 0)
    if not found:
        raise ValueError("no line of it has prompt_tokens")
    step = max(1, len(found) // LENGTHS_MAX)
    return Prompts(source=str(path), lengths=tuple(found[step // 2 :: step])[:LENGTHS_MAX])


def cut(tokens: Sequence[int], length: int, number: int) -> list[int]:
    """`length` tokens of a text, beginning elsewhere for each `number`, so that no prompt begins like another."""
    start = number * 17 % len(tokens)
    times = (start + length) // len(tokens) + 1
    return [token for _ in range(times) for token in tokens][start : start + length]


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """`timings` of llama-server's `/completion`: tokens and milliseconds. `draft_*` only with speculative decoding."""

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int = 0
    draft_accepted: int = msgspec.field(name="draft_n_accepted", default=0)


class _TimedAnswer(msgspec.Struct):
    timings: Timings


class LoadClient:
    """Asks one server; `close` when done. Raises TrialError in `batch` when an answer cannot be measured."""

    def __init__(self, url: str, workload: Workload, prompts: Prompts) -> None:
        """Asks the server for the tokens of the text that is built in. Raises TrialError."""
        self._workload = workload
        self._prompts = prompts
        limits = httpx.Limits(max_connections=None)  # else the hundredth request waits here, and not in the server
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=REQUEST_TIMEOUT_S, limits=limits)
        self._tokens: list[int] = self._post("/tokenize", {"content": TEXT})["tokens"]

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def batch(self, number: int, in_flight: int) -> tuple[float, list[tuple[float, Timings]]]:
        """Seconds that `in_flight` requests took together, sent at once; of each its seconds and its timings.

        Raises TrialError.
        """
        if in_flight > AT_ONCE_MAX:
            raise TrialError(f"{in_flight} requests at once are more than {AT_ONCE_MAX}")
        gate = threading.Barrier(in_flight + 1)
        bodies = [self._body(number * in_flight + which) for which in range(in_flight)]
        ends: list[float] = []

        def ask(body: bytes) -> tuple[float, Timings]:
            gate.wait()
            begun = time.monotonic()
            answer = self._client.post("/completion", content=body)
            ended = time.monotonic()
            ends.append(ended)
            return ended - begun, _timings(answer)

        with ThreadPoolExecutor(in_flight) as pool:
            try:
                futures = [pool.submit(ask, body) for body in bodies]
            except RuntimeError as error:  # the system gives no more threads
                gate.abort()
                raise TrialError(f"{in_flight} requests at once: {error}") from None
            gate.wait()
            begun = time.monotonic()
            try:
                answers = [future.result() for future in futures]
            except httpx.HTTPError as error:
                raise TrialError(f"a request failed: {type(error).__name__} {error}") from None
        return max(ends) - begun, answers

    def _body(self, which: int) -> bytes:
        """The request of that number: what it says is the same in every run."""
        work, texts = self._workload, self._prompts.texts
        lengths = self._prompts.lengths or work.prompt_tokens
        if not texts and not self._tokens:
            raise TrialError("/tokenize finds no tokens in a text")
        if max(lengths) > PROMPT_TOKENS_MAX:
            raise TrialError(f"a prompt of {max(lengths)} tokens is longer than {PROMPT_TOKENS_MAX}")
        prompt: Any = texts[which % len(texts)] if texts else cut(self._tokens, lengths[which % len(lengths)], which)
        return msgspec.json.encode(
            {
                "prompt": prompt,
                "n_predict": work.n_predict,
                "ignore_eos": True,
                "cache_prompt": work.cache,
                "seed": work.seed,
                "temperature": 0,
            }
        )

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        try:
            return self._client.post(path, json=body).raise_for_status().json()
        except httpx.HTTPError as error:
            raise TrialError(f"{path} failed: {error}") from None


def _timings(answer: httpx.Response) -> Timings:
    """The server's timings of one request. Raises TrialError."""
    if answer.status_code != httpx.codes.OK:
        raise TrialError(f"/completion answers {answer.status_code}: {plain(answer.text[:200])}")
    try:
        timings = msgspec.json.decode(answer.content, type=_TimedAnswer).timings
    except msgspec.DecodeError as error:
        raise TrialError(f"/completion gives no timings: {error}") from None
    if timings.predicted_n < 1 or timings.predicted_ms <= 0:
        raise TrialError("/completion generated nothing")
    return timings
