"""Every key of the config is there for something."""

from __future__ import annotations

import ast
from pathlib import Path

import launcher
from launcher.config.schema import fields_of, shape_of
from launcher.ir.config import FleetConfig
from tests.config.test_config_values import walk

ROOT = Path(launcher.__file__).parent
DECLARED = ROOT / "ir/config"


def names_in(path: Path) -> set[str]:
    """Attributes that a module reads, and words that it has: keys of tables of names."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return words | {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}


def test_every_key_is_read_somewhere() -> None:
    """A field that no module but its declaration names changes nothing, whatever is written there."""
    named = set().union(*(names_in(path) for path in ROOT.rglob("*.py") if path.parent != DECLARED))
    unread = [f"{s.__name__}.{n}" for s in walk(shape_of(FleetConfig), {}) for n in fields_of(s) if n not in named]
    assert unread == []
