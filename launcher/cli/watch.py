"""One live screen: drawn over itself every second, on the terminal's other page, until Ctrl-C."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from launcher.cli.terminal import Terminal

_EVERY_S = 1.0
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """The other page of an interactive terminal for the length of a `with` block; then the first one is back."""

    def __init__(self, terminal: Terminal) -> None:
        """`terminal` must be interactive."""
        self._terminal = terminal

    def __enter__(self) -> Self:
        """Turn to it, and hide the cursor; a line of wide characters is cut at the edge and takes no second one."""
        self._terminal.write("\x1b[?1049h\x1b[?25l\x1b[?7l")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Turn back."""
        self._terminal.write("\x1b[?7h\x1b[?25h\x1b[?1049l")

    def show(self, draw: Callable[[Terminal], None]) -> None:
        """Replace what is shown by what `draw` writes, cut to the size that the window has now; nothing flickers."""
        size = shutil.get_terminal_size((100, 24))
        page = Terminal(io.StringIO())
        page.interactive, page.colour, page.width = True, self._terminal.colour, size.columns
        draw(page)
        assert isinstance(page.stream, io.StringIO)  # noqa: S101 - made so above
        lines = page.stream.getvalue().splitlines()
        if len(lines) > size.lines - 1:
            lines = [*lines[: size.lines - 2], f"… {len(lines) - size.lines + 2} more lines"]
        cut = [f"{clipped(line, size.columns)}\x1b[K" for line in lines]
        self._terminal.write("\x1b[H" + "\r\n".join(cut) + "\x1b[J")


def watch(terminal: Terminal, draw: Callable[[Terminal], None]) -> None:
    """Draw every second until Ctrl-C; one after the other where the terminal is none."""
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


def clipped(line: str, columns: int) -> str:
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
