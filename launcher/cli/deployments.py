"""Typer commands about what a fleet is made of, and what is kept or installed of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from launcher.cli.app import (
    ConfigDir,
    FleetFile,
    Host,
    Json,
    Overrides,
    Prove,
    ProveWith,
    Verbose,
    app,
    path_option,
    request_of,
)
from launcher.cli.complete import complete_checkpoints, complete_codes
from launcher.cli.terminal import Terminal


@app.command()
def config(
    overrides: Overrides = None,
    *,
    schema: Annotated[
        bool, Option("--schema", help="Print the JSON Schema of a fleet file, or of a group's files.")
    ] = False,
    yaml: Annotated[bool, Option("--yaml", help="Print it whole, as a fleet file that composes to the same.")] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> int:
    """Show the config, and where each value was written.

    \b
    launch config hardware=epyc profile=hot_only
    launch config servers.assistant profile=dev     only what lies below a key
    launch config servers.assistant.slots=4 --json
    launch config --schema > fleet.schema.json      for the editor; --schema server: of a group
    launch config --yaml profile=dev > fleet.yaml   to keep: launch up -f fleet.yaml
    """
    if schema:
        from launcher.cli.schema import asked_schema

        Terminal(sys.stdout).json(asked_schema(overrides or ()))
        return 0
    from launcher.cli.build import show_config

    return show_config(*request_of(overrides, config_dir, file), as_json=json, as_yaml=yaml)


@app.command()
def inspect(
    words: Annotated[
        list[str],
        Argument(
            metavar="FILE.gguf|DIR... [FIELD=VALUE]...",
            help="Model files (of a split one, part 1), or folders of them; n_ctx=16384 slots=2 n_ubatch=256 …",
        ),
    ],
    *,
    vram: Annotated[
        list[str] | None,
        Option(
            "--vram",
            metavar="SIZE",
            help="On a machine with a card of so much memory (24GiB), not on this one; may be repeated.",
        ),
    ] = None,
    prove: Prove = False,
    prove_with: ProveWith = None,
    yaml: Annotated[
        bool, Option("--yaml", help="Entries for `models:`, to plan with where the files are not.")
    ] = False,
    json: Json = False,
) -> int:
    """Show what model files contain and need.

    \b
    launch inspect model.gguf n_ctx=16384 slots=2 cache_type_k=q8_0
    launch inspect ~/models --vram 24GiB        does each of them fit a card of 24 GiB?
    launch inspect ~/models --yaml              as the config declares them
    """
    from launcher.cli.inspect import declare_files, inspect_files

    if yaml:
        return declare_files(words)
    prover = (prove_with or "") if prove or prove_with else None
    return inspect_files(words, vram or (), as_json=json, prover=prover)


@app.command()
def checkpoint(
    action: Annotated[str, Argument(help="create, list, diff, restore, delete", autocompletion=complete_checkpoints)],
    names: Annotated[
        list[str] | None,
        Argument(metavar="[NAME]...", help="A checkpoint; two for diff.", autocompletion=complete_checkpoints),
    ] = None,
    *,
    deployment: Annotated[
        str | None, Option("--deployment", metavar="NAME", help="Which fleet, where several are known.")
    ] = None,
    json: Json = False,
) -> int:
    """Save a running fleet; compare; restore it.

    \b
    launch checkpoint create before-update   the compiled fleet, digests of models and binaries, what runs
    launch checkpoint diff before-update     what a restore would change now
    launch checkpoint restore before-update  nothing is compiled; refused when a file is not what it was
    launch checkpoint list
    launch checkpoint delete before-update
    """
    from launcher.cli.checkpoint import run_checkpoint

    return run_checkpoint(action, tuple(names or ()), deployment=deployment, as_json=json)


@app.command()
def memory(
    project: Annotated[str | None, Argument(help="All that is known of it, as JSON lines.")] = None,
    *,
    deployment: Annotated[str | None, Option("--deployment", help="Of this deployment only.")] = None,
    owner: Annotated[str | None, Option("--owner", help="Of the API key of this name only.")] = None,
    forget: Annotated[bool, Option("--forget", help="Drop the project and everything in it.")] = False,
    drafts: Annotated[bool, Option("--drafts", help="What the validator refused, and why.")] = False,
    json: Json = False,
) -> int:
    """List the project memory; export or forget a project.

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
        return show_drafts(project, deployment=deployment, owner=owner, as_json=json)
    return show_memory(project, deployment=deployment, owner=owner, forget=forget, as_json=json)


@app.command()
def explain(
    code: Annotated[
        str | None, Argument(help="A finding's code; none lists all.", autocompletion=complete_codes)
    ] = None,
    *,
    json: Json = False,
) -> int:
    """Explain a finding: meaning, example, remedy.

    \b
    launch explain plan/ram-over-budget
    """
    from launcher.cli.explain import show_explanation

    return show_explanation(code, as_json=json)


@app.command()
def install(
    what: Overrides = None,
    *,
    user: Annotated[bool, Option("--user", help="Units of this user, without root.")] = False,
    root: Annotated[
        Path | None, path_option("Install into this tree (an image); nothing is started.", "--root")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Write nothing; show every line that would change.")] = False,
    force: Annotated[bool, Option("--force", help="Overwrite installed files that were edited by hand.")] = False,
    start: Annotated[bool, Option("--start/--no-start", help="Start and restart what changed.")] = True,
    host: Host = None,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> int:
    """Install a fleet's systemd units and start them.

    \b
    launch install hardware=epyc profile=hot_only --dry-run
    launch install generated/epyc-hot_only
    """
    from launcher.cli.deploy import install_fleet, layout_of

    words, dirs = request_of(what, config_dir, file)
    layout = layout_of(user=user, root=root)
    return install_fleet(words, dirs, layout, dry_run=dry_run, force=force, start=start, host=host, as_json=json)


@app.command()
def uninstall(
    name: Annotated[str, Argument(help="An installed deployment: epyc-hot_only.")],
    *,
    user: Annotated[bool, Option("--user", help="Units of this user.")] = False,
    root: Annotated[Path | None, path_option("Uninstall from this tree (an image).", "--root")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Remove nothing; show what would go.")] = False,
    force: Annotated[bool, Option("--force", help="Remove files that were edited by hand, too.")] = False,
    json: Json = False,
) -> int:
    """Stop an installed fleet; remove what install wrote.

    \b
    launch uninstall epyc-hot_only --dry-run
    launch uninstall epyc-hot_only
    """
    from launcher.cli.deploy import layout_of, uninstall_fleet

    layout = layout_of(user=user, root=root)
    return uninstall_fleet(name, layout, dry_run=dry_run, force=force, as_json=json)


@app.command()
def serve(
    directory: Annotated[Path, Argument(help="A rendered deployment: generated/NAME.")],
    *,
    route_only: Annotated[
        bool, Option("--route-only", help="The front alone: start and stop no server, somebody else does.")
    ] = False,
    units: Annotated[
        str | None, Option("--units", metavar="PREFIX", help="Servers are the systemd units PREFIX-NAME.service.")
    ] = None,
    user: Annotated[bool, Option("--user", help="With --units: of this user's manager.")] = False,
    api_key_file: Annotated[
        Path | None, path_option("The front's keys are read here instead.", "--api-key-file")
    ] = None,
    verbose: Verbose = False,
) -> int:
    """Run a rendered deployment, without the compiler.

    \b
    launch serve generated/epyc-hot_only
    launch serve generated/epyc-hot_only --route-only
    """
    from launcher.cli.progress import ProgressView
    from launcher.runtime import UnitsOptions, run

    progress = ProgressView(Terminal(sys.stderr), verbose=verbose)
    owned = UnitsOptions(prefix=units, user=user) if units else None
    return run(directory, on_event=progress, route_only=route_only, units=owned, api_key_file=api_key_file)
