"""The front's unit may write where the memory of projects lies, and only where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, cli

__all__ = ["cli"]  # the fixture


@pytest.mark.parametrize(("profile", "kept"), [("three_tier_small", ["StateDirectory=launch-front"]), ("dev", [])])
def test_the_state_directory_of_the_fronts_unit(cli: Cli, profile: str, kept: list[str]) -> None:
    """A fleet that orchestrates has `/var/lib/launch-front`, another fleet's front writes nowhere."""
    cli.run("render", "hardware=dev", f"profile={profile}", "--output", "out")
    lines = Path(cli.home, "out", f"dev-{profile}", "systemd", "launch-front.service").read_text().splitlines()
    assert [line for line in lines if line.startswith("StateDirectory")] == kept
