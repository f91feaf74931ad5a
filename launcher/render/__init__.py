"""`FleetPlan` → files as values: argv, commands, systemd units, the runtime's manifest and routing table.

In: the plan, a binary and a dialect per engine, templates by name. Out: `Rendered`. Pure.
What only `render_fleet` needs is imported when it is first asked for: a plan needs argv alone.
"""

from typing import TYPE_CHECKING, Any

from launcher.render.command import Command, placement_prefix, render_commands, server_command, server_words
from launcher.render.spellings import NOT_FLAGS, TABLE

if TYPE_CHECKING:
    from launcher.render.fleet import Rendered, render_fleet

__all__ = [
    "NOT_FLAGS",
    "TABLE",
    "Command",
    "Rendered",
    "placement_prefix",
    "render_commands",
    "render_fleet",
    "server_command",
    "server_words",
]


def __getattr__(name: str) -> Any:
    """`render_fleet` and `Rendered`, imported on first use. AttributeError for any other name."""
    if name in ("Rendered", "render_fleet"):
        from launcher.render import fleet  # noqa: PLC0415 # see above

        return getattr(fleet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
