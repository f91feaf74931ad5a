"""The plot of a sweep as PNG, by resvg (the extra `png`) and a font of this machine. I/O: reads the font."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FONTS = {
    "DejaVuSans.ttf": "DejaVu Sans",
    "LiberationSans-Regular.ttf": "Liberation Sans",
    "NotoSans-Regular.ttf": "Noto Sans",
}
"""File → the family that is in it; `sans-serif` is whichever is there."""
_PLACES = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_ZOOM = 2


def lacking() -> str | None:
    """What has to be installed before a picture can be drawn, in words; None: nothing."""
    if importlib.util.find_spec("resvg_py") is None:
        return "--png needs the Python package resvg_py: pipx inject launch-fleet resvg_py"
    if _font() is None:
        return "--png needs a font, of which this machine has none: apt-get install fonts-dejavu-core"
    return None


def png(svg: str) -> bytes:
    """`svg` in twice its size on white. Where something is `lacking` it raises."""
    import resvg_py

    found = _font()
    assert found is not None  # noqa: S101 - see `lacking`
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=_ZOOM,
            background="white",
            skip_system_fonts=True,
            font_files=[str(found)],
            sans_serif_family=_FONTS[found.name],
        )
    )


def _font() -> Path | None:
    """The first of `_FONTS` that is here."""
    for place in _PLACES:
        there = {path.name: path for path in sorted(Path(place).expanduser().rglob("*.ttf"))}
        for name in _FONTS:
            if name in there:
                return there[name]
    return None
