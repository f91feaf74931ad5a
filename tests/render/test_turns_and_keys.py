"""Units of exclusive servers behind sockets, which take turns, and of servers that ask for a key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from launcher.engine import recorded
from launcher.ir.config import DeployConfig, FrontConfig, RuntimeConfig
from launcher.ir.plan import FleetPlan
from launcher.render import render_fleet
from tests.render.conftest import verify
from tests.render.plan_factory import fleet_plan, server_plan

KEYED = ("--api-key-file", "/etc/the keys/100%.key")


def texts(plan: FleetPlan, templates: dict[str, str]) -> dict[str, str]:
    """Text of every file of the rendered plan by its name."""
    files = render_fleet(
        plan, {"default": ("/usr/bin/llama-server", recorded("b10434"))}, templates, "0"
    ).deployment.files
    return {f.path.rpartition("/")[2]: f.text for f in files}


def lines(text: str, key: str) -> list[str]:
    """Values of `key` in a unit."""
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def group(**changes: str) -> FleetPlan:
    """Two exclusive servers on demand, and one at boot that is in no group."""
    return fleet_plan(
        server_plan("a", tier="warm", exclusive="one", port=8081, start_timeout_s=60.0),
        server_plan("b", tier="warm", exclusive="one", port=8082, start_timeout_s=60.0),
        server_plan("c", port=8083),
        deploy=DeployConfig(**changes),  # type: ignore[arg-type] # its own fields
    )


def test_members_behind_sockets_take_turns(templates: dict[str, str]) -> None:
    """Each asks for its turn, has time to wait for the other, and conflicts with nobody: that would undo its start."""
    units = texts(group(), templates)
    turns = [lines(units[f"launch-{name}.service"], "ExecStartPre") for name in "abc"]
    assert [len(turn) for turn in turns] == [1, 1, 0]
    first, second = turns[0][0].split(), turns[1][0].split()
    assert first[0] == "+/usr/local/libexec/launch/epyc-hot_only/launch-turn"
    assert first[1] == second[1]
    assert (first[2:], second[2:]) == (first[2:], first[:1:-1])
    for name in "ab":
        text = units[f"launch-{name}.service"]
        assert lines(text, "Conflicts") == []
        assert lines(text, "After") == ["network.target"]
        assert int(lines(text, "TimeoutStartSec")[0]) > 2 * 60


def test_members_without_sockets_conflict(templates: dict[str, str]) -> None:
    """Where only people and targets start them, systemd's own exclusion will do."""
    units = texts(group(warm="none"), templates)
    assert lines(units["launch-a.service"], "ExecStartPre") == []
    assert lines(units["launch-a.service"], "Conflicts") == ["launch-b.service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("watchdog", [False, True])
def test_key_files_become_credentials(templates: dict[str, str], tmp_path: Path, *, watchdog: bool) -> None:
    """The server, and the front, read copies that systemd made; verify takes the units."""
    plan = fleet_plan(
        server_plan("a", extra_args=KEYED),
        server_plan("b", port=8081, extra_args=("--api-key-file=/k",)),
        deploy=DeployConfig(watchdog=watchdog),
        runtime=RuntimeConfig(front=FrontConfig(api_key_file="/etc/front.key")),
    )
    files = texts(plan, templates)
    server, front = files["launch-a.service"], files["launch-front.service"]
    assert lines(server, "LoadCredential") == ["api-key:/etc/the keys/100%%.key"]
    assert "--api-key-file %d/api-key" in server
    assert "--api-key-file=%d/api-key" in files["launch-b.service"]
    assert lines(front, "LoadCredential") == [
        "api-key:/etc/front.key",
        "key-a:/etc/the keys/100%%.key",
        "key-b:/k",
    ]
    units = {name: text for name, text in files.items() if name.endswith((".service", ".target", ".slice"))}
    assert verify(tmp_path, units) == (0, "")


def test_a_users_units_name_the_file(templates: dict[str, str]) -> None:
    """What a user's servers may read, they read."""
    plan = fleet_plan(server_plan("a", extra_args=KEYED), deploy=DeployConfig(scope="user"))
    text = texts(plan, templates)["launch-a.service"]
    assert "LoadCredential" not in text
    assert '--api-key-file "/etc/the keys/100%%.key"' in text
    assert '"LAUNCH_KEY_FILE=/etc/the keys/100%%.key"' in text
