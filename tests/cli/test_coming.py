"""`launch plan` where a fleet of its name may run."""

from __future__ import annotations

from tests.cli.conftest import Cli


def test_a_name_that_no_directory_can_have(cli: Cli) -> None:
    """Nothing runs under it, and the plan is shown all the same."""
    document = cli.json("plan", "hardware=dev", "profile=dev", "hardware.name='a b/c'")
    assert document["deployment"] == "a b/c-dev"
    assert "changes" not in document
