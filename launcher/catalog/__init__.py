"""In: the models that a fleet names. Out: `Catalog` (from GGUF headers, or from what is declared) and findings.

I/O: reads headers, never weights; writes sparse files for dry runs. `synthesise`, `complete` and the layouts are
pure.
"""

from launcher.catalog.architecture import architecture_from_header
from launcher.catalog.file_types import MIXES, Mix, find_mix
from launcher.catalog.files import describe, load_model, read_header
from launcher.catalog.fleet import build
from launcher.catalog.gguf import BadHeader, Header, parse_header
from launcher.catalog.headers import Headers, header_facts
from launcher.catalog.layouts import LAYOUTS
from launcher.catalog.locate import resolve_path, split_paths
from launcher.catalog.sparse import sparse_header, write_sparse
from launcher.catalog.stored import vault
from launcher.catalog.synthesis import synthesise
from launcher.catalog.traits import complete, is_recurrent

__all__ = [
    "LAYOUTS",
    "MIXES",
    "BadHeader",
    "Header",
    "Headers",
    "Mix",
    "architecture_from_header",
    "build",
    "complete",
    "describe",
    "find_mix",
    "header_facts",
    "is_recurrent",
    "load_model",
    "parse_header",
    "read_header",
    "resolve_path",
    "sparse_header",
    "split_paths",
    "synthesise",
    "vault",
    "write_sparse",
]
