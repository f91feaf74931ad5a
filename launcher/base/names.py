"""Valid names of deployments, processes and units, which all become file names, and of variables. Pure."""

from __future__ import annotations

import re
import unicodedata

DEPLOYMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,200}")
"""A deployment's name: a directory below /etc/launch and the state directory."""
PROCESS = re.compile(r"(?!.*\.rung\d*\Z)[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
"""Name of a server, a service or a tier: part of paths and unit names. It cannot end in `.rung1`, which names the unit
of a fallback."""

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""An environment variable's name."""

_NO_PART_OF_ONE = re.compile(r"[^A-Za-z0-9_-]+")

TAKEN_PREFIXES = frozenset(
    {"systemd", "dbus", "user", "session", "machine", "system", "init", "dev", "sys", "getty", "initrd"}
)
"""Prefixes of unit names that systemd itself creates, or gives a meaning (`user-1000.slice`)."""


def derived_name(called: str) -> str:
    """The process name of a server that is called by a model id: `org-model-q4` for `org/model:q4`."""
    return _NO_PART_OF_ONE.sub("-", called).strip("-")


def control_character(text: str) -> str | None:
    """The first control character, Unicode line break or lone surrogate in `text`, escaped; None: there is none.

    In a unit, a script, YAML or a log such a character ends the line, so that its author writes the next line.
    """
    if text.isprintable():  # nearly always, and quick
        return None
    found = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    return None if found is None else ascii(found)[1:-1]
