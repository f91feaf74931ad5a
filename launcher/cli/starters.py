"""Typer commands for beginners, which write a fleet file. Their work is done in the files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from launcher.cli.app import ConfigDir, FleetFile, Overrides, Verbose, app, path_option, request_of
from launcher.cli.complete import complete_fleet_servers

Target = Annotated[Path | None, path_option("The fleet file; default: ./launch.yaml.", "--file", "-f", metavar="FILE")]
PrintOnly = Annotated[bool, Option("--dry-run", help="Write nothing; print the file.")]


@app.command()
def init(
    folders: Annotated[
        list[Path] | None, Argument(metavar="[DIR]...", help="Folders to look into, as with --models.")
    ] = None,
    *,
    models: Annotated[
        list[Path] | None, Option("--models", metavar="DIR", help="Look for model files here, too; may be repeated.")
    ] = None,
    only: Annotated[bool, Option("--only", help="Look nowhere else: not in the caches of other programs.")] = False,
    dry_run: PrintOnly = False,
    file: Target = None,
    verbose: Verbose = False,
) -> int:
    """Look at this machine and its models, write launch.yaml.

    \b
    launch init                        caches of Hugging Face, llama.cpp, LM Studio, Ollama
    launch init --models ~/models      and a folder of your own
    launch init --dry-run
    """
    from launcher.cli.init import init as write

    named = [*(folders or ()), *(models or ())]
    return write(named, file=file, dry_run=dry_run, usual=not only, verbose=verbose)


@app.command()
def add(
    what: Annotated[list[str], Argument(metavar="FILE...|DIR|hf:ORG/REPO[:QUANT]", help="Models, here or on the hub.")],
    *,
    name: Annotated[str | None, Option("--name", help="The server's name; default: after the file.")] = None,
    role: Annotated[list[str] | None, Option("--role", help="A further name to answer by; may be repeated.")] = None,
    face: Annotated[
        list[str] | None,
        Option(
            "--face", metavar="NAME[,KEY=VALUE...]", help="A further model over it, with request values of its own."
        ),
    ] = None,
    turns_with: Annotated[
        list[str] | None,
        Option(
            "--turns-with",
            metavar="NAME",
            help="Take turns with this server, whatever is written of it; may be repeated.",
            autocompletion=complete_fleet_servers,
        ),
    ] = None,
    dry_run: PrintOnly = False,
    file: Target = None,
) -> int:
    """Add a model and its server to launch.yaml.

    What does not fit beside the others takes turns with them.

    \b
    launch add ~/models/Qwen3-8B-Q4_K_M.gguf
    launch add ~/models                          every model in it that is not there yet
    launch add hf:ggml-org/Qwen3-0.6B-GGUF:Q8_0  download it first
    launch add x.gguf --face cool,temperature=0.2 --face quick,chat_template_kwargs.enable_thinking=false
    """
    from launcher.cli.add import add as add_to

    roles, faces, mates = tuple(role or ()), tuple(face or ()), tuple(turns_with or ())
    return add_to(what, file=file, name=name, roles=roles, faces=faces, mates=mates, dry_run=dry_run)


@app.command()
def pull(
    overrides: Overrides = None,
    *,
    dry_run: Annotated[bool, Option("--dry-run", help="Fetch nothing; print what is missing.")] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
) -> int:
    """Download the config's models that are not here.

    \b
    launch pull                                 files of models whose entry has a repo
    launch pull hardware=epyc profile=hot_only --dry-run
    """
    from launcher.cli.hub import pull_models

    return pull_models(*request_of(overrides, config_dir, file), dry_run=dry_run)


@app.command()
def remove(
    name: Annotated[str, Argument(help="A server of the fleet file.", autocompletion=complete_fleet_servers)],
    *,
    file: Target = None,
) -> int:
    """Take a server out of launch.yaml; its file stays.

    \b
    launch remove qwen3-8b
    """
    from launcher.cli.add import remove as remove_from

    return remove_from(name, file=file)


@app.command("import")
def import_(
    files: Annotated[list[Path], Argument(metavar="FILE...", help="What starts your servers today.")],
    *,
    kind: Annotated[
        str | None, Option("--as", metavar="FORMAT", help="llama-swap, preset, script, unit or compose.")
    ] = None,
    dry_run: PrintOnly = False,
    file: Target = None,
) -> int:
    """Convert llama-swap, presets, scripts, units, compose.

    \b
    launch import config.yaml              llama-swap's
    launch import start.sh llama.service   what starts llama-server today
    launch import compose.yaml --dry-run
    """
    from launcher.cli.importing import import_files

    return import_files(files, file=file, kind=kind, dry_run=dry_run)
