"""How a terminal is written to: colour and bars where a person reads, plain text everywhere else."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Terminal:
    """One output stream. `colour` is decided once: a terminal, no NO_COLOR, no `--no-color`."""

    def __init__(self, stream: TextIO, *, no_color: bool = False) -> None:
        """Looks at `stream` and the environment."""
        self.stream = stream
        self.interactive = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.interactive and not no_color and not os.environ.get("NO_COLOR")
        self.width = shutil.get_terminal_size((100, 24)).columns if self.interactive else 100

    def style(self, text: str, *names: str) -> str:
        """`text` in the named styles, or as it is where there is no colour."""
        if not self.colour or not names:
            return text
        return f"\x1b[{';'.join(_CODES[n] for n in names)}m{text}\x1b[0m"

    def line(self, text: str = "") -> None:
        """Writes one line."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Writes `text` at once; characters that the stream's encoding lacks are replaced."""
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()

    def json(self, document: object, *, indent: int = 2) -> None:
        """Writes any msgspec-encodable value as JSON, keys in their own order; on one line without `indent`."""
        import msgspec

        text = msgspec.json.encode(document)
        self.line((msgspec.json.format(text, indent=indent) if indent else text).decode())

    def diff(self, lines: Iterable[str]) -> None:
        """Writes the lines of a unified diff."""
        for line in lines:
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            self.line(self.style(line, colour) if colour else line)

    def bar(self, share: float, width: int = 30) -> str:
        """A bar that is `share` full (clamped to 0..1), in eighths where the stream can show them."""
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
        """Rows under a header, in columns as wide as their widest cell.

        `right` columns align right, `optional` ones are left out where every row has an empty cell.
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


def terminals(*, no_color: bool = False) -> tuple[Terminal, Terminal]:
    """(stdout, stderr)."""
    return Terminal(sys.stdout, no_color=no_color), Terminal(sys.stderr, no_color=no_color)
