"""Findings as text."""

from __future__ import annotations

import io

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli.findings import printable, show_findings, summary
from launcher.cli.terminal import Terminal
from launcher.errors import Finding, Fix, Location

FINDING = Finding(
    code="plan/x",
    severity="error",
    key="a.b",
    message="too much",
    notes=("a note",),
    fixes=(Fix(override="a.b=1", effect="saves 2 GiB"),),
    location=Location(file="conf/a.yaml", line=6, column=10),
)


def shown(*findings: Finding) -> str:
    """What a pipe gets."""
    stream = io.StringIO()
    show_findings(Terminal(stream), findings)
    return stream.getvalue()


def test_a_finding_reads_as_the_contract_says() -> None:
    """Place, severity, code, message; then notes and fixes."""
    assert shown(FINDING) == ("conf/a.yaml:6:10: error[plan/x]: too much\n  = a note\n  = fix: a.b=1 saves 2 GiB\n")


@given(st.text())
def test_what_a_user_wrote_cannot_drive_the_terminal(text: str) -> None:
    """Escape sequences, newlines and lone surrogates come out as text."""
    assert printable(text).isprintable()
    printable(text).encode()


def test_counts_are_summed_up() -> None:
    """Plural where there are several."""
    assert summary([FINDING, FINDING]) == "2 errors"
    assert summary([]) == "no findings"


def test_on_a_narrow_terminal_lines_end_between_words() -> None:
    """Continued lines are indented, overrides stay whole to be copied, a pipe gets one line each."""
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.interactive, terminal.width = True, 40
    words = "nothing in this deployment is started on these ports"
    show_findings(terminal, [msgspec.structs.replace(FINDING, message=words, notes=(words,))])
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert lines[1].startswith("    ")
    assert " ".join(" ".join(lines).split()).count(words) == 2
    assert words in shown(msgspec.structs.replace(FINDING, message=words)).splitlines()[0]


def test_json_loses_nothing_where_the_stream_has_no_such_characters() -> None:
    """What an ASCII stream cannot show is escaped in JSON, and replaced in text."""
    written = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(written, encoding="ascii"))
    terminal.json({"said": "naïve 🙂"}, indent=0)
    terminal.line("naïve")
    assert written.getvalue() == b'{"said": "na\\u00efve \\ud83d\\ude42"}\nna?ve\n'
