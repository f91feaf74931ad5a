"""Which answers of a validator are a PASS, and that nothing else is."""

from __future__ import annotations

import json
import time

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.orchestrate.verdict import SCHEMA, parse_verdict

PASSES = (
    '{"status": "PASS", "reason": "", "correction": ""}',
    '{"status":"PASS"}',
    ' {"status": "PASS", "reason": "it is fine"} \n',
    '```json\n{"status": "PASS", "correction": null}\n```',
    "[PASS]",
    " [pass].\n",
)


@pytest.mark.parametrize("text", PASSES)
def test_passes(text: str) -> None:
    """Schema verdicts, fenced or not, and the document's text."""
    assert parse_verdict(text).kind == "pass"


@pytest.mark.parametrize(
    ("text", "reason", "correction"),
    [
        ('{"status": "FAIL", "reason": "no", "correction": "do"}', "no", "do"),
        ('{"status": "FAIL"}', "no reason was given", ""),
        ("[FAIL: no return]", "no return", ""),
        ("[FAIL: list[int] and dict[str, int] mixed] use a list", "list[int] and dict[str, int] mixed", "use a list"),
        ("[fail]", "no reason was given", ""),
    ],
)
def test_fails(text: str, reason: str, correction: str) -> None:
    """A reason may have brackets; what follows says what to change."""
    found = parse_verdict(text)
    assert (found.kind, found.reason, found.correction) == ("fail", reason, correction)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "malformed"),
        ("PASS", "malformed"),
        ("The block is not [PASS]", "malformed"),
        ("[PASS] but line 3 crashes", "malformed"),
        ("[FAIL: not closed", "malformed"),
        ("[PASSED]", "malformed"),
        ('{"status": "pass"}', "malformed"),
        ('{"status": true}', "malformed"),
        ('{"status": "PASS", "reason": 1}', "malformed"),
        ('{"status": "PASS"} trailing', "malformed"),
        ('{"status": "FAIL", "status": "PASS"}', "malformed"),
        ('["PASS"]', "malformed"),
        ("{" * 5000, "malformed"),
        ("[PASS] [FAIL: no]", "contradictory"),
        ("[FAIL: no] then [PASS]", "contradictory"),
        ('{"status": "PASS", "correction": "rename it"}', "contradictory"),
        ('{"status": "PASS", "reason": "[FAIL: no]"}', "contradictory"),
    ],
)
def test_what_is_no_verdict(text: str, kind: str) -> None:
    """Malformed and contradictory answers are told apart, and neither passes."""
    assert parse_verdict(text).kind == kind


@given(
    st.one_of(
        st.text(), st.text(alphabet='[]{}":PASFIL, \n'), st.recursive(st.none() | st.text(), st.lists).map(json.dumps)
    )
)
def test_anything_else_is_not_a_pass(text: str) -> None:
    """Whatever a model says, reading it raises nothing, and only the two known forms pass."""
    if parse_verdict(text).kind == "pass":
        assert text.strip().rstrip(".").upper() == "[PASS]" or json.loads(text)["status"] == "PASS"


@given(st.sampled_from(["PASS", "FAIL"]), st.text(max_size=300), st.text(max_size=300))
def test_the_schema_and_the_reader_agree(status: str, reason: str, correction: str) -> None:
    """Whatever the schema lets through is usable, and a pass under it is a pass."""
    value = {"status": status, "reason": reason, "correction": correction}
    allowed = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    if allowed:
        found = parse_verdict(json.dumps(value))
        marked = "[fail" in reason.lower()
        assert found.kind == {"PASS": "contradictory" if marked else "pass", "FAIL": "fail"}[status]


def test_a_long_answer_is_read_at_once() -> None:
    """A fence that is never closed, and nothing but line ends: the loop that reads it has others to answer."""
    began = time.process_time()
    assert parse_verdict("```" + "\n" * 50_000 + "x").kind == "malformed"
    assert time.process_time() - began < 1
