"""Remedies: the nearest valid name, lists of names, and values spelled as overrides. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from launcher.errors import Fix

SHOWN_NAMES = 12
"""Valid names listed in a note; the rest is counted."""

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.+-]*")
_RESERVED = {"true", "false", "null", "nan", "inf"}


FLAG_NAMES = {
    **dict.fromkeys(("ngl", "gpu_layers"), "n_gpu_layers"),
    **dict.fromkeys(("c", "ctx", "ctx_size", "context"), "n_ctx"),
    **dict.fromkeys(("np", "parallel"), "slots"),
    **dict.fromkeys(("mm", "mmproj"), "projector"),
    **dict.fromkeys(("m", "path", "model_path", "gguf"), "file"),
    **dict.fromkeys(("md", "model_draft"), "draft"),
    "ctk": "cache_type_k",
    "ctv": "cache_type_v",
    "fa": "flash_attention",
    "b": "n_batch",
    "ub": "n_ubatch",
    "t": "threads",
    "dev": "devices",
    "device": "devices",
    "ts": "tensor_split",
    "alias": "aliases",
}
"""llama-server's flags → config fields, for users who write flags into a server."""


def nearest(word: str, names: Iterable[object]) -> str | None:
    """The name most like `word`, if any is near enough to be what was meant, or begins with it."""
    from difflib import get_close_matches  # noqa: PLC0415 - only mistakes pay for the import

    by_folded = {str(name).casefold(): str(name) for name in names}
    found = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    if not found and len(word) > 1:
        found = [folded for folded in sorted(by_folded) if folded.startswith(word.casefold())]
    return by_folded[found[0]] if found else None


def meant(near: str | None) -> tuple[str, ...]:
    """The note that asks whether the nearest name was meant; none where there is none."""
    return (f"did you mean {near}?",) if near else ()


def listing(label: str, names: Iterable[object], shows: str = "") -> str:
    """`label: a, b, c`, cut after `SHOWN_NAMES`, with the command that `shows` all; says so when there is none."""
    all_names = sorted(str(name) for name in names)
    if not all_names:
        return f"{label}: none"
    rest = len(all_names) - SHOWN_NAMES
    return (
        f"{label}: "
        + ", ".join(all_names[:SHOWN_NAMES])
        + (f" and {rest} more{f' ({shows})' if shows else ''}" if rest > 0 else "")
    )


def spell(value: Any) -> str:
    """`value` as Hydra's override grammar reads it back: `4`, `null`, `[a,b]`, `{k:v}`, `'two words'`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spell(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{spell(k)}:{spell(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    if _BARE.fullmatch(value) and value.casefold() not in _RESERVED:
        return value
    return QuotedString(text=value, quote=Quote.single).with_quotes()


def set_to(key: str, value: Any, effect: str = "") -> Fix:
    """The override that writes `value` at `key`."""
    return Fix(override=f"{key}={spell(value)}", effect=effect)


def did_you_mean(key: str, word: str, names: Iterable[object]) -> tuple[Fix, ...]:
    """An override that writes the nearest of `names` at `key`; nothing when none is near."""
    near = nearest(word, names)
    return () if near is None else (set_to(key, near, "the nearest choice"),)
