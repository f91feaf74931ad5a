"""The document of faults is what the tests say."""

from __future__ import annotations

from tests.faults.table import DOCUMENT, document, faults


def test_the_document_is_what_the_tests_say() -> None:
    """docs/faults.md has every fault with its outcome; `python -m tests.faults.table` writes it."""
    present = DOCUMENT.read_text()
    assert present == document(present)


def test_there_are_thirty_and_more() -> None:
    """Each is a test of its own, with an outcome of its own words or another's."""
    found = faults()
    assert len(found) >= 30
    assert len({f.test for f in found}) == len(found)
