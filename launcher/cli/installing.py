"""How a Python package comes to where launch is installed. I/O: looks at the environment that runs it."""

from __future__ import annotations

import sys
from pathlib import Path


def install_command(package: str) -> str:
    """The command that puts `package` beside launch: that of pipx or uv where they made the environment, else pip's."""
    made_here = Path(sys.prefix)
    if (made_here / "pipx_metadata.json").exists():
        return f"pipx inject launch-fleet {package}"
    if (made_here / "uv-receipt.toml").exists():
        return f"uv pip install --python {sys.executable} {package}"
    return f"{sys.executable} -m pip install {package}"
