"""Units of servers that ask for a key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from launcher.engine import recorded
from launcher.ir.config import DeployConfig, FrontConfig, RuntimeConfig
from launcher.ir.plan import FleetPlan
from launcher.render.fleet import render_fleet
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_key_files_become_credentials(templates: dict[str, str], tmp_path: Path) -> None:
    """The server, and the runtime, read copies that systemd made; verify takes the units."""
    plan = fleet_plan(
        server_plan("a", extra_args=KEYED),
        server_plan("b", port=8081, extra_args=("--api-key-file=/k",)),
        runtime=RuntimeConfig(front=FrontConfig(api_key_file="/etc/front.key")),
    )
    files = texts(plan, templates)
    server, runtime = files["launch-a.service"], files["launch-epyc-hot_only.service"]
    assert lines(server, "LoadCredential") == ["api-key:/etc/the keys/100%%.key"]
    assert "--api-key-file %d/api-key" in server
    assert "--api-key-file=%d/api-key" in files["launch-b.service"]
    assert lines(runtime, "LoadCredential") == [
        "api-key:/etc/front.key",
        "key-a:/etc/the keys/100%%.key",
        "key-b:/k",
    ]
    assert "--api-key-file %d/api-key" in runtime
    units = {name: text for name, text in files.items() if name.endswith((".service", ".target", ".slice"))}
    assert verify(tmp_path, units) == (0, "")


def test_a_users_units_name_the_file(templates: dict[str, str]) -> None:
    """What a user's servers may read, they read."""
    plan = fleet_plan(server_plan("a", extra_args=KEYED), deploy=DeployConfig(scope="user"))
    text = texts(plan, templates)["launch-a.service"]
    assert "LoadCredential" not in text
    assert '--api-key-file "/etc/the keys/100%%.key"' in text
