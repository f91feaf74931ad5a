"""Packages that only some tests use: every worker collects all tests, and would import them for nothing."""

from __future__ import annotations

import importlib
from typing import Any


class Late:
    """The module `name`, imported when something of it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        """What the module has; nothing private, which pytest asks everything for while it collects."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
