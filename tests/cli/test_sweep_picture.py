"""The plot of a sweep as PNG: drawn where all is there for it. What is refused before anything is measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from launcher.cli import sweep_view
from launcher.cli.sweep import SweepOptions, run_sweep
from launcher.errors import ConfigError
from launcher.ir.sweep import Workload

SVG = Path(__file__).parents[2] / "docs" / "sweep.svg"


def test_it_is_drawn_with_words() -> None:
    """By a font of this machine; on one without, that is said."""
    missing = sweep_view.png_requirement()
    if missing is not None:
        assert "fonts-dejavu-core" in missing
        return
    svg = SVG.read_text()
    drawn = sweep_view.png(svg)
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    bare = "\n".join(line for line in svg.splitlines() if "<text" not in line)
    assert len(drawn) > 1.2 * len(sweep_view.png(bare))


@pytest.mark.parametrize(("change", "remedy"), [("package", "resvg_py"), ("font", "fonts-dejavu-core")])
def test_what_is_lacking_is_said_before_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str, remedy: str
) -> None:
    """One finding with the remedy; no server is started for a picture that cannot be drawn."""
    if change == "package":
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    else:
        monkeypatch.setattr(sweep_view, "_PLACES", (str(tmp_path),))
    options = SweepOptions(workload=Workload(), png=tmp_path / "plot.png")
    with pytest.raises(ConfigError, match=remedy):
        run_sweep(["assistant", "slots=1,2"], [], options, as_json=False)
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("limit", [math.nan, math.inf, 0.5])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    """Typer's bounds let NaN through."""
    options = SweepOptions(workload=Workload(), p95_limit=limit)
    with pytest.raises(ConfigError, match="--p95-limit"):
        run_sweep(["assistant", "slots=1,2"], [], options, as_json=False)
