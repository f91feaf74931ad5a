"""docs/config.md has every field of the config, as the types have it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from launcher.cli.reference import MEMORY, page, reached
from launcher.ir.config import FleetConfig

PAGE = Path(__file__).parents[2] / "docs/config.md"


def test_the_page_is_current() -> None:
    """`python -m launcher.cli.reference docs/config.md` wrote it."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


def test_every_field_of_every_group_is_there() -> None:
    """One row a field, under its type."""
    seen: dict[type, str] = {}
    reached(FleetConfig, "", seen)
    text = PAGE.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == {kind.__name__ for kind in seen}
    for kind in seen:
        fields = re.findall(r"^\| `(\w+)` \|", sections[kind.__name__], re.MULTILINE)
        assert fields == [field.name for field in msgspec.structs.fields(kind)]


def test_what_is_said_of_memory_is_said_of_fields_that_there_are() -> None:
    """No entry outlives its field."""
    seen: dict[type, str] = {}
    reached(FleetConfig, "", seen)
    known = {f"{kind.__name__}.{field.name}" for kind in seen for field in msgspec.structs.fields(kind)}
    assert MEMORY.keys() <= known
