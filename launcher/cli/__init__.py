"""The command line: the only place that prints or exits."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from launcher.errors import LaunchError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `launch` and exits with CONTRACT's code. A traceback here is a bug of ours (exit code 1)."""
    from launcher.cli.app import command_names, run_app
    from launcher.cli.arguments import with_command

    words = with_command(sys.argv[1:] if argv is None else argv, command_names())
    try:
        code = run_app(words)
    except LaunchError as error:
        _show_error(error, words)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # the reader went away (`launch plan | head`); nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _show_error(error: LaunchError, words: Sequence[str]) -> None:
    """Findings on stderr; with `--json` on stdout as `launch.error/v1`."""
    from launcher.cli.findings import show_findings
    from launcher.cli.terminal import terminals

    out, err = terminals(no_color="--no-color" in words)
    if "--json" in words:
        import msgspec

        body = {"schema": "launch.error/v1", "error": type(error).__name__, "findings": error.findings}
        out.line(msgspec.json.format(msgspec.json.encode(body), indent=2).decode())
    else:
        show_findings(err, error.findings)
