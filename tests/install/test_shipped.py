"""Every shipped profile's units, judged by systemd: `verify` says nothing, `security` says what the docs say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from launcher.compiler import compile_fleet, hosts_of, on_host, render
from launcher.install import Layout, Systemd, install, plan_changes
from launcher.install.verify import verify_units
from launcher.manifest import decode_fleet, diff_manifests
from tests.install.test_install import nothing
from tests.render.conftest import exposure, verify

SHIPPED = (
    "hardware=dev profile=dev",
    "hardware=epyc profile=hot_only",
    "hardware=epyc profile=full",
    "hardware=epyc profile=epyc_dev",
    "hardware=sovereign profile=three_tier",
    "hardware=dev profile=three_tier_small",
    "hardware=two_hosts profile=pair",
)
SOCKET = f"{SHIPPED[0]} servers.assistant.host=/run/launch-assistant/http.sock"
DOCS = Path(__file__).parents[2] / "docs/deploy.md"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")


def test_every_profile_is_looked_at() -> None:
    """A profile that is added is added here."""
    shipped = {p.stem for p in (DOCS.parents[1] / "conf/profile").glob("*.yaml")}
    assert shipped == {overrides.partition("profile=")[2] for overrides in SHIPPED}


def units(overrides: str) -> dict[str, str]:
    """Text of every unit of a deployment by name, on whichever host."""
    compiled = compile_fleet(overrides.split())
    parts = [on_host(compiled, host) for host in hosts_of(compiled)] or [compiled]
    files = [file for part in parts for file in render(part).deployment.files]
    return {f.path.removeprefix("systemd/"): f.text for f in files if f.path.startswith("systemd/")}


@pytest.mark.parametrize("overrides", [*SHIPPED, SOCKET])
def test_verified(overrides: str, tmp_path: Path) -> None:
    """Status 0 and an empty stderr."""
    assert verify(tmp_path, units(overrides)) == (0, "")


def test_the_table_of_the_docs(tmp_path: Path) -> None:
    """One row a kind of unit in docs/deploy.md: the worst level of that kind over all shipped profiles.

    And of one whose server listens on a unix socket.
    """
    worst: dict[str, float] = {}
    judged: dict[str, float] = {}
    for overrides in (*SHIPPED, SOCKET):
        for name, text in units(overrides).items():
            claim = re.search(r"^X-Launch-Exposure=(.*)$", text, re.MULTILINE)
            if claim is None:
                continue
            # names, words and numbers do not count: units of one kind are judged once
            shape = "\n".join(
                line for line in text.splitlines() if not re.match(r"#| |Exec|Desc|X-|Environ|Memory", line)
            )
            if shape not in judged:
                (tmp_path / name).write_text(text)
                judged[shape] = exposure(tmp_path / name)
            assert judged[shape] <= float(claim[1]), name
            kind = "runtime" if " serve --no-color" in text else "GPU" if "char-nvidia" in text else None
            kind = "socket" if "PrivateNetwork=" in text else kind or ("CPU" if "llama-server" in text else "command")
            worst[kind] = max(worst.get(kind, 0), judged[shape])
    assert worst["socket"] <= 0.3
    assert worst["CPU"] <= 1.0
    assert worst["GPU"] <= 1.4
    assert worst["runtime"] <= 2.0
    rows = dict(re.findall(r"^\| .*?<!-- (\w+) -->.*?\| ([\d.]+) \|$", DOCS.read_text(), re.MULTILINE))
    assert {kind: float(level) for kind, level in rows.items()} == worst


def test_one_quantization(tmp_path: Path) -> None:
    """What really differs, and nothing else: one server restarts; of one that waits for it the order alone differs."""
    layout = Layout(root=tmp_path)
    before, after = (
        render(compile_fleet(["hardware=epyc", "profile=hot_only", *more])).deployment
        for more in ([], ["servers.worker_explore.quantization=q4_k_m"])
    )
    install(plan_changes(before, layout), layout, Systemd(layout), layout.tree.write, take_over=nothing)
    differ = {change.path.name: change for change in plan_changes(after, layout).changes}
    units = {"launch-worker_explore.service", "launch-vision_escalation.service"}
    assert set(differ) == {"fleet.json", "routes.json", *units}
    assert [name for name, change in differ.items() if change.restarts] == ["launch-worker_explore.service"]
    changed = [line[1:] for line in differ["launch-worker_explore.service"].diff if line[0] == "+" and line[1] != "+"]
    assert {re.split("[ =]", line.strip())[0] for line in changed} == {
        *("Description", "X-Launch-Digest", "--model", "MemoryMax"),
    }
    was, becomes = (
        decode_fleet(next(file.text for file in d.files if file.path == "fleet.json").encode()) for d in (before, after)
    )
    assert list(diff_manifests(was, becomes).restarted) == ["worker_explore"]


@pytest.mark.parametrize(("host", "refused"), [("/srv/a.sock", True), ("/run/launch-a/http.sock", False)])
def test_a_unix_socket_has_a_folder(tmp_path: Path, host: str, refused: bool) -> None:
    """One for which a unit makes none is not installed: after its first end nobody would remove its socket."""
    deployment = render(compile_fleet([*SHIPPED[0].split(), f"servers.assistant.host={host}"])).deployment
    units = tuple(file for file in deployment.files if file.path.endswith("launch-assistant.service"))
    found = verify_units(msgspec.structs.replace(deployment, files=units), Layout(root=tmp_path))
    assert [f.severity for f in found if f.code == "render/socket-folder"] == ["error"] * refused


@pytest.mark.parametrize("prefix", ["launch-", "ai--prod"])
def test_a_prefix_with_dashes(tmp_path: Path, prefix: str) -> None:
    """Units of servers have it as it is written; a slice has single dashes, which say whose child it is."""
    deployment = render(compile_fleet([*SHIPPED[0].split(), f"deploy.unit_prefix={prefix}"])).deployment
    assert [f for f in verify_units(deployment, Layout(root=tmp_path)) if f.severity == "error"] == []
    assert [f.code for f in plan_changes(deployment, Layout(root=tmp_path)).findings] == []
