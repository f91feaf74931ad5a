"""What is on this machine that a fleet could be made of: model files and llama-servers.

In: the environment, folders to look in. Out: `FoundModels` (files with what their headers say, and what could not be
read) and `FoundEngine`s. I/O: lists folders, reads headers through the reader that it is given, asks binaries for their
version.
"""

from launcher.discover.engines import FoundEngine, find_engines
from launcher.discover.models import MAX_DEPTH, FoundModels, find_models, plain_path, usual_places

__all__ = ["MAX_DEPTH", "FoundEngine", "FoundModels", "find_engines", "find_models", "plain_path", "usual_places"]
