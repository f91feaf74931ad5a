"""The suite's own promise: tests of a group run in one worker, one after the other."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("groups")
def test_groups_are_seen_by_the_scheduler(request: pytest.FixtureRequest) -> None:
    """Under `--dist loadgroup` a test's id ends with its group; without that, two systemds boot side by side."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@groups")
