"""What a path asks for: which requests compute, and which steer a running computation. Pure.

Only requests that are known to compute take a slot. llama-server answers everything else beside its slots (`/tokenize`,
`/props`, `/lora-adapters`, `/slots/N`, `…/control`, and what newer builds add): such a request must not wait behind the
generation that it is about.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["chat", "completion", "infill", "embedding", "rerank", "audio", "image", ""]
"""What a request computes; "": nothing."""

_BY_NAME: dict[str, Kind] = {
    "completion": "completion",
    "completions": "completion",
    "responses": "chat",
    "messages": "chat",
    "infill": "infill",
    "embedding": "embedding",
    "embeddings": "embedding",
    "rerank": "rerank",
    "reranking": "rerank",
    "systemone": "completion",
    "predict": "chat",  # Vertex AI's route: the body says which API it is in
}
"""By the last segment of the path."""
_BY_PLACE: dict[tuple[str, str], Kind] = {
    ("chat", "completions"): "chat",
    ("audio", "transcriptions"): "audio",
    ("audio", "translations"): "audio",
    ("audio", "speech"): "audio",
    ("images", "generations"): "image",
    ("images", "edits"): "image",
    ("images", "variations"): "image",
}
"""By the last two segments."""
STREAM = "/v1/stream"
"""GET resumes the stream of a conversation (`conv_id`), DELETE stops it."""
LOOKUP = "/v1/streams/lookup"
"""Asks which of some conversations have a stream."""
CONTROL = "/v1/chat/completions/control"
"""Steers a completion, named by the `id` of its answer."""
_STEERING = frozenset({("GET", STREAM), ("DELETE", STREAM), ("POST", LOOKUP), ("POST", CONTROL)})


def kind_of(method: str, path: str) -> Kind:
    """What a request computes."""
    if method != "POST":
        return ""
    before, _, last = path.rpartition("/")
    return _BY_PLACE.get((before.rpartition("/")[2], last)) or _BY_NAME.get(last, "")


def steers(method: str, path: str) -> bool:
    """Whether a request is about a running generation of one server, and need not name a model."""
    return (method, path) in _STEERING
