"""What is known of servers beyond their plan: how fast they are, and what one says itself that it takes. Pure.

Speeds in tokens a second, memory in bytes, times in seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Component = Literal["model", "kv", "recurrent", "output", "compute", "draft"]
"""What a dry run tells apart; names as in `launcher.ir.plan.DeviceMemory`."""


class Touched(msgspec.Struct, frozen=True, kw_only=True):
    """What one token needs: bytes read by device while generating, and weights multiplied while reading a prompt."""

    bytes: dict[str, int]
    weights: int


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One server as it was measured alone on this host, one request at a time.

    `key`: build, model and command line. `load_average`: of the machine, before: how quiet it was.
    """

    key: str
    hardware: str
    server: str
    model: str
    quantization: str
    settings: str
    build: str
    at: str
    prompt_tokens: int
    n_predict: int
    batches: int
    load_average: float
    decode: float
    prompt: float
    memory_bytes: int
    load_s: float = 0.0
    touched: Touched
    drafts: bool = False


class ServerSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of one server with one request at a time, from the lowest to the highest.

    `source`: measured = this very server here; calibrated = others here, by what a token touches; stated = by the
    bandwidth in the hardware file. `basis` says what it rests on. `prompt` absent: nothing is known.
    """

    server: str
    decode: tuple[float, float]
    together: tuple[float, float] | None = None
    """While all that are up after start, and this one, generate at once; absent: nobody shares a device with it."""
    prompt: tuple[float, float] | None = None
    load_s: float | None = None
    """Seconds until it was ready when it was measured, else what reading its files takes; absent: not known."""
    source: Literal["measured", "calibrated", "stated"]
    basis: str
    touched_bytes: dict[str, int]


class ReadSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast model files came from the disk where they lie: bytes a second, of so many bytes read past the cache."""

    bytes_per_s: int
    read_bytes: int
    folder: str
    at: str


class Excess(msgspec.Struct, frozen=True, kw_only=True):
    """What a dry run said of one component on one device beyond the plan, in bytes: the plan has to grow by it."""

    device: str
    component: Component
    excess_bytes: int


class Proved(msgspec.Struct, frozen=True, kw_only=True):
    """That a server's own binary was asked: its build, what it takes by its own word, and beyond the bound.

    `memory`: bytes by device of what a dry run tells (weights, context, compute; the draft's too).
    """

    build: str
    memory: dict[str, int] = {}
    excess: tuple[Excess, ...] = ()
