"""Expected speeds for people."""

from __future__ import annotations

from launcher.cli.terminal import Terminal
from launcher.ir.speed import ServerSpeed


def show_speeds(terminal: Terminal, speeds: tuple[ServerSpeed, ...]) -> None:
    """One row a server: tokens a second with one request at a time, and where that is known from."""
    terminal.line()
    header = ("SPEED", "TOKENS/S", "ALL AT ONCE", "PROMPT/S", "LOADS IN", "A TOKEN READS", "SOURCE")
    rows: list[tuple[str, ...]] = [
        (
            *(s.server, _range(s.decode), _range(s.together), _range(s.prompt)),
            "" if s.load_s is None else f"{s.load_s:.1f} s",
            *(_read(s.touched_bytes), f"{s.source}: {s.basis}"),
        )
        for s in speeds
    ]
    terminal.table(header, rows, right=frozenset({1, 2, 3, 4}))


def _range(ends: tuple[float, float] | None) -> str:
    """`12-20`; one number where both ends are one."""
    if ends is None:
        return ""
    low, high = (f"{end:.1f}" if end < 10 else f"{end:.0f}" for end in ends)
    return low if low == high else f"{low}-{high}"


def _read(sizes: dict[str, int]) -> str:
    """Bytes by device."""
    return ", ".join(f"{size / 1e9:.2f} GB of {device}" for device, size in sizes.items())
