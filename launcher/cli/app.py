"""The Typer application: common options, and how a line is run. Commands are in the files named at the end."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup, TyperOption

from launcher import __version__
from launcher.base.names import derived_name
from launcher.cli.arguments import command_here, is_override
from launcher.cli.complete import complete_deployed, complete_overrides, words_before
from launcher.errors import ConfigError

_FIRST = ("init", "add", "remove", "import")


class _Commands(TyperGroup):
    """Completes the first word as `with_command` reads it: an override there means `up`."""

    def __init__(self, **settings: Any) -> None:
        """Gives each command `--no-color`, which the whole of a run heeds."""
        super().__init__(**settings)
        help_text = "No colour, also on a terminal (NO_COLOR works too)."
        for command in self.commands.values():
            option = TyperOption(param_decls=["--no-color"], is_flag=True, expose_value=False, help=help_text)
            command.params.append(option)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands and options, then what `up` takes; after a `=` only the latter."""
        before, typed = words_before(os.environ, incomplete)
        parameters = (p for p in self.commands["up"].params if p.name == "overrides")
        overrides = [item for p in parameters for item in p.shell_complete(ctx, incomplete)]
        if typed == "=" or before[-1:] == ["="]:
            return overrides
        return [*super().shell_complete(ctx, incomplete), *overrides]

    def list_commands(self, ctx: Any) -> list[str]:
        """Commands in the order of the source, but those that beginners need first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: name not in _FIRST)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command; for a verb of another program, an error that names the command here."""
        here = command_here(args[0]) if args and args[0] not in self.commands else None
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
    Argument(
        metavar="[OVERRIDES]...",
        help="Hydra overrides: hardware=epyc servers.coder.slots=4 +server=mine ~servers.worker_vision",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]


def _process_names(names: list[str] | None) -> list[str] | None:
    """Process names, those of model ids (`org/model:q4`) derived; overrides stay as they are."""
    return names and [
        derived_name(name) if set(name) & set("/:.") and not is_override(name) else name for name in names
    ]


Names = Annotated[
    list[str] | None,
    Argument(
        metavar="[NAME]...", help="Servers or services.", autocompletion=complete_deployed, callback=_process_names
    ),
]


def path_option(about: str, *names: str, metavar: str = "PATH", here: str = ".") -> Any:
    """An option that names a path. An empty word (an unset variable in a script) would be the current directory."""

    def named(text: str) -> Path:
        """The path. Raises BadParameter."""
        if not text:
            raise typer.BadParameter(f"the name is empty; the current directory is {here}")
        return Path(text)

    return Option(*names, parser=named, metavar=metavar, help=about)


_OWN_GROUPS = "Your own config groups, searched before the packaged ones; may be repeated."
ConfigDir = Annotated[list[Path] | None, path_option(_OWN_GROUPS, "--config-dir", here="--config-dir .")]
_FLEET_FILE = "A whole fleet in one file; default: ./launch.yaml, ~/.config/launch/."
FleetFile = Annotated[Path | None, path_option(_FLEET_FILE, "--file", "-f", metavar="FILE")]
Json = Annotated[bool, Option("--json", help="Print JSON (schemas: docs/schemas).")]
Prove = Annotated[
    bool, Option("--prove", help="Check the memory with the server's own dry run, which reads no weights.")
]
ProveWith = Annotated[str | None, Option("--prove-with", metavar="BINARY", help="--prove, with this llama-server.")]
Host = Annotated[
    str | None, Option("--host", metavar="NAME", help="Which of several hosts this is; default: this machine's name.")
]
OfFleet = Annotated[str | None, Option("--fleet", metavar="NAME", help="Which running fleet, where there are several.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Say more: command lines, every start.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"launch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
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
    """Run one command line and return its exit code; usage errors are shown as Typer shows them."""
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
    """Overrides and places of config, the fleet file first. Paths are absolute, as `reload` may run elsewhere."""
    from launcher.cli.onefile import fleet_file

    words, dirs = list(overrides or ()), [d.absolute() for d in config_dir or ()]
    found = fleet_file(file, words, dirs)
    return words, [*([found] if found else ()), *dirs]


# files with the commands: they need `app`
for _more in ("fleets", "deployments", "starters", "operating"):
    importlib.import_module(f"launcher.cli.{_more}")
