"""`FleetPlan` → files as values: argv, commands, systemd units, the runtime's manifest and routing table.

In: the plan, a binary and a dialect per engine, templates by name. Out: `Rendered`. Pure. A plan needs argv alone:
`fleet`, with everything that only files need, is imported where files are made.
"""

from launcher.render.command import Command, render_commands, server_command
from launcher.render.spellings import TABLE

__all__ = ["TABLE", "Command", "render_commands", "server_command"]
