"""Commands for people who watch a fleet: `events`, `ui`, `top`."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from launcher.cli.app import Json, NoColor, OfFleet, app
from launcher.cli.complete import complete_deployed


@app.command()
def events(
    *,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on with what comes; Ctrl-C ends it.")] = False,
    since: Annotated[
        str | None, Option("--since", metavar="T", help="Not before: 30m, 2h, 1d ago, or 2026-05-01T13:00.")
    ] = None,
    lines: Annotated[int, Option("--lines", "-n", min=1, help="The last so many, without --since.")] = 50,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Show what happened and why: starts, swaps, evictions, preloads, crashes, reloads.

    \b
    launch events --since 2h
    launch events -f
    """
    from launcher.cli.events import show_events

    return show_events(follow=follow, since=since, lines=lines, as_json=json, no_color=no_color)


@app.command()
def ui(
    name: Annotated[str | None, Argument(metavar="[FLEET]", help="Of several fleets, this one.")] = None,
    *,
    print_only: Annotated[bool, Option("--print", help="Print the link, open no browser.")] = False,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Open the fleet's page in a browser, by a link that is good once, for five minutes.

    \b
    launch ui
    launch ui --print
    """
    from launcher.cli.asking import show_page

    return show_page(name, print_only=print_only, as_json=json, no_color=no_color)


@app.command()
def top(*, no_color: NoColor = False) -> int:
    """Watch fleets, devices and requests on one screen: keys to sort, to see a log, to stop.

    \b
    launch top
    """
    from launcher.cli.top import show_top

    return show_top(no_color=no_color)


Model = Annotated[
    str, Argument(metavar="MODEL", help="A worker, its role or its model.", autocompletion=complete_deployed)
]


def _pool_command(verb: str, meaning: str) -> None:
    """A command that does `verb` to a model's files."""

    def command(model: Model, *, fleet: OfFleet = None, json: Json = False, no_color: NoColor = False) -> int:
        from launcher.cli.asking import act_on_pool

        return act_on_pool(verb, model, fleet, as_json=json, no_color=no_color)

    app.command(verb, help=f"{meaning}\n\n\b\nlaunch {verb} coder")(command)


_pool_command("preload", "Fetch a model's files into RAM now, so that its next start reads no disk.")
_pool_command("pin", "Keep a model's files in RAM, until they are unpinned, over restarts of the fleet.")
_pool_command("unpin", "Let a model's files leave RAM again when others are likelier.")
_pool_command("evict", "Let go of a model's files in RAM; no forecast brings them back before they are used.")
