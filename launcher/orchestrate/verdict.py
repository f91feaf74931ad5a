"""Parses verdicts of a validator: JSON by the schema, or `[PASS]` / `[FAIL: reason]` texts. Pure.

Only an answer that says PASS and nothing against it is a pass. An answer that cannot be read is none.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

Kind = Literal["pass", "fail", "malformed", "contradictory", "timeout", "unavailable"]
_SHOWN = 200
_NO_REASON = "no reason was given"
_FENCE = re.compile(r"\A```(?:json)?[^\S\n]*\n(.*)```\Z", re.DOTALL | re.IGNORECASE)
_PASS_ONLY = re.compile(r"\[PASS\]\.?", re.IGNORECASE)
_MARKER = re.compile(r"\[(PASS|FAIL)\b", re.IGNORECASE)

_REASON = {"type": "string", "maxLength": 200}
_SAID = {"type": "string", "minLength": 1, "maxLength": 200}
SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"status": {"const": status}, "reason": reason, "correction": correction},
            "required": ["status", "reason", "correction"],
            "additionalProperties": False,
        }
        for status, reason, correction in (
            ("PASS", _REASON, {"const": ""}),
            ("FAIL", _SAID, {"type": "string", "minLength": 1, "maxLength": 300}),
        )
    ]
}
"""JSON Schema that constrains the validator's answer; a pass cannot ask for a correction."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One judgement of one block. Only `pass` and `fail` are about the block; the others are about the validator."""

    kind: Kind
    reason: str = ""
    correction: str = ""
    server: str = ""
    seconds: float = 0.0
    draft: str = ""
    """The text that was judged and did not pass; "" for a pass, whose text is the block."""


def parse_verdict(text: str) -> Verdict:
    """The verdict in a validator's answer; never raises."""
    text = text.strip()
    fenced = _FENCE.match(text)
    inner = fenced[1].strip() if fenced else text
    if inner.startswith("{"):
        return _from_json(inner)
    return _from_text(text)


def _from_json(text: str) -> Verdict:
    """A verdict in JSON by the schema; extra keys are ignored, duplicate keys are malformed."""
    try:
        found = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        return _malformed(text, str(error))
    status, reason, correction = found.get("status"), found.get("reason") or "", found.get("correction") or ""
    if not isinstance(status, str) or not isinstance(reason, str) or not isinstance(correction, str):
        return _malformed(text, "status, reason and correction must be strings")
    if status == "FAIL":
        return Verdict(kind="fail", reason=reason.strip() or _NO_REASON, correction=correction.strip())
    if status != "PASS":
        return _malformed(text, f"status is {status[:_SHOWN]!r}")
    against = correction.strip() or (_MARKER.search(reason) or [""])[0][1:].upper() == "FAIL"
    if against:
        against = correction.strip() or reason.strip()
        return Verdict(kind="contradictory", reason=f"PASS, and against it: {against[:_SHOWN]}")
    return Verdict(kind="pass", reason=reason.strip())


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of `pairs`. Raises ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _from_text(text: str) -> Verdict:
    """`[PASS]` alone, or `[FAIL: reason]` first and then what to change."""
    words = {match[1].upper() for match in _MARKER.finditer(text)}
    if len(words) > 1:
        return Verdict(kind="contradictory", reason=f"both PASS and FAIL: {text[:_SHOWN]}")
    if _PASS_ONLY.fullmatch(text):
        return Verdict(kind="pass")
    if text[:5].upper() != "[FAIL" or not words:
        return _malformed(text, "neither a JSON verdict nor [PASS] or [FAIL: reason]")
    end = _closing(text)
    if end < 0:
        return _malformed(text, "[FAIL is not closed")
    reason = text[5:end].removeprefix(":").strip()
    return Verdict(kind="fail", reason=reason or _NO_REASON, correction=text[end + 1 :].strip())


def _closing(text: str) -> int:
    """Index of the bracket that closes the first one; a reason may have brackets itself. -1 when there is none."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth == 0:
            return i
    return -1


def _malformed(text: str, why: str) -> Verdict:
    return Verdict(kind="malformed", reason=f"{why}: {text[:_SHOWN]!r}")
