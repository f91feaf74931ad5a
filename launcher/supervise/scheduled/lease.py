"""Which of several fronts leads, by one Lease object (coordination.k8s.io/v1), wherever it is kept. Pure.

As in every client of leases, clocks are not compared. A front that is not the holder takes the lease when it has seen
no change of it for the lease's duration, by its own clock; whoever writes first wins, by `resourceVersion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Object = Mapping[str, Any]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of a Lease. `holder` "": nobody; `version` (of the object) changes with each renewal."""

    holder: str = ""
    lasts_s: float = 0.0
    transitions: int = 0
    version: str = ""


class Observation(msgspec.Struct, frozen=True):
    """A claim, and when it was first seen unchanged, on our own clock."""

    claim: Claim
    since: float


def claim_of(lease: Object) -> Claim:
    """The contents of `lease`; without a holder, it is nobody's."""
    spec = lease.get("spec")
    fields = spec if isinstance(spec, dict) else {}
    holder, lasts, count = (fields.get(k) for k in ("holderIdentity", "leaseDurationSeconds", "leaseTransitions"))
    return Claim(
        holder=holder if isinstance(holder, str) else "",
        lasts_s=float(lasts) if isinstance(lasts, int) else 0.0,
        transitions=count if isinstance(count, int) else 0,
        version=version(lease),
    )


def observed(before: Observation | None, claim: Claim, now: float) -> Observation:
    """`claim` as seen at `now`; where it is unchanged, `before` with its earlier time."""
    return before if before is not None and before.claim == claim else Observation(claim, now)


def may_take(sight: Observation, now: float, least_s: float) -> bool:
    """Whether nobody holds the lease, or it was not renewed for its duration and for `least_s`."""
    return not sight.claim.holder or now - sight.since > max(sight.claim.lasts_s, least_s)


def taken(lease: Object, holder: str, lasts_s: float, at: str) -> dict[str, Any]:
    """`lease` with `holder` as its holder from `at` on (RFC 3339, microseconds); "" gives it back."""
    before = claim_of(lease)
    spec: dict[str, Any] = {
        "holderIdentity": holder,
        "leaseDurationSeconds": max(1, round(lasts_s)),
        "renewTime": at,
        "leaseTransitions": before.transitions + (holder not in ("", before.holder)),
    }
    old = lease.get("spec")
    acquired = old.get("acquireTime") if isinstance(old, dict) and before.holder == holder else None
    return {**lease, "spec": spec | {"acquireTime": acquired or at}}


def identity(address: str, pod: str, run: str) -> str:
    """Name of a front in the lease: its address, its pod, and a random id of its run."""
    return f"{address}/{pod}/{run}"


def address_of(holder: str) -> tuple[str, int] | None:
    """Host and port in a front's identity; None if there is none."""
    host, _, port = holder.partition("/")[0].rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return (host, int(port)) if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536 else None


def version(thing: Object) -> str:
    """The `resourceVersion` of an object or a list; "" where it has none."""
    known = thing.get("metadata")
    return str(known.get("resourceVersion") or "") if isinstance(known, Mapping) else ""
