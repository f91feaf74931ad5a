"""The house: no circle of imports, no module hidden behind a function of its name, short files, true walks."""

from __future__ import annotations

import ast
import importlib
import re
import types
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES_MAX = 450
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "launcher").rglob("*.py"))
}


def imports(module: str, path: Path) -> set[str]:
    """Modules of ours that `module` names in an import at its top level, those for types alone included."""
    found: set[str] = set()
    body = ast.parse(path.read_text()).body
    tests = [inner for node in body if isinstance(node, ast.If | ast.Try) for inner in node.body]
    for node in (*body, *tests):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in deeper}
    return {name for name in found if name in FILES and name != module}


def test_imports_go_one_way() -> None:
    """Also those under TYPE_CHECKING: who reads a module reads what it names."""
    graph = {module: imports(module, path) for module, path in FILES.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_a_module_is_what_its_name_says() -> None:
    """`launcher.sweep.grid` is a module or a function, never first the one and then the other."""
    hidden = []
    for name in FILES:
        room, _, leaf = name.rpartition(".")
        if room and leaf != "__main__":
            importlib.import_module(name)
            if not isinstance(getattr(importlib.import_module(room), leaf), types.ModuleType):
                hidden.append(name)
    assert hidden == []


def test_files_can_be_read() -> None:
    """None is longer than that."""
    assert {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > LINES_MAX} == {}


@pytest.mark.parametrize("walk", ["A later streamed request of a connection", "## An override", "## A crash"])
def test_the_walks_of_the_architecture_are_walked(walk: str) -> None:
    """Every file, class and function that docs/architecture.md leads through is there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    steps = text[text.index(walk) :].split("```")[1]
    defined = re.compile(r"^ *(?:async )?(?:class|def) (\w+)", re.MULTILINE)
    names = {name for path in FILES.values() for name in defined.findall(path.read_text())}
    rooms = {part for name in FILES for part in name.split(".")}
    led = re.findall(r"(?<![\w.])([a-z_]+)(?=:)", steps)
    called = re.findall(r"(?<![\w.])((?:[A-Z_]\w*[a-z]\w*|\w+_\w+)(?:\.\w+)?)(?!\w|:)", steps)
    assert len(called) > 20
    assert [room for room in led if room not in rooms | {"pure"}] == []
    assert [name for name in called if not set(name.split(".")) <= names | rooms] == []
