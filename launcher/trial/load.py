"""One batch: so many requests at once to a server on trial, and what it says of each. I/O."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec

from launcher.ir.sweep import Workload
from launcher.trial.prompts import TEXT, Prompts, cut
from launcher.trial.server import TrialError

REQUEST_TIMEOUT_S = 3600.0


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """`timings` of llama-server's `/completion`: tokens and milliseconds. `draft_*` only where it speculates."""

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
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=REQUEST_TIMEOUT_S)
        self._tokens: list[int] = self._post("/tokenize", {"content": TEXT})["tokens"]

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def batch(self, number: int, in_flight: int) -> tuple[float, list[tuple[float, Timings]]]:
        """Seconds that `in_flight` requests took together, sent at once; of each its seconds and its timings."""
        gate = threading.Barrier(in_flight + 1)
        ends: list[float] = []

        def ask(which: int) -> tuple[float, Timings]:
            body = self._body(number * in_flight + which)
            gate.wait()
            begun = time.monotonic()
            answer = self._client.post("/completion", content=body)
            ended = time.monotonic()
            ends.append(ended)
            return ended - begun, _timings(answer)

        with ThreadPoolExecutor(in_flight) as pool:
            futures = [pool.submit(ask, which) for which in range(in_flight)]
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
    """What the server says of one request. Raises TrialError."""
    if answer.status_code != httpx.codes.OK:
        raise TrialError(f"/completion answers {answer.status_code}: {answer.text[:200]}")
    try:
        timings = msgspec.json.decode(answer.content, type=_TimedAnswer).timings
    except msgspec.DecodeError as error:
        raise TrialError(f"/completion gives no timings: {error}") from None
    if timings.predicted_n < 1 or timings.predicted_ms <= 0:
        raise TrialError("/completion generated nothing")
    return timings
