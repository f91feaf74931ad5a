"""How a server proves that it serves: kind, request, URL. Pure."""

from __future__ import annotations

from typing import Literal

from launcher.ir.plan import ServerPlan

ProbeKind = Literal["completion", "embedding", "rerank"]

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 # translated, not bound


def probe_kind(server: ServerPlan) -> ProbeKind:
    """What `server` is asked for: rerank by pooling, embedding, else a completion."""
    if server.pooling == "rank":
        return "rerank"
    return "embedding" if server.settings.embedding else "completion"


def reachable_url(host: str, port: int) -> str:
    """URL under which this host reaches a server that listens on `host`."""
    address = _ANY_ADDRESS.get(host, host)
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
