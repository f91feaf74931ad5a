"""Which model architectures a llama.cpp library knows, from its table of names. Pure.

`LLM_ARCH_NAMES` (llama.cpp src/llama-arch.cpp) begins with "clip" and ends with "(unknown)"; compilers lay its strings
out one after the other. The linker may have dropped a name that ends a longer one ("qwen2" in "rwkv6qwen2"), so such
names are looked for among `candidates`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable

_END = b"\0(unknown)\0"
_BEGIN = b"\0clip\0"
_FAR = 16384
_NAME = re.compile(rb"[a-z0-9][a-z0-9_.-]{1,40}")


def architectures(library: bytes | mmap.mmap, candidates: Iterable[str]) -> tuple[str, ...]:
    """Names of the table in `library`, and `candidates` that end some string of it, sorted; () without a table."""
    end = library.find(_END)
    while end >= 0:
        begin = library.rfind(_BEGIN, max(0, end - _FAR), end)
        if begin >= 0:
            table = bytes(library[begin + 1 : end + 1])
            names = {n.decode() for n in table.split(b"\0") if _NAME.fullmatch(n)}
            names |= {c for c in candidates if library.find(c.encode() + b"\0") >= 0}
            return tuple(sorted(names - {"clip"}))
        end = library.find(_END, end + 1)
    return ()
