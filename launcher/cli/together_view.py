"""Co-residency for people: which servers may be up at once, where there is a choice."""

from __future__ import annotations

from launcher.cli.terminal import Terminal
from launcher.ir.plan import FleetPlan, Residency, ResidentSet
from launcher.sizes import GIB, MIB


def show_residency(terminal: Terminal, plan: FleetPlan) -> None:
    """A row a set, with what is taken by device; nothing where all fit together and may be."""
    for table in plan.residency:
        if len(table.sets) == 1 and table.sets[0].allowed and not table.never and table.complete:
            continue
        devices = [d.name for d in plan.devices if d.host == table.host]
        budgets = {d.name: d.budget_bytes for d in plan.devices if d.host == table.host}
        terminal.line()
        rows = [_row(found, budgets) for found in table.sets]
        rows += [(name, *("" for _ in devices), "fits beside none") for name in table.never]
        where = f" on {table.host}" if table.host else ""
        header = (f"UP TOGETHER{where}", *(name.upper() for name in devices), "")
        terminal.table(header, rows, right=frozenset(range(1, len(devices) + 1)))
        terminal.line(f"{_beside(table)}; sizes are peaks, of the budget")


def _row(found: ResidentSet, budgets: dict[str, int]) -> tuple[str, ...]:
    """Names, each device's bytes with their share of its budget, and whether they may."""
    cells = (
        f"{_size(size)} {size / budget:>4.0%}" if (size := found.bytes.get(name, 0)) and budget else "-"
        for name, budget in budgets.items()
    )
    return " + ".join(found.servers), *cells, "" if found.allowed else "would fit, but they take turns (exclusive)"


def _beside(table: Residency) -> str:
    """Who is always up, and whether the table is whole."""
    beside = f"beside {', '.join(table.always)}" if table.always else "nothing else is up"
    return beside if table.complete else f"{beside}; there are more sets than these"


def _size(size_bytes: int) -> str:
    """`17.3G` or `412M`."""
    return f"{size_bytes / GIB:.1f}G" if size_bytes >= GIB else f"{size_bytes / MIB:.0f}M"
