"""What a path asks for: which requests compute, and which steer what is computed already. Pure.

Only what is known to compute takes a slot. Everything else that llama-server serves it answers beside its slots
(`/tokenize`, `/props`, `/lora-adapters`, `/slots/N`, `…/control`, and what newer builds add): it must not wait behind
the generation that it is about.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["chat", "completion", "infill", "embedding", "rerank", "audio", "image", ""]
"""What a request has computed; "" for nothing."""

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
"""By the last part of the path."""
_BY_PLACE: dict[tuple[str, str], Kind] = {
    ("chat", "completions"): "chat",
    ("audio", "transcriptions"): "audio",
    ("audio", "translations"): "audio",
    ("audio", "speech"): "audio",
    ("images", "generations"): "image",
    ("images", "edits"): "image",
    ("images", "variations"): "image",
}
"""By the last two."""
STREAM = "/v1/stream"
"""GET resumes the stream of a conversation (`conv_id`), DELETE stops it."""
LOOKUP = "/v1/streams/lookup"
"""Which of some conversations have a stream."""
CONTROL = "/v1/chat/completions/control"
"""Steers a completion, named by the `id` of its answer."""
_STEERING = frozenset({("GET", STREAM), ("DELETE", STREAM), ("POST", LOOKUP), ("POST", CONTROL)})


def kind_of(method: str, path: str) -> Kind:
    """What a request has computed."""
    if method != "POST":
        return ""
    before, _, last = path.rpartition("/")
    return _BY_PLACE.get((before.rpartition("/")[2], last)) or _BY_NAME.get(last, "")


def steers(method: str, path: str) -> bool:
    """Whether a request is about a generation that one server has, and names no model."""
    return (method, path) in _STEERING
