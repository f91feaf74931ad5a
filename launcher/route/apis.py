"""Paths of other programs' APIs that the front answers where `runtime.front.apis` names them. Pure."""

from __future__ import annotations

from collections.abc import Collection

_PATHS = {
    ("POST", "/models/load"): "llama_router",
    ("POST", "/models/unload"): "llama_router",
    ("GET", "/models/sse"): "llama_router",
    ("GET", "/running"): "llama_swap",
    ("GET", "/unload"): "llama_swap",
    ("POST", "/api/models/unload"): "llama_swap",
    ("GET", "/api/version"): "ollama",
    ("GET", "/api/tags"): "ollama",
    ("GET", "/api/ps"): "ollama",
    ("POST", "/api/show"): "ollama",
    ("POST", "/api/chat"): "ollama",
    ("POST", "/api/generate"): "ollama",
    ("POST", "/api/embed"): "ollama",
    ("POST", "/api/embeddings"): "ollama",
}
UPSTREAM = "/upstream/"
UNLOAD = "/api/models/unload/"


def api_of(method: str, path: str, apis: Collection[str]) -> str:
    """What answers this: one of `apis`, `upstream` for llama-swap's way to a named server, "" for none."""
    if path.startswith(UPSTREAM):
        return "upstream" if "llama_swap" in apis else ""
    if method == "POST" and path.startswith(UNLOAD):
        return "llama_swap" if "llama_swap" in apis else ""
    api = _PATHS.get(("GET" if method == "HEAD" else method, path), "")
    return api if api in apis else ""
