"""Commands by the names that people type: `ps`, `restart`, `down`, `logs`; and what others' verbs are called here."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from launcher.cli.app import ConfigDir, FleetFile, Json, Names, NoColor, Overrides, app, request_of


@app.command()
def ps(
    names: Names = None,
    *,
    watch: Annotated[bool, Option("--watch", help="One live screen; Ctrl-C ends it.")] = False,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """The same as status.

    \b
    launch ps
    """
    from launcher.cli.running import show_status

    return show_status(tuple(names or ()), watch=watch, as_json=json, no_color=no_color)


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
    fleet: Annotated[
        str | None, Option("--fleet", metavar="NAME", help="Which running fleet, where there are several.")
    ] = None,
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
