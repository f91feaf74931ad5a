"""The table of injected faults, read from the tests: `python -m tests.faults.table` writes docs/faults.md.

Every test's docstring is `Fault → outcome`. What stands before the table in the document is kept.
"""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs/faults.md"
BEGIN = "<!-- faults: made by `python -m tests.faults.table` from the tests -->"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One test: what is broken, what must come of it."""

    test: str
    fault: str
    outcome: str


def faults() -> list[Fault]:
    """Every test of the suite, in order. Raises ValueError for one whose docstring names no outcome."""
    found = []
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                fault, arrow, outcome = " ".join((ast.get_docstring(node) or "").split()).partition(" → ")
                if path.name == "test_table.py":
                    continue
                if not arrow:
                    raise ValueError(f"{path.name}::{node.name} says no outcome")
                found.append(Fault(test=f"{path.stem}::{node.name}", fault=fault, outcome=outcome.rstrip(".")))
    return found


def table() -> str:
    """The faults as a Markdown table."""
    rows = ["| fault | outcome | test (`tests/faults/`) |", "| --- | --- | --- |"]
    rows += [f"| {f.fault} | {f.outcome} | `{f.test}` |" for f in faults()]
    return "\n".join(rows) + "\n"


def document(present: str) -> str:
    """The document with the table of now."""
    return present.partition(BEGIN)[0] + BEGIN + "\n\n" + table()


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
