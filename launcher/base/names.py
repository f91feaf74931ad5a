"""What may name a deployment, a process or a unit, which all become files, and a variable. Pure."""

from __future__ import annotations

import re
import unicodedata

DEPLOYMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,200}")
"""A deployment's name: a directory below /etc/launch and the state directory."""
PROCESS = re.compile(r"(?!.*\.rung\d*\Z)[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
"""A server's, a service's, a tier's: part of a path and of a unit's name; `.rung1` is the unit of a fallback."""

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""An environment variable's name."""

_NO_PART_OF_ONE = re.compile(r"[^A-Za-z0-9_-]+")

TAKEN_PREFIXES = frozenset(
    {"systemd", "dbus", "user", "session", "machine", "system", "init", "dev", "sys", "getty", "initrd"}
)
"""What the names of units begin with that systemd itself makes, or gives a meaning (`user-1000.slice`)."""


def derived_name(called: str) -> str:
    """What the process of a server is named that is called by a model id: `org-model-q4` for `org/model:q4`."""
    return _NO_PART_OF_ONE.sub("-", called).strip("-")


def control_character(text: str) -> str | None:
    """The first control character of `text`, a line break of Unicode or a lone surrogate, escaped; None: there is none.

    In a unit, a script, YAML or a log such a character ends the line, and the next line is its author's.
    """
    if text.isprintable():  # nearly always, and quick
        return None
    found = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    return None if found is None else ascii(found)[1:-1]
