"""Commands by the names that people type: `ps`, `restart`, `switch`, `down`, `logs`."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from launcher.cli.app import ConfigDir, FleetFile, Json, Names, NoColor, OfFleet, Overrides, app, request_of
from launcher.cli.fleets import status

app.command("ps", help="The same as status.\n\n\b\nlaunch ps")(status)


@app.command()
def restart(names: Names = None, *, json: Json = False, no_color: NoColor = False) -> int:
    """Restart servers, or all that run, with what the files say now.

    \b
    launch restart chat
    launch restart
    """
    from launcher.cli.reload import reload_servers
    from launcher.cli.running import names_up

    return reload_servers(tuple(names or dict.fromkeys(names_up())), as_json=json, no_color=no_color)


@app.command()
def switch(
    overrides: Overrides = None,
    *,
    dry_run: Annotated[bool, Option("--dry-run", help="Only show what would change.")] = False,
    fleet: OfFleet = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Make the running fleet another one; what is the same stays up.

    \b
    launch switch hardware=epyc profile=full   shows the difference, then does the least
    launch switch -f evening.yaml --dry-run
    """
    from launcher.cli.switch import switch_fleet

    words, dirs = request_of(overrides, config_dir, file)
    return switch_fleet(words, dirs, fleet=fleet, dry_run=dry_run, as_json=json, no_color=no_color)


@app.command()
def down(*, json: Json = False, no_color: NoColor = False) -> int:
    """Drain and stop everything: stop --all.

    \b
    launch down
    """
    from launcher.cli.running import stop_servers

    return stop_servers((), everything=True, as_json=json, no_color=no_color)


@app.command()
def logs(
    names: Names = None,
    *,
    follow: Annotated[bool, Option("--follow", "-f", help="Keep printing what comes.")] = False,
    lines: Annotated[int, Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Print logs: of one server, of several, or of all.

    \b
    launch logs assistant -n 20
    launch logs -f               all that runs, each line with its server
    """
    from launcher.cli.logs import show_logs

    return show_logs(tuple(names or ()), follow=follow, lines=lines, as_json=json, no_color=no_color)
