"""Write to a terminal: colour, bars and live screens if a person reads, plain text everywhere else."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType
from typing import ClassVar, Self, TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Terminal:
    """One output stream. `colour` is decided once: a terminal, no NO_COLOR, no `--no-color`."""

    no_color: ClassVar[bool] = False
    """Whether the command line says `--no-color`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.interactive = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.interactive and not self.no_color and not os.environ.get("NO_COLOR")
        self.width = shutil.get_terminal_size((100, 24)).columns if self.interactive else 100

    def style(self, text: str, *names: str) -> str:
        """`text` in the named styles, or as it is without colour."""
        if not self.colour or not names:
            return text
        return f"\x1b[{';'.join(_CODES[n] for n in names)}m{text}\x1b[0m"

    def line(self, text: str = "") -> None:
        """Write one line."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Write `text` at once; characters that the stream's encoding lacks are replaced."""
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()

    def json(self, document: object, *, indent: int = 2) -> None:
        """Write any msgspec-encodable value as JSON, keys in their own order; on one line if `indent` is 0."""
        import msgspec

        data = msgspec.json.encode(document)
        text = (msgspec.json.format(data, indent=indent) if indent else data).decode()
        try:
            text.encode(self.stream.encoding or "utf-8")
        except UnicodeEncodeError:  # escaped, nothing of it is lost
            import json

            text = json.dumps(json.loads(data), indent=indent or None)
        self.line(text)

    def diff(self, lines: Iterable[str]) -> None:
        """Write the lines of a unified diff."""
        for line in lines:
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            self.line(self.style(line, colour) if colour else line)

    def bar(self, share: float, width: int = 30) -> str:
        """A bar that is `share` full (clamped to 0..1), in eighths if the stream can show them."""
        eighths = round(max(0.0, min(1.0, share)) * width * 8)
        encoding = (self.stream.encoding or "").lower().replace("-", "")
        if not encoding.startswith("utf"):
            return ("#" * (eighths // 8)).ljust(width, ".")
        full, rest = divmod(eighths, 8)
        return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width, "·")

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Collection[int] = (),
        optional: Collection[int] = (),
    ) -> None:
        """Write rows under a header, in columns as wide as their widest cell.

        `right` columns align right, `optional` ones are left out if every row has an empty cell there.
        """
        widths = {
            i: max(len(row[i]) for row in (header, *rows))
            for i in range(len(header))
            if i not in optional or any(row[i] for row in rows)
        }

        def laid(row: Sequence[str]) -> str:
            cells = (row[i].rjust(w) if i in right else row[i].ljust(w) for i, w in widths.items())
            return "  ".join(cells).rstrip()

        self.line(self.style(laid(header), "dim"))
        for row in rows:
            self.line(laid(row))


def terminals() -> tuple[Terminal, Terminal]:
    """Terminals for stdout and stderr."""
    return Terminal(sys.stdout), Terminal(sys.stderr)


def local_time(at: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """Unix time as clocks here show it; `?` for one that none can."""
    try:
        return time.strftime(form, time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "?"


_EVERY_S = 1.0
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """The alternate screen of an interactive terminal, within a `with` block."""

    def __init__(self, terminal: Terminal) -> None:
        """`terminal` must be interactive."""
        self._terminal = terminal

    def __enter__(self) -> Self:
        """Switch to it, hide the cursor, and turn wrapping off: a line of wide characters is cut at the edge."""
        self._terminal.write("\x1b[?1049h\x1b[?25l\x1b[?7l")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Switch back to the main screen, with cursor and wrapping."""
        self._terminal.write("\x1b[?7h\x1b[?25h\x1b[?1049l")

    def show(self, draw: Callable[[Terminal], None]) -> None:
        """Replace the screen by what `draw` writes, cut to the present size of the window, without flicker."""
        size = shutil.get_terminal_size((100, 24))
        page = Terminal(io.StringIO())
        page.interactive, page.colour, page.width = True, self._terminal.colour, size.columns
        draw(page)
        assert isinstance(page.stream, io.StringIO)  # noqa: S101 - made so above
        lines = page.stream.getvalue().splitlines()
        if len(lines) > size.lines - 1:
            lines = [*lines[: size.lines - 2], f"… {len(lines) - size.lines + 2} more lines"]
        cut = [f"{clip(line, size.columns)}\x1b[K" for line in lines]
        self._terminal.write("\x1b[H" + "\r\n".join(cut) + "\x1b[J")


def watch(terminal: Terminal, draw: Callable[[Terminal], None]) -> None:
    """Draw every second until Ctrl-C; without a terminal, one output after the other."""
    try:
        if not terminal.interactive:
            while True:
                draw(terminal)
                time.sleep(_EVERY_S)
        with Screen(terminal) as screen:
            while True:
                screen.show(draw)
                time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        return


def clip(line: str, columns: int) -> str:
    """`line` cut to `columns` characters, its styles kept and ended; `…` says that something is missing."""
    whole = len(_STYLE.sub("", line)) <= columns
    parts, left = [], columns if whole else columns - 1
    at = 0
    for style in _STYLE.finditer(line):
        text = line[at : style.start()]
        parts += [text[: max(0, left)], style[0]]
        left -= len(text)
        at = style.end()
    parts.append(line[at:][: max(0, left)])
    if not whole and columns > 0:
        parts.append("…")
    return "".join(parts)
