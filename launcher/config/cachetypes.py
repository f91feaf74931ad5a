"""Types of K and V: llama.cpp's own, and those of a fork that its engine names. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import get_args

from launcher.config.nearest import did_you_mean, listing
from launcher.errors import Finding, fault
from launcher.ir.config import OwnKvType, RungConfig, ServerConfig

KV_TYPES: tuple[str, ...] = get_args(OwnKvType)
"""Those that every build has."""


def cache_types(
    key: str, entry: ServerConfig | RungConfig, named: Collection[str], engine: str = ""
) -> Iterator[Finding]:
    """A `config/choice` error for each K/V type of a server, its draft or a rung that is neither known nor `named`."""
    written = [(key, entry.cache_type_k, entry.cache_type_v)]
    if isinstance(entry, ServerConfig) and entry.draft is not None:
        written.append((f"{key}.draft", entry.draft.cache_type_k, entry.draft.cache_type_v))
    for at, *kinds in written:
        for field, kind in zip(("cache_type_k", "cache_type_v"), kinds, strict=True):
            if not kind or kind in KV_TYPES or kind in named:
                continue
            known = (*KV_TYPES, *named)
            own = f"one that only a fork has is named by its engine: engines.{engine or 'NAME'}.cache_types.{kind}="
            yield fault(
                "config/choice",
                f"{at}.{field}",
                f"{at}.{field} is the string {kind!r}, not one of {', '.join(known)}",
                listing("choices", known),
                f"{own}{{block: VALUES, block_bytes: BYTES}}",
                fixes=did_you_mean(f"{at}.{field}", kind, known),
            )
