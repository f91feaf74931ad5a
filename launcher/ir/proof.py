"""What the server itself says that it will take, beside what the plan says. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from launcher.ir.measured import Component


class ProvenMemory(msgspec.Struct, frozen=True, kw_only=True):
    """One device's share by the server's own breakdown, in bytes. The server rounds each figure to 1 MiB.

    `context_bytes` is K/V, recurrent state and output together, `compute_bytes` to 0.01 MiB where the log has it.
    """

    device: str
    model_bytes: int = 0
    context_bytes: int = 0
    compute_bytes: int = 0


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """One model's `no_alloc` pass. `kv_bytes`, `recurrent_bytes`, `output_bytes`: over all devices, to 0.01 MiB."""

    memory: tuple[ProvenMemory, ...]
    kv_bytes: int = 0
    recurrent_bytes: int = 0
    output_bytes: int = 0


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One component on one device (`all` for those that the server logs in sum): predicted and proven bytes."""

    device: str
    component: Component
    predicted_bytes: int
    proven_bytes: int


class ServerProof(msgspec.Struct, frozen=True, kw_only=True):
    """How one server's plan stands the test. `failure` says why there is none; then `differences` is empty.

    `header`: `file` where the real header was read, `sparse` where one was made from the catalogue. `stand_ins` are
    devices that an RPC server stood for. `cached`: taken from an earlier run of the same binary, header and flags.
    """

    name: str
    header: str = "sparse"
    cached: bool = False
    stand_ins: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    failure: str | None = None
    cause: Literal["unfit", "refused", "hung", "unreadable"] | None = None
    """How a dry run failed: died of a signal, ended by itself, was ended at its timeout, is not understood."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The proof of a plan, by `binary`, for the instructions and devices of the machine that ran it."""

    binary: str
    version: str
    features: tuple[str, ...]
    servers: tuple[ServerProof, ...]
