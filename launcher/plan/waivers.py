"""Warnings that the config accepts, each with a reason. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from launcher.errors import Finding, fault
from launcher.ir.config import FleetConfig

PLAN_CODES = ("plan/", "cpu/")
"""Findings of this stage; waivers of other stages' findings are theirs to report as unused."""
SEVERITIES = {"error": 0, "warning": 1, "note": 2}


class Waiver(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted code: where it is written, which keys it covers ("" = all), and why."""

    key: str
    scope: str
    code: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether `finding` has this code and lies in this scope."""
        inside = not self.scope or finding.key == self.scope or finding.key.startswith(f"{self.scope}.")
        return finding.code == self.code and inside


def apply_waivers(
    fleet: FleetConfig, findings: Iterable[Finding], codes: Callable[[], Collection[str]] | None = None
) -> tuple[Finding, ...]:
    """`findings` without the warnings and notes that are waived with a reason, plus what is wrong with waivers.

    Errors stay. Sorted by severity, then key, then code. `codes` gives all that there are, and is asked only where a
    waiver matches nothing; None = whatever is written.
    """
    found = tuple(findings)
    kept = without_waived(fleet, found)
    return sort_findings((*kept, *(note for w in _waivers(fleet) if (note := _judge(w, found, codes)))))


def without_waived(fleet: FleetConfig, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """`findings` without the warnings and notes that are waived with a reason. Errors stay."""
    waivers = tuple(w for w in _waivers(fleet) if w.reason)
    return tuple(f for f in findings if f.severity == "error" or not any(w.covers(f) for w in waivers))


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings by severity, then key, then code and message."""
    return tuple(sorted(findings, key=lambda f: (SEVERITIES[f.severity], f.key, f.code, f.message)))


def _waivers(fleet: FleetConfig) -> Iterator[Waiver]:
    scopes = [("waive", "", fleet.waive)]
    scopes += [(f"servers.{n}.waive", f"servers.{n}", s.waive) for n, s in fleet.servers.items()]
    for key, scope, entries in scopes:
        for index, entry in enumerate(entries):
            pairs = (entry or {"": ""}).items() if isinstance(entry, dict) else [(entry, "")]
            for code, reason in pairs:
                yield Waiver(key=f"{key}.{index}", scope=scope, code=code, reason=(reason or "").strip())


def _judge(
    waiver: Waiver, findings: tuple[Finding, ...], codes: Callable[[], Collection[str]] | None
) -> Finding | None:
    """What is wrong with a waiver: it names an error, or no code that there is, lacks a reason, or matches nothing."""
    matching = [f for f in findings if waiver.covers(f)]
    if not matching and codes is not None and waiver.code not in (known := codes()):
        return _unknown(waiver, known)
    if any(f.severity == "error" for f in matching):
        message = f"{waiver.code} is an error here: errors cannot be waived"
        return fault("config/waiver-of-error", waiver.key, message, severity="warning")
    if matching and not waiver.reason:
        message = f"the waiver of {waiver.code} has no reason and is not applied: write `- {waiver.code}: why`"
        return fault("plan/waiver-unused", waiver.key, message, severity="note")
    if not matching and waiver.code.startswith(PLAN_CODES):
        message = f"nothing here yields {waiver.code}: the waiver can go"
        return fault("plan/waiver-unused", waiver.key, message, severity="note")
    return None


def _unknown(waiver: Waiver, codes: Collection[str]) -> Finding:
    from difflib import get_close_matches  # noqa: PLC0415 - only mistakes pay for the import

    near = get_close_matches(waiver.code, codes, n=1, cutoff=0.75)
    near = near or [code for code in codes if code.partition("/")[2] == waiver.code]
    message = f"there is no finding {waiver.code}: the waiver accepts nothing" if waiver.code else "it names no finding"
    notes = (f"did you mean {near[0]}?",) if near else ("write `- CODE: why`; `launch explain` lists the codes",)
    return fault("config/waiver-unknown", waiver.key, message, *notes, severity="warning")
