"""Whether a build takes a value behind a flag. Pure."""

from __future__ import annotations

from launcher.ir.dialect import Flag

ON_OFF = frozenset({"on", "enabled", "true", "1", "off", "disabled", "false", "0", "auto", "-1"})
"""What `is_truthy`, `is_falsey` and `is_autoy` accept (llama.cpp common/arg.cpp)."""


def refused_value(flag: Flag, word: str, value: str) -> str | None:
    """Why `word value` is refused, by the choices that the help lists; None when it is not.

    Lists of bare numbers are examples, not choices. A flag whose help says comma-separated takes several.
    """
    if not flag.choices or value == flag.default or all(c.lstrip("-").isdigit() for c in flag.choices):
        return None
    if {"on", "off"} <= set(flag.choices) and value in ON_OFF:
        return None
    several = value.split(",") if "comma-separated" in flag.help else [value]
    wrong = [v for v in several if v not in flag.choices]
    return f"{word} takes {', '.join(flag.choices)}, not {wrong[0]!r}" if wrong else None
