"""GGUF bytes packed by hand, so that a test can make every mistake that a file can have."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", 11: "q", 12: "d"}

Key = tuple[str, int, Any]
"""Name, value type, value; of an array (element type, list)."""
Info = tuple[str, tuple[int, ...], int, int]
"""Name, shape, GGML type, offset."""


def text(value: str | bytes) -> bytes:
    """A length-prefixed string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    """A value of a value type."""
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, i) for i in items)
    return struct.pack("<" + _CODES[kind], content)


def header(keys: Iterable[Key], infos: Iterable[Info] = (), *, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    """A header, without padding and data."""
    keys, infos = list(keys), list(infos)
    out = magic + struct.pack("<IQQ", version, len(infos), len(keys))
    for name, kind, content in keys:
        out += text(name) + struct.pack("<I", kind) + value(kind, content)
    for name, shape, kind, offset in infos:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return out


def with_data(head: bytes, size: int, alignment: int = 32) -> bytes:
    """A header padded to the alignment, and `size` bytes of data."""
    return head + bytes(-len(head) % alignment) + bytes(size)


LLAMA_KEYS: list[Key] = [
    ("general.architecture", STRING, "llama"),
    ("llama.block_count", U32, 2),
    ("llama.embedding_length", U32, 64),
    ("llama.context_length", U32, 512),
    ("llama.feed_forward_length", U32, 128),
    ("llama.attention.head_count", U32, 4),
    ("llama.attention.head_count_kv", U32, 2),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "bc", ""])),
    ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])),
    ("tokenizer.ggml.model", STRING, "gpt2"),
]
LLAMA_INFOS: list[Info] = [("token_embd.weight", (64, 3), 0, 0), ("output_norm.weight", (64,), 0, 768)]
LLAMA_DATA = 768 + 256


def small(*, extra: Iterable[Key] = (), replace: dict[str, Any] | None = None, drop: str = "") -> bytes:
    """A valid file of 2 tensors; keys can be added, given other values, or left out."""
    changed = replace or {}
    keys = [(n, k, changed.get(n, v)) for n, k, v in LLAMA_KEYS if n != drop]
    return with_data(header([*keys, *extra], LLAMA_INFOS), LLAMA_DATA)
