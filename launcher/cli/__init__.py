"""The command line: the only place that prints or exits."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.errors import HostError, LaunchError

_PATHS = (
    *("HOME", "LAUNCH_STATE_DIR", "STATE_DIRECTORY", "TMPDIR"),
    *("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"),
)
"""Variables that hold paths."""
_AS_ONE_S = 1.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run `launch` and exit with its code (see docs/checks.md). A traceback here is a bug of ours (exit code 1)."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    with _interrupted_by_signals() as received:
        try:
            code = _run(words)
        except KeyboardInterrupt:  # also while the rest is still being imported
            code = 128 + signal.SIGINT
    ended_by = next((number for number in received if number != signal.SIGINT), None)
    sys.exit(code if ended_by is None else 128 + ended_by)


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[list[int]]:
    """Treat SIGTERM and SIGHUP (unless ignored, as under nohup) like Ctrl-C: what was started is ended first.

    Signals within a second count as one, so that nothing interrupts the ending that the first one began; after the
    command none counts. Yields the signals that came.
    """
    received: list[int] = []
    last = -math.inf

    def interrupt(number: int, _frame: object) -> None:
        nonlocal last
        received.append(number)
        before, last = last, time.monotonic()
        if last - before > _AS_ONE_S:
            raise KeyboardInterrupt

    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    mine = threading.current_thread() is threading.main_thread()
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {n: signal.signal(n, interrupt) for n in ours if mine and signal.getsignal(n) in defaults}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if received else handler)


def _run(words: list[str]) -> int:
    from launcher.cli.terminal import Terminal
    from launcher.errors import ConfigError, LaunchError

    Terminal.no_color = "--no-color" in words
    try:
        _require_text(words)
        from launcher.cli.app import command_names, run_app
        from launcher.cli.arguments import hydra_answer, hydra_words, with_command
        from launcher.cli.onefile import found_fleet_file

        words = hydra_words(words)
        if (answer := hydra_answer(words, command_names())) is not None:
            raise ConfigError.of("config/usage", answer)
        words = with_command(words, command_names(), fleet=found_fleet_file() is not None)
        if not words and "_LAUNCH_COMPLETE" not in os.environ:
            sys.stderr.write("no launch.yaml here or in ~/.config/launch: `launch init` writes one\n\n")
        code = run_app(words)
        sys.stdout.flush()
    except LaunchError as error:
        return _show_error(error, words)
    except OSError as error:
        about_output = error.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF) and error.filename is None
        return _unwritable(error) if about_output else _show_error(_refusal(error), words)
    except RecursionError:
        deep = "something that was read is nested deeper than anything of ours"
        return _show_error(ConfigError.of("config/depth", deep), words)
    return code


def _require_text(words: Sequence[str]) -> None:
    """Raise ConfigError for arguments, and paths in the environment, that are not UTF-8: they cannot be shown."""
    named = [(name, os.environ.get(name, "")) for name in _PATHS]
    for what, value in (*named, *(("an argument", word) for word in words)):
        try:
            value.encode()
        except UnicodeEncodeError:
            from launcher.errors import ConfigError

            raise ConfigError.of("config/not-text", f"{what} is not UTF-8 text: {os.fsencode(value)!r}") from None


def _refusal(error: OSError) -> HostError:
    """The error for an OSError that no command has described in better words."""
    from launcher.errors import HostError

    about = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    notes = ("`ulimit -n` says how many; 256 are enough for any command",) if error.errno == errno.EMFILE else ()
    message = f"the system refused: {about}{error.strerror or error}"
    return HostError.of("host/refused", message, *notes)


def _open_standard_streams() -> None:
    """Open /dev/null for a stream that the caller closed (`launch plan >&-`), so that no file takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _unwritable(error: OSError) -> int:
    # the reader went away (`launch plan | head`) or the disk is full; what is buffered must not be tried again at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:
        return 128 + signal.SIGPIPE
    from launcher.errors import HostError

    sys.stderr.write(f"launch: standard output cannot be written: {error.strerror}\n")
    return HostError.exit_code


def _show_error(error: LaunchError, words: Sequence[str]) -> int:
    """Show findings on stderr, or with `--json` on stdout as `launch.error/v1`. Returns the exit code."""
    from launcher.cli.findings import show_findings
    from launcher.cli.terminal import terminals

    out, err = terminals()
    if "--json" in words:
        from launcher.ir.documents import ErrorDocument

        out.json(ErrorDocument(error=type(error).__name__, findings=tuple(error.findings)))
    else:
        show_findings(err, error.findings)
    return error.exit_code
