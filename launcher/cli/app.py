"""Every command with its options and help; what they do is in the files beside this one."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launcher import __version__
from launcher.base.names import derived_name
from launcher.cli.complete import (
    complete_checkpoints,
    complete_codes,
    complete_deployed,
    complete_overrides,
    words_before,
)
from launcher.cli.said import said_elsewhere
from launcher.cli.terminal import Terminal
from launcher.errors import ConfigError

_FIRST = ("init", "add", "remove", "import")


class _Commands(TyperGroup):
    """Completes the first word as `with_command` reads it: an override there means `up`."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands and options, then what `up` takes; behind a `=` that alone."""
        before, typed = words_before(os.environ, incomplete)
        parameters = (p for p in self.commands["up"].params if p.name == "overrides")
        overrides = [item for p in parameters for item in p.shell_complete(ctx, incomplete)]
        if typed == "=" or before[-1:] == ["="]:
            return overrides
        return [*super().shell_complete(ctx, incomplete), *overrides]

    def list_commands(self, ctx: Any) -> list[str]:
        """As they are written, but what comes first for who begins is first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: name not in _FIRST)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command; one that another program has is named as it is here."""
        here = said_elsewhere(args[0]) if args and args[0] not in self.commands else None
        if here is not None:
            ctx.fail(f"No such command {args[0]!r}. Here it is: {here}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="launch",
    cls=_Commands,
    help=(
        "Compile and run a fleet of llama.cpp servers.\n\n"
        "\b\n"
        "launch init                                 find your models, write launch.yaml\n"
        "launch                                      start what launch.yaml says\n"
        "launch plan hardware=epyc profile=hot_only  what would run, and what it takes\n"
        "launch servers.assistant.slots=4            any value can be overridden (Hydra's grammar)\n"
    ),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]...",
        help="Hydra overrides: hardware=epyc servers.coder.slots=4 +server=mine ~servers.worker_vision",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]


def _process_names(names: list[str] | None) -> list[str] | None:
    """Processes by their names, also where they are called by a model id (`org/model:q4`)."""
    return names and [derived_name(name) if set(name) & set("/:.") else name for name in names]


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...", help="Servers or services.", autocompletion=complete_deployed, callback=_process_names
    ),
]


def _config_dir(text: str) -> Path:
    """A directory that was named: an empty word (an unset variable in a script) would be the current one."""
    if not text:
        raise typer.BadParameter("the name is empty; the current directory is --config-dir .")
    return Path(text)


ConfigDir = Annotated[
    list[Path] | None,
    typer.Option(
        "--config-dir",
        parser=_config_dir,
        metavar="PATH",
        help="Your own config groups, searched before the packaged ones; may be repeated.",
    ),
]
FleetFile = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", metavar="FILE", help="A whole fleet in one file; default: ./launch.yaml, ~/.config/launch/."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON (schemas: docs/schemas).")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colour, also on a terminal (NO_COLOR works too).")]
Prove = Annotated[
    bool, typer.Option("--prove", help="Check the memory with the server's own dry run, which reads no weights.")
]
ProveWith = Annotated[
    str | None, typer.Option("--prove-with", metavar="BINARY", help="--prove, with this llama-server.")
]
Host = Annotated[
    str | None,
    typer.Option("--host", metavar="NAME", help="Which of several hosts this is; default: this machine's name."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more: command lines, every start.")]


def _version(asked: bool) -> None:
    """Print what is installed, and end."""
    if asked:
        typer.echo(f"launch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Compile and run a fleet of llama.cpp servers."""
    del version  # the callback has answered


def command_names() -> frozenset[str]:
    """Names of all commands."""
    return frozenset(c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None)


# Typer brings its own copy of Click and does not export this class
_USAGE_ERROR: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run_app(words: list[str]) -> int:
    """Runs one command line and returns its exit code; usage errors are shown as Typer shows them."""
    try:
        result = app(words or ["--help"], standalone_mode=False)
    except typer.Abort:
        return 128 + signal.SIGINT
    except SystemExit as ended:
        # Click ends on its own when a reader goes away, with the exit code of a bug
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    except _USAGE_ERROR as error:
        error.show()
        return ConfigError.exit_code
    return result if isinstance(result, int) else 0


def request_of(
    overrides: list[str] | None, config_dir: list[Path] | None, file: Path | None = None
) -> tuple[list[str], list[Path]]:
    """Overrides and where to look for config, the fleet file first; all absolute: `reload` may run elsewhere."""
    from launcher.cli.onefile import fleet_file

    words, dirs = list(overrides or ()), [d.absolute() for d in config_dir or ()]
    found = fleet_file(file, words, dirs)
    return words, [*([found] if found else ()), *dirs]


@app.command()
def up(
    overrides: Overrides = None,
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", "--wait", help="Return once the fleet is ready; it runs on.")
    ] = False,
    ask: Annotated[
        str | None, typer.Option("--ask", help="When ready, ask the fleet this and print the answer.")
    ] = None,
    host: Host = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> int:
    """Start a fleet and serve it; Ctrl-C drains and stops.

    \b
    launch up profile=dev
    launch hardware=epyc profile=hot_only --detach
    """
    from launcher.cli.fleet import bring_up

    return bring_up(
        *request_of(overrides, config_dir, file),
        detach=detach,
        ask=ask,
        host=host,
        as_json=json,
        no_color=no_color,
        verbose=verbose,
    )


@app.command()
def plan(
    overrides: Overrides = None,
    *,
    prove: Prove = False,
    prove_with: ProveWith = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Several values (a=1,2): a row for the plan of each.")
    ] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> int:
    """Show what would run, what it takes, what is wrong.

    \b
    launch plan hardware=epyc profile=hot_only
    launch plan hardware=sovereign profile=three_tier --json
    launch plan hardware=epyc profile=hot_only --prove
    launch -m servers.assistant.slots=1,2,4     a row for each value
    """
    from launcher.cli.build import show

    if multirun:
        from launcher.cli.multirun import plan_each

        return plan_each(*request_of(overrides, config_dir, file), as_json=json, no_color=no_color)
    prover = (prove_with or "") if prove or prove_with else None
    return show(
        *request_of(overrides, config_dir, file), as_json=json, no_color=no_color, verbose=verbose, prover=prover
    )


@app.command()
def render(
    overrides: Overrides = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 8 when files on disk differ.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; show how files on disk differ.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Parent folder; default: deploy.output_dir.")
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Limits by the dry runs of this host's binaries, where they say more.")
    ] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Write units, commands, manifest, routes to generated/.

    \b
    launch render hardware=epyc profile=hot_only
    launch render hardware=epyc profile=hot_only --check
    """
    from launcher.cli.build import write

    return write(
        *request_of(overrides, config_dir, file),
        check=check,
        diff=diff,
        output=output,
        prove=prove,
        as_json=json,
        no_color=no_color,
    )


@app.command()
def check(
    overrides: Overrides = None,
    *,
    host: Host = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Hold the plan against this host, now.

    \b
    launch check hardware=epyc profile=hot_only
    """
    from launcher.cli.build import examine

    return examine(*request_of(overrides, config_dir, file), host=host, as_json=json, no_color=no_color)


@app.command()
def status(
    names: Names = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="One live screen; Ctrl-C ends it.")] = False,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Show what runs: state, pid, model, memory.

    \b
    launch status
    launch status assistant --json
    launch status --watch
    """
    from launcher.cli.running import show_status

    return show_status(tuple(names or ()), watch=watch, as_json=json, no_color=no_color)


@app.command()
def stop(
    names: Names = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Stop every fleet and its runtime.")] = False,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Drain and stop servers, or all of them.

    \b
    launch stop coder
    launch stop --all
    """
    from launcher.cli.running import stop_servers

    return stop_servers(tuple(names or ()), everything=everything, as_json=json, no_color=no_color)


@app.command()
def reload(
    names: Names = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")] = False,
    fleet: Annotated[str | None, typer.Option("--fleet", metavar="NAME", help="Of several fleets, this one.")] = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Compile again, restart only what changed (and NAMES).

    \b
    launch reload                              after your config files changed
    launch reload servers.assistant.slots=4    with one more override, kept from now on
    launch reload assistant                    restart it although nothing changed
    """
    from launcher.cli.running import reload_servers

    return reload_servers(tuple(names or ()), as_json=json, no_color=no_color, dry_run=dry_run, fleet=fleet)


@app.command()
def config(
    overrides: Overrides = None,
    *,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a fleet file, or of a group's files.")
    ] = False,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Print it whole, as a fleet file that composes to the same.")
    ] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Show the config, each value with where it was written.

    \b
    launch config hardware=epyc profile=hot_only
    launch config servers.assistant profile=dev     only what lies below a key
    launch config servers.assistant.slots=4 --json
    launch config --schema > fleet.schema.json      for the editor; --schema server: of a group
    launch config --yaml profile=dev > fleet.yaml   to keep: launch up -f fleet.yaml
    """
    from launcher.cli.build import print_json, show_config

    if schema:
        from launcher.cli.schema import asked_schema

        print_json(Terminal(sys.stdout), asked_schema(overrides or ()))
        return 0

    return show_config(*request_of(overrides, config_dir, file), as_json=json, as_yaml=yaml, no_color=no_color)


@app.command()
def inspect(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE.gguf|DIR... [FIELD=VALUE]...",
            help="Model files (of a split one, part 1), or folders of them; n_ctx=16384 slots=2 n_ubatch=256 …",
        ),
    ],
    *,
    vram: Annotated[
        list[str] | None,
        typer.Option(
            "--vram",
            metavar="SIZE",
            help="On a machine with a card of so much memory (24GiB), not on this one; may be repeated.",
        ),
    ] = None,
    prove: Prove = False,
    prove_with: ProveWith = None,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Entries for `models:`, to plan with where the files are not.")
    ] = False,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Show what model files are, and what they need.

    \b
    launch inspect model.gguf n_ctx=16384 slots=2 cache_type_k=q8_0
    launch inspect ~/models --vram 24GiB        does each of them fit a card of 24 GiB?
    launch inspect ~/models --yaml              as the config declares them
    """
    from launcher.cli.inspect import declare_files, inspect_files

    if yaml:
        return declare_files(words, no_color=no_color)
    prover = (prove_with or "") if prove or prove_with else None
    return inspect_files(words, vram or (), as_json=json, no_color=no_color, prover=prover)


@app.command()
def checkpoint(
    action: Annotated[
        str,
        typer.Argument(help="create, list, diff, restore, delete", autocompletion=complete_checkpoints),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="A checkpoint; two for diff.", autocompletion=complete_checkpoints),
    ] = None,
    *,
    deployment: Annotated[
        str | None, typer.Option("--deployment", metavar="NAME", help="Which fleet, where several are known.")
    ] = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Keep a fleet as it runs; compare; run it again.

    \b
    launch checkpoint create before-update   the compiled fleet, digests of models and binaries, what runs
    launch checkpoint diff before-update     what a restore would change now
    launch checkpoint restore before-update  nothing is compiled; refused when a file is not what it was
    launch checkpoint list
    launch checkpoint delete before-update
    """
    from launcher.cli.checkpoint import run_checkpoint

    return run_checkpoint(action, tuple(names or ()), deployment=deployment, as_json=json, no_color=no_color)


@app.command()
def memory(
    project: Annotated[str | None, typer.Argument(help="All that is known of it, as JSON lines.")] = None,
    *,
    deployment: Annotated[str | None, typer.Option("--deployment", help="Of this deployment only.")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Of the API key of this name only.")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Drop the project and everything in it.")] = False,
    drafts: Annotated[bool, typer.Option("--drafts", help="What the validator refused, and why.")] = False,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """List what is remembered of projects; export or forget one.

    \b
    launch memory
    launch memory website > website.jsonl
    launch memory website --drafts
    launch memory website --forget
    """
    from launcher.cli.memory import show_drafts, show_memory

    if forget and project is None:
        raise typer.BadParameter("--forget needs the name of a project; `launch memory` lists them")
    if drafts:
        if forget:
            raise typer.BadParameter("either --drafts or --forget")
        return show_drafts(project, deployment=deployment, owner=owner, as_json=json, no_color=no_color)
    return show_memory(project, deployment=deployment, owner=owner, forget=forget, as_json=json, no_color=no_color)


@app.command()
def explain(
    code: Annotated[
        str | None, typer.Argument(help="A finding's code; none lists all.", autocompletion=complete_codes)
    ] = None,
    *,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Explain a finding: meaning, example, remedy.

    \b
    launch explain plan/ram-over-budget
    """
    from launcher.cli.explain import show_explanation

    return show_explanation(code, as_json=json, no_color=no_color)


@app.command()
def install(
    what: Overrides = None,
    *,
    user: Annotated[bool, typer.Option("--user", help="Units of this user, without root.")] = False,
    root: Annotated[
        Path | None, typer.Option("--root", help="Install into this tree (an image); nothing is started.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; show every line that would change.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite installed files that were edited by hand.")] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start and restart what changed.")] = True,
    host: Host = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Put a fleet's units in place and start them: overrides, or a rendered folder.

    \b
    launch install hardware=epyc profile=hot_only --dry-run
    launch install generated/epyc-hot_only
    """
    from launcher.cli.deploy import InstallOptions, install_fleet

    options = InstallOptions(user=user, root=root, dry_run=dry_run, force=force, start=start, host=host)
    return install_fleet(*request_of(what, config_dir, file), options=options, as_json=json, no_color=no_color)


@app.command()
def uninstall(
    name: Annotated[str, typer.Argument(help="An installed deployment: epyc-hot_only.")],
    *,
    user: Annotated[bool, typer.Option("--user", help="Units of this user.")] = False,
    root: Annotated[Path | None, typer.Option("--root", help="Uninstall from this tree (an image).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; show what would go.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove files that were edited by hand, too.")] = False,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Stop an installed fleet, remove what install wrote.

    \b
    launch uninstall epyc-hot_only --dry-run
    launch uninstall epyc-hot_only
    """
    from launcher.cli.deploy import InstallOptions, uninstall_fleet

    options = InstallOptions(user=user, root=root, dry_run=dry_run, force=force, start=True)
    return uninstall_fleet(name, options=options, as_json=json, no_color=no_color)


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(help="A rendered deployment: generated/NAME.")],
    *,
    route_only: Annotated[
        bool, typer.Option("--route-only", help="The front alone: start and stop no server, somebody else does.")
    ] = False,
    units: Annotated[
        str | None,
        typer.Option("--units", metavar="PREFIX", help="Servers are the systemd units PREFIX-NAME.service."),
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="With --units: of this user's manager.")] = False,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="The front's keys are read here instead.")
    ] = None,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> int:
    """Run a rendered deployment, without the compiler.

    \b
    launch serve generated/epyc-hot_only
    launch serve generated/epyc-hot_only --route-only
    """
    from launcher.cli.progress import Progress
    from launcher.runtime import UnitsOptions, run

    progress = Progress(Terminal(sys.stderr, no_color=no_color), verbose=verbose)
    owned = UnitsOptions(prefix=units, user=user) if units else None
    return run(directory, on_event=progress, route_only=route_only, units=owned, api_key_file=api_key_file)


for _more in ("starters", "verbs", "measuring", "watching"):  # files with further commands: they need `app`
    importlib.import_module(f"launcher.cli.{_more}")
