"""In: the models that a fleet names. Out: `Catalog` (from GGUF headers, or from what is declared) and findings.

I/O: reads headers, never weights; writes sparse files for dry runs. `synthesise`, `complete` and the layouts are
pure. `files` reads GGUF files, `sparse` writes them: a plan without files needs none of it.
"""

from launcher.catalog.fleet import build, vault
from launcher.catalog.headers import Headers
from launcher.catalog.locate import resolve_path, split_paths

__all__ = ["Headers", "build", "resolve_path", "split_paths", "vault"]
