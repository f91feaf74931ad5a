"""What a sweep measures, and what it makes of it. Pure.

Times in seconds, speeds in tokens a second, memory in bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Values = tuple[tuple[str, str], ...]
"""Server field → value, as an override has them."""
Verdict = Literal["better", "noise", "worse"]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What every point is asked: so many requests at once, a batch; so many batches.

    `prompt_tokens`: length of each prompt, one after another where there are several. `prompts`: what they are made of,
    `built in` or a file. `cache`: whether the server may keep a prompt that it has seen.
    """

    prompt_tokens: tuple[int, ...] = (256,)
    n_predict: int = 64
    warmup: int = 2
    batches: int = 5
    cache: bool = False
    seed: int = 1
    prompts: str = "built in"


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One server with settings, and how many requests it gets at once. `values` empty: as the config has it."""

    server: str
    values: Values
    in_flight: int

    def value(self, field: str) -> str | None:
        """What `field` is set to here; None where the config decides."""
        return dict(self.values).get(field)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request: a row of the CSV.

    `key` names point, command line and workload, so that a row counts only for what it was measured with. Of `timings`,
    as the server gives them: tokens and milliseconds of prompt and generation, tokens drafted and accepted. By our
    clock, because a server does not know when a request was sent: `latency_s`, and `batch_s` of the whole batch.
    """

    key: str
    server: str
    settings: str
    in_flight: int
    phase: Literal["grid", "confirm"]
    batch: int
    request: int
    batch_s: float
    latency_s: float
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int
    draft_accepted: int
    memory_bytes: int
    at: str


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles of what requests took, in seconds."""

    p50: float
    p95: float
    p99: float


class PointResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured at one point; where it was not, `refused` says why and the figures are 0.

    `together`: tokens a second of all requests of a batch by the batch's duration, mean over batches; `prompt` and
    `generation` of one request, medians. `multiplier`: p95 of latency against one request at a time.
    `planned_bytes` and `memory_bytes`: planned after start, and measured.
    """

    server: str
    settings: dict[str, str]
    in_flight: int
    current: bool
    refused: str = ""
    together: float = 0.0
    prompt: float = 0.0
    generation: float = 0.0
    first_token: Spread | None = None
    latency: Spread | None = None
    multiplier: float | None = None
    accepted: float | None = None
    """Share of drafted tokens that were accepted."""
    planned_bytes: int = 0
    memory_bytes: int = 0
    batches: int = 0
    expected: tuple[float, float] | None = None
    """Of `generation`, before it was measured: from the lowest to the highest; absent: nothing was known."""
    ratio: float | None = None
    """`generation` by the (geometric) middle of what was expected."""


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio of two speeds less 1: estimate, bounds, and the share of resamples in which it is above 0."""

    gain: float
    low: float
    high: float
    confidence: float
    pairs: int


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """What to set on a server, with its evidence. `settings` empty: leave it as it is.

    `candidate`: what the rule chose in the grid, whether it is recommended or not. `gain`: measured anew, in pairs.
    """

    server: str
    verdict: Verdict
    settings: dict[str, str]
    candidate: dict[str, str]
    rule: str
    sentence: str
    gain: Gain | None = None
    model: str = ""
    port: int = 0
    """Where the fleet's own server listens; 0: on no port."""


class SweepDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`launch sweep --json`. `recommendation`: one a server. `verdict`: better where any is, then noise, then worse."""

    schema: Literal["launch.sweep/v1"] = "launch.sweep/v1"
    deployment: str
    engine: str
    workload: Workload
    points: tuple[PointResult, ...]
    recommendation: tuple[Recommendation, ...]
    verdict: Verdict
    csv: str
    svg: str = ""
    applied: dict[str, str] = {}
    """File → what was written into it."""
