"""What the plan chose for servers that leave something open, for people."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.cli.terminal import Terminal
from launcher.ir.plan import Solved


def show_solved(terminal: Terminal, choices: Iterable[Solved]) -> None:
    """A row a server: the values, and what the next better ones would need."""
    terminal.line()
    terminal.table(("CHOSEN", "", "NOTHING BETTER FITS"), [_row(choice) for choice in choices])


def _row(choice: Solved) -> tuple[str, str, str]:
    """One server."""
    values = ", ".join(f"{field}={_value(value)}" for field, value in choice.chosen.items())
    if not choice.fits:
        return choice.server, values, "not even this: it is the least that will do"
    more = () if choice.complete else ("there may be better: too many combinations for so many devices",)
    return choice.server, values, "; ".join((*choice.beyond, *more)) or "all is at its best"


def _value(value: object) -> str:
    """A value as an override spells it."""
    return f"[{','.join(f'{v:g}' for v in value)}]" if isinstance(value, list) else str(value)
