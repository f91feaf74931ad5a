"""Typer commands that compile a fleet, run it and show its state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from launcher.cli.app import (
    ConfigDir,
    FleetFile,
    Host,
    Json,
    Names,
    Overrides,
    Prove,
    ProveWith,
    Verbose,
    app,
    path_option,
    request_of,
)


@app.command()
def up(
    overrides: Overrides = None,
    *,
    detach: Annotated[
        bool, Option("--detach", "-d", "--wait", help="Return once the fleet is ready; it runs on.")
    ] = False,
    ask: Annotated[str | None, Option("--ask", help="When ready, ask the fleet this and print the answer.")] = None,
    host: Host = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Start a fleet and serve it; Ctrl-C drains and stops.

    \b
    launch up profile=dev
    launch hardware=epyc profile=hot_only --detach
    """
    from launcher.cli.fleet import bring_up

    return bring_up(
        *request_of(overrides, config_dir, file), detach=detach, ask=ask, host=host, as_json=json, verbose=verbose
    )


@app.command()
def plan(
    overrides: Overrides = None,
    *,
    prove: Prove = False,
    prove_with: ProveWith = None,
    multirun: Annotated[
        bool, Option("--multirun", "-m", help="Several values (a=1,2): a row for the plan of each.")
    ] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Show what would run, its memory, and what is wrong.

    \b
    launch plan hardware=epyc profile=hot_only
    launch plan hardware=sovereign profile=three_tier --json
    launch plan hardware=epyc profile=hot_only --prove
    launch -m servers.assistant.slots=1,2,4     a row for each value
    """
    from launcher.cli.build import show

    if multirun:
        from launcher.cli.build import plan_each

        return plan_each(*request_of(overrides, config_dir, file), as_json=json)
    prover = (prove_with or "") if prove or prove_with else None
    return show(*request_of(overrides, config_dir, file), as_json=json, verbose=verbose, prover=prover)


@app.command()
def render(
    overrides: Overrides = None,
    *,
    check: Annotated[bool, Option("--check", help="Write nothing; exit 8 when files on disk differ.")] = False,
    diff: Annotated[bool, Option("--diff", help="Write nothing; show how files on disk differ.")] = False,
    output: Annotated[Path | None, path_option("Parent folder; default: deploy.output_dir.", "--output", "-o")] = None,
    prove: Annotated[
        bool, Option("--prove", help="Limits by the dry runs of this host's binaries, where they say more.")
    ] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> int:
    """Write units, commands, manifest, routes to generated/.

    \b
    launch render hardware=epyc profile=hot_only
    launch render hardware=epyc profile=hot_only --check
    """
    from launcher.cli.build import write

    return write(
        *request_of(overrides, config_dir, file), check=check, diff=diff, output=output, prove=prove, as_json=json
    )


@app.command()
def check(
    overrides: Overrides = None,
    *,
    host: Host = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> int:
    """Compare the plan with this host, now.

    \b
    launch check hardware=epyc profile=hot_only
    """
    from launcher.cli.build import examine

    return examine(*request_of(overrides, config_dir, file), host=host, as_json=json)


@app.command()
def status(
    names: Names = None,
    *,
    watch: Annotated[bool, Option("--watch", help="One live screen; Ctrl-C ends it.")] = False,
    json: Json = False,
) -> int:
    """Show what runs: state, pid, model, memory.

    \b
    launch status
    launch status assistant --json
    launch status --watch
    """
    from launcher.cli.running import show_status

    return show_status(tuple(names or ()), watch=watch, as_json=json)


@app.command()
def stop(
    names: Names = None,
    *,
    everything: Annotated[bool, Option("--all", help="Stop every fleet and its runtime.")] = False,
    json: Json = False,
) -> int:
    """Drain and stop servers, or all of them.

    \b
    launch stop coder
    launch stop --all
    """
    from launcher.cli.running import stop_servers

    return stop_servers(tuple(names or ()), everything=everything, as_json=json)


@app.command()
def reload(
    names: Names = None,
    *,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would change; change nothing.")] = False,
    fleet: Annotated[str | None, Option("--fleet", metavar="NAME", help="Of several fleets, this one.")] = None,
    json: Json = False,
) -> int:
    """Compile again, restart only what changed (and NAMES).

    \b
    launch reload                              after your config files changed
    launch reload servers.assistant.slots=4    with one more override, kept from now on
    launch reload assistant                    restart it although nothing changed
    """
    from launcher.cli.reload import reload_servers

    return reload_servers(tuple(names or ()), as_json=json, dry_run=dry_run, fleet=fleet)
