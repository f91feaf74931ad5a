"""The runtime's unit has a state directory of its own, where the memory of projects lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli, cli

__all__ = ["cli"]  # the fixture


@pytest.mark.parametrize("profile", ["three_tier_small", "dev"])
def test_the_state_directory_of_the_runtimes_unit(cli: Cli, profile: str) -> None:
    """`/var/lib/launch-DEPLOYMENT`, whose alone it is."""
    cli.run("render", "hardware=dev", f"profile={profile}", "--output", "out")
    name = f"launch-dev-{profile}"
    lines = Path(cli.home, "out", f"dev-{profile}", "systemd", f"{name}.service").read_text().splitlines()
    assert [line for line in lines if line.startswith("StateDirectory")] == [
        f"StateDirectory={name}",
        "StateDirectoryMode=0700",
    ]
