"""Typer commands about what runs here: restart, switch, logs, measure, watch, and the warm pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from launcher.cli.app import ConfigDir, FleetFile, Json, Names, OfFleet, Overrides, app, path_option, request_of
from launcher.cli.arguments import is_override
from launcher.cli.complete import complete_deployed
from launcher.cli.fleets import status

app.command("ps", help="The same as status.\n\n\b\nlaunch ps")(status)


@app.command()
def restart(names: Names = None, *, json: Json = False) -> int:
    """Restart servers, or all, with what the files say now.

    \b
    launch restart chat
    launch restart
    """
    from launcher.cli.reload import reload_servers
    from launcher.cli.running import names_up

    return reload_servers(tuple(names or dict.fromkeys(names_up())), as_json=json)


@app.command()
def switch(
    overrides: Overrides = None,
    *,
    dry_run: Annotated[bool, Option("--dry-run", help="Only show what would change.")] = False,
    fleet: OfFleet = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> int:
    """Replace the running fleet; servers that both have stay up.

    \b
    launch switch hardware=epyc profile=full   shows the difference, then does the least
    launch switch -f evening.yaml --dry-run
    """
    from launcher.cli.reload import switch_fleet

    words, dirs = request_of(overrides, config_dir, file)
    return switch_fleet(words, dirs, fleet=fleet, dry_run=dry_run, as_json=json)


@app.command()
def down(*, json: Json = False) -> int:
    """Drain and stop everything: stop --all.

    \b
    launch down
    """
    from launcher.cli.running import stop_servers

    return stop_servers((), everything=True, as_json=json)


@app.command()
def logs(
    names: Names = None,
    *,
    follow: Annotated[bool, Option("--follow", "-f", help="Keep printing what comes.")] = False,
    lines: Annotated[int, Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
    json: Json = False,
) -> int:
    """Print logs: of one server, of several, or of all.

    \b
    launch logs assistant -n 20
    launch logs -f               all that runs, each line with its server
    """
    from launcher.cli.logs import show_logs

    return show_logs(tuple(names or ()), follow=follow, lines=lines, as_json=json)


BATCHES_MAX = 100_000
NPredict = Annotated[int, Option("--n-predict", min=2, help="Tokens of each answer.")]


@app.command()
def sweep(
    words: Annotated[
        list[str] | None,
        Argument(metavar="SERVER... [FIELD=A,B]... [OVERRIDES]...", help="What is measured, with which values."),
    ] = None,
    *,
    in_flight: Annotated[
        str, Option("--in-flight", help="Requests at once: 1,2,4. Default: one, and one a slot.")
    ] = "",
    prompt_tokens: Annotated[str, Option("--prompt-tokens", help="Length of the prompts: 256 or 64,512.")] = "256",
    n_predict: NPredict = 64,
    prompts: Annotated[
        Path | None, path_option("A prompt a line; of a journal (.jsonl) the lengths of its requests.", "--prompts")
    ] = None,
    warmup: Annotated[int, Option("--warmup", min=0, help="Batches before those that count.")] = 2,
    batches: Annotated[int, Option("--batches", min=2, max=BATCHES_MAX, help="Batches that count, a point.")] = 5,
    cache: Annotated[bool, Option("--cache", help="Let the server keep prompts that it has seen.")] = False,
    seed: Annotated[int, Option("--seed", help="For the server's sampling.")] = 1,
    p95_limit: Annotated[
        float, Option("--p95-limit", min=1.0, help="The most that p95 may be of one request's at a time.")
    ] = 1.5,
    csv: Annotated[Path | None, path_option("Where samples are kept, and found again.", "--csv")] = None,
    svg: Annotated[Path | None, path_option("Where the plot is written.", "--svg")] = None,
    png: Annotated[Path | None, path_option("Where it is written as PNG, too (resvg_py).", "--png")] = None,
    fresh: Annotated[bool, Option("--fresh", help="Forget what an earlier run measured.")] = False,
    apply: Annotated[bool, Option("--apply", help="Write what is better into your config.")] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> int:
    """Measure settings of servers; recommend the best.

    \b
    launch sweep assistant slots=1,2,4 n_ubatch=256,512
    launch sweep frontdoor coder worker slots=1,2 hardware=epyc profile=hot_only
    launch sweep assistant slots=2,4 --apply
    """
    from launcher.cli.sweep import SweepOptions, run_sweep
    from launcher.ir.sweep import Workload
    from launcher.sweep import is_swept

    lengths, at_once = _counts(prompt_tokens, "--prompt-tokens"), _counts(in_flight, "--in-flight")
    work = Workload(prompt_tokens=lengths, n_predict=n_predict, warmup=warmup, batches=batches, cache=cache, seed=seed)
    options = SweepOptions(
        workload=work,
        in_flight=at_once,
        prompts=prompts,
        p95_limit=p95_limit,
        csv=csv,
        svg=svg,
        png=png,
        fresh=fresh,
        apply=apply,
    )
    overrides = [w for w in words or () if is_override(w) and not is_swept(w)]
    _, dirs = request_of(overrides, config_dir, file)
    return run_sweep(list(words or ()), dirs, options, as_json=json)


@app.command()
def calibrate(
    words: Annotated[
        list[str] | None,
        Argument(metavar="[SERVER]... [OVERRIDES]...", help="What is measured; all that generate text."),
    ] = None,
    *,
    prompt_tokens: Annotated[int, Option("--prompt-tokens", min=1, help="Length of the prompts.")] = 256,
    n_predict: NPredict = 64,
    warmup: Annotated[int, Option("--warmup", min=0, help="Requests before those that count.")] = 2,
    batches: Annotated[int, Option("--batches", min=2, max=BATCHES_MAX, help="Requests that count.")] = 5,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> int:
    """Measure each server's speed alone, for plans on this host.

    \b
    launch calibrate
    launch calibrate assistant profile=dev
    """
    from launcher.cli.calibrate import run_calibration
    from launcher.ir.sweep import Workload

    work = Workload(prompt_tokens=(prompt_tokens,), n_predict=n_predict, warmup=warmup, batches=batches)
    _, dirs = request_of([w for w in words or () if is_override(w)], config_dir, file)
    return run_calibration(list(words or ()), dirs, work, as_json=json)


def _counts(text: str, option: str) -> tuple[int, ...]:
    """The numbers in `1,2,4`. Raises typer.BadParameter."""
    try:
        found = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (0,)
    if any(count < 1 for count in found):
        raise typer.BadParameter(f"{option} takes whole numbers above 0 with commas between them, not {text!r}")
    return found


@app.command()
def events(
    *,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on with what comes; Ctrl-C ends it.")] = False,
    since: Annotated[
        str | None, Option("--since", metavar="T", help="Not before: 30m, 2h, 1d ago, or 2026-05-01T13:00.")
    ] = None,
    lines: Annotated[int, Option("--lines", "-n", min=1, help="The last so many, without --since.")] = 50,
    json: Json = False,
) -> int:
    """Show what happened and why: starts, swaps, crashes.

    \b
    launch events --since 2h
    launch events -f
    """
    from launcher.cli.events import show_events

    return show_events(follow=follow, since=since, lines=lines, as_json=json)


@app.command()
def ui(
    name: Annotated[str | None, Argument(metavar="[FLEET]", help="Of several fleets, this one.")] = None,
    *,
    print_only: Annotated[bool, Option("--print", help="Print the link, open no browser.")] = False,
    json: Json = False,
) -> int:
    """Open the fleet's page in a browser, with a one-time link.

    \b
    launch ui
    launch ui --print
    """
    from launcher.cli.ui_and_pool import show_page

    return show_page(name, print_only=print_only, as_json=json)


@app.command()
def top() -> int:
    """Watch fleets, devices and requests on one screen.

    \b
    launch top
    """
    from launcher.cli.top import show_top

    return show_top()


Model = Annotated[
    str, Argument(metavar="MODEL", help="A worker, its role or its model.", autocompletion=complete_deployed)
]


def _pool_command(verb: str, meaning: str) -> None:

    def command(model: Model, *, fleet: OfFleet = None, json: Json = False) -> int:
        from launcher.cli.ui_and_pool import act_on_pool

        return act_on_pool(verb, model, fleet, as_json=json)

    app.command(verb, help=f"{meaning}\n\n\b\nlaunch {verb} coder")(command)


_pool_command("preload", "Fetch a model's files into RAM now, so that its next start reads no disk.")
_pool_command("pin", "Keep a model's files in RAM, until they are unpinned, over restarts of the fleet.")
_pool_command("unpin", "Let a model's files leave RAM again when others are likelier.")
_pool_command("evict", "Let go of a model's files in RAM; no forecast brings them back before they are used.")
