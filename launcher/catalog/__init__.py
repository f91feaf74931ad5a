"""In: the models that a fleet names. Out: `Catalog` (from GGUF headers, or from what is declared) and findings.

I/O: reads headers, never weights; writes sparse files for dry runs. `synthesise`, `complete` and the layouts are
pure. What reads and writes GGUF files is imported when it is first asked for: a plan without files needs none of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from launcher.catalog.declared import synthesise
from launcher.catalog.fleet import build, vault
from launcher.catalog.headers import Headers
from launcher.catalog.locate import resolve_path, split_paths
from launcher.catalog.mix import MIXES, find_mix
from launcher.ir.architectures import complete

if TYPE_CHECKING:
    from launcher.catalog.files import describe, load_model, read_header
    from launcher.catalog.sparse import write_sparse

_LATE = {
    **dict.fromkeys(("describe", "load_model", "read_header"), "launcher.catalog.files"),
    "write_sparse": "launcher.catalog.sparse",
}

__all__ = [
    "MIXES",
    "Headers",
    "build",
    "complete",
    "describe",
    "find_mix",
    "load_model",
    "read_header",
    "resolve_path",
    "split_paths",
    "synthesise",
    "vault",
    "write_sparse",
]


def __getattr__(name: str) -> Any:
    """What is imported on first use. AttributeError for any other name."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)
