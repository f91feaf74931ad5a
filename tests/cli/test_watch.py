"""`status --watch`: one live screen on a real terminal, which is as it was afterwards."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli.terminal import clip
from tests.children import killed_on_failure
from tests.cli.conftest import LAUNCH, Cli

pytestmark = pytest.mark.xdist_group("fleet")
ROWS, COLUMNS = 12, 90


def screen_of(raw: bytes) -> list[str]:
    """What the other page shows after `raw`: the sequences that we write, interpreted."""
    text = raw.decode()
    page = [""] * ROWS
    row, column = 0, 0
    position = text.index("\x1b[?1049h")
    while position < len(text):
        rest = text[position:]
        if rest.startswith("\x1b[H"):
            row, column, position = 0, 0, position + 3
        elif rest.startswith("\x1b[K"):
            page[row], position = page[row][:column], position + 3
        elif rest.startswith("\x1b[J"):
            page[row + 1 :] = [""] * (ROWS - row - 1)
            position += 3
        elif rest.startswith("\x1b"):
            position += rest.index(next(c for c in rest[2:] if c.isalpha())) + 1
        elif rest[0] == "\r":
            column, position = 0, position + 1
        elif rest[0] == "\n":
            row, position = row + 1, position + 1
            assert row < ROWS, "the screen would scroll"
        else:
            page[row] = page[row][:column].ljust(column) + rest[0] + page[row][column + 1 :]
            column, position = column + 1, position + 1
            assert column <= COLUMNS, "the line would wrap"
    return page


def test_the_screen_lives_and_the_terminal_is_as_it_was(cli: Cli) -> None:
    """State, slots and speed change in place while requests run; nothing scrolls or wraps; Ctrl-C turns back."""
    cli.run("up", *cli.dev, "--detach")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    env = {k: v for k, v in cli.env.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    with killed_on_failure(
        subprocess.Popen([LAUNCH, "status", "--watch"], stdin=slave, stdout=slave, stderr=slave, env=env)
    ) as process:
        raw = b""

        def until(wanted: str) -> list[str]:
            nonlocal raw
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline:
                if select.select([master], [], [], 0.2)[0]:
                    raw += os.read(master, 65536)
                if b"\x1b[?1049h" in raw and raw.endswith(b"\x1b[J"):
                    page = screen_of(raw)
                    if any(wanted in line for line in page):
                        return page
            return pytest.fail(f"{wanted} never came: {raw!r}")

        first = until("0/2")
        assert "ready" in first[2]
        assert "TOK/S" not in first[1]
        body = {"model": "assistant", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        assert httpx.post(f"{cli.front}/v1/chat/completions", json=body, timeout=60).status_code == 200
        assert "assistant" in until("TOK/S")[2]
        cli.run("stop", "assistant")
        until("stopped by an operator")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        while select.select([master], [], [], 0.2)[0]:
            raw += os.read(master, 65536)
        os.close(slave)
        os.close(master)
    assert raw.count(b"\x1b[?1049h") == raw.count(b"\x1b[?1049l") == 1
    assert raw.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
    cli.run("stop", "--all")


@given(
    st.lists(st.one_of(st.sampled_from(["\x1b[1m", "\x1b[0m", "\x1b[31;1m"]), st.text("abc", max_size=5))),
    st.integers(0, 12),
)
def test_a_cut_line_keeps_its_styles(parts: list[str], columns: int) -> None:
    """As many characters as fit, every style sequence whole and in order."""
    line = "".join(parts)
    styles = [part for part in parts if part.startswith("\x1b")]
    plain = "".join(part for part in parts if not part.startswith("\x1b"))
    cut = clip(line, columns)
    for style in styles:
        assert style in cut
        cut = cut.replace(style, "", 1)
    assert cut == (plain if len(plain) <= columns else f"{plain[: columns - 1]}…" if columns else "")
