"""The codes that tests elsewhere trigger and spare, as `elsewhere.toml` lists them."""

from __future__ import annotations

import ast
import functools
import tomllib
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("elsewhere.toml")
TESTS = TABLE.parents[1]


class Pair(NamedTuple):
    """The test that triggers a code, and one that comes near and must not; as pytest names them."""

    triggers: str
    spares: str


@functools.cache
def pairs() -> dict[str, Pair]:
    """Code → its tests."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {code: Pair(entry["triggers"], entry["spares"]) for code, entry in table.items()}


@functools.cache
def source_of(test: str) -> str | None:
    """The text of a test's function with its decorators; None where there is no such test."""
    path, _, name = test.partition("[")[0].partition("::")
    text = _text(path)
    if text is None:
        return None
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return "\n".join(text.splitlines()[begin - 1 : node.end_lineno])
    return None


@functools.cache
def _text(path: str) -> str | None:
    """A test file; None where it is gone."""
    file = TESTS.parent / path
    return file.read_text(encoding="utf-8") if file.is_file() else None


def is_written(code: str, test: str) -> bool:
    """Whether a test has a code, or the part behind its slash as one of its parameters, in its text."""
    text = source_of(test) or ""
    return code in text or ("[" in test and f'"{code.partition("/")[2]}"' in text)


@functools.cache
def _listed() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Test → codes that it must make in its process, and codes that it must not."""
    triggers: dict[str, set[str]] = {}
    spares: dict[str, set[str]] = {}
    for code, pair in pairs().items():
        spares.setdefault(pair.spares, set()).add(code)
        if not is_written(code, pair.triggers):
            triggers.setdefault(pair.triggers, set()).add(code)
    return triggers, spares


def spoken_by(test: str) -> frozenset[str]:
    """Codes that `test` must make. Not those in its text, which it asserts itself, maybe of another process."""
    return frozenset(_listed()[0].get(test, ()))


def unspoken_by(test: str) -> frozenset[str]:
    """Codes that `test` must not make, nor any of its parametrizations."""
    spares = _listed()[1]
    return frozenset(spares.get(test, set()) | spares.get(test.partition("[")[0], set()))
