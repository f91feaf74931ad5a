"""The command line: the only place that prints or exits."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from launcher.errors import HostError, LaunchError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `launch` and exits with CONTRACT's code. A traceback here is a bug of ours (exit code 1)."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    try:
        from launcher.cli.app import command_names, run_app
        from launcher.cli.arguments import with_command

        words = with_command(words, command_names())
        code = run_app(words)
        sys.stdout.flush()
    except LaunchError as error:
        code = _show_error(error, words)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except OSError as error:
        code = _unwritable(error)
    sys.exit(code)


def _open_standard_streams() -> None:
    """A stream that the caller closed (`launch plan >&-`) is /dev/null, so that nothing else takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _unwritable(error: OSError) -> int:
    """The exit code when an answer cannot be written. Raises `error` when it is not about standard output."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF) or error.filename is not None:
        raise error
    # the reader went away (`launch plan | head`) or the disk is full; what is buffered must not be tried again at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:
        return 128 + signal.SIGPIPE
    sys.stderr.write(f"launch: standard output cannot be written: {error.strerror}\n")
    return HostError.exit_code


def _show_error(error: LaunchError, words: Sequence[str]) -> int:
    """Findings on stderr, with `--json` on stdout as `launch.error/v1`. Returns the exit code."""
    from launcher.cli.findings import show_findings
    from launcher.cli.terminal import terminals

    out, err = terminals(no_color="--no-color" in words)
    if "--json" in words:
        import msgspec

        from launcher.ir.documents import ErrorDocument

        body = ErrorDocument(error=type(error).__name__, findings=tuple(error.findings))
        out.line(msgspec.json.format(msgspec.json.encode(body), indent=2).decode())
    else:
        show_findings(err, error.findings)
    return error.exit_code
