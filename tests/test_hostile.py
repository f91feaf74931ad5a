"""Every kind of attack and bad day in tests/hostile.toml has its tests."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLE = tomllib.loads((HERE / "hostile.toml").read_text())
KINDS = 21


def functions(path: Path) -> set[str]:
    """The names of a file's tests."""
    body = ast.parse(path.read_text()).body
    return {n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_kind_is_there() -> None:
    """H1 to H21, in order."""
    assert list(TABLE) == [f"H{number}" for number in range(1, KINDS + 1)]


@pytest.mark.parametrize("number", TABLE)
def test_a_kind_has_its_tests(number: str) -> None:
    """Those of the line, and two more of the kind, which exist."""
    line, more = TABLE[number]["line"], TABLE[number]["more"]
    assert line
    assert TABLE[number]["before"], "what the code before did with it"
    assert len(set(more) - set(line)) >= 2
    for name in (*line, *more):
        file, _, function = name.partition("::")
        assert function in functions(HERE / file), name
