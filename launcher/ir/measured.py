"""What is known of servers beyond their plan: measured speeds, and memory that a dry run reported. Pure.

Speeds in tokens per second, memory in bytes, times in seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Component = Literal["model", "kv", "recurrent", "output", "compute", "draft"]
"""A component in a dry run's report; names as in `launcher.ir.plan.DeviceMemory`."""


class Touched(msgspec.Struct, frozen=True, kw_only=True):
    """Needs of one token: bytes read per device while generating, and weights multiplied while reading a prompt."""

    bytes: dict[str, int]
    weights: int


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One server, measured alone on this host with one request at a time.

    `key`: build, model and command line. `load_average`: the machine's before the measurement, to tell how quiet it
    was.
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
    """Expected speed of one server with one request at a time, from the lowest to the highest.

    `source`: measured = this server here; calibrated = others here, by bytes touched per token; stated = by the
    bandwidth in the hardware file. `basis` explains it. `prompt` absent: unknown.
    """

    server: str
    decode: tuple[float, float]
    together: tuple[float, float] | None = None
    """While all servers that are up after start, and this one, generate at once; absent: it shares no device."""
    prompt: tuple[float, float] | None = None
    load_s: float | None = None
    """Measured seconds until ready, else the time of reading its files; absent: unknown."""
    source: Literal["measured", "calibrated", "stated"]
    basis: str
    touched_bytes: dict[str, int]


class ReadSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast model files were read from their disk: bytes per second, and bytes read past the cache."""

    bytes_per_s: int
    read_bytes: int
    folder: str
    at: str


class Excess(msgspec.Struct, frozen=True, kw_only=True):
    """By how much a dry run exceeded the plan for one component on one device, in bytes: the plan must grow by it."""

    device: str
    component: Component
    excess_bytes: int


class Proved(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a dry run by a server's own binary: its build, its memory, and the excess over the bound.

    `memory`: bytes per device of what a dry run reports (weights, context, compute; the draft's included).
    """

    build: str
    memory: dict[str, int] = {}
    excess: tuple[Excess, ...] = ()
