"""The commands on an installed fleet: plan, status, stop, reload, logs, and where things have drifted apart."""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import Any

import pytest

from tests.systemd.conftest import FRONT, Fleet

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(120)]

WORDS = ("--config-dir=/srv/conf", "hardware=dev", "profile=trio")


@pytest.fixture
def installed(fleet: Fleet) -> Fleet:
    """Two servers that run, and one that a request starts."""
    fleet.server("alpha", roles=["frontdoor"])
    fleet.server("beta")
    fleet.server("gamma", tier="warm")
    fleet.install()
    return fleet


def status(fleet: Fleet, code: int = 0) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The fleet, and its processes by name."""
    said = json.loads(fleet.host.run("launch", "status", "--json", check=bool(not code)).stdout)
    (found,) = said["fleets"]
    return found, {p["name"]: p for p in found["processes"]}


def active(fleet: Fleet, unit: str) -> str:
    """ActiveState of `launch-UNIT`."""
    return fleet.host.show(f"launch-{unit}", "ActiveState")["ActiveState"]


def test_status_stop_reload_logs(installed: Fleet) -> None:
    """What runs is shown with its pids; one server is stopped and started again; all are; logs are the journal's."""
    host = installed.host
    found, processes = status(installed)
    assert found["manager"] == "systemd"
    assert found["ready"] is True
    assert found["front"] == "http://127.0.0.1:8000"
    assert found["drift"] == []
    assert {n: p["state"] for n, p in processes.items()} == {
        "alpha": "ready",
        "beta": "ready",
        "gamma": "stopped",
        "front": "ready",
    }
    assert processes["beta"]["pid"] == host.main_pid("launch-beta.service")
    assert processes["beta"]["measured_bytes"]["ram"] > 0
    # a container may not be allowed to lower the score; systemd then goes on without
    scored = "running: OOM score adjustment: 0 → "
    assert {p["drift"].partition(scored)[0] for p in processes.values()} == {""}
    text = installed.launch("status")
    assert "run by systemd, front http://127.0.0.1:8000" in text

    assert installed.launch("stop", "beta").strip() == "stopped beta"
    assert (active(installed, "beta.service"), active(installed, "alpha.service")) == ("inactive", "active")
    assert "did you mean beta" in installed.launch("stop", "betta", code=2)
    assert "started: beta" in installed.launch("reload", "beta")
    assert installed.chat("beta") == 200
    pid = host.main_pid("launch-beta.service")
    assert "restarted: beta" in installed.launch("reload", "beta")
    assert host.main_pid("launch-beta.service") not in (0, pid)
    old = host.main_pid("launch-alpha.service")
    said = installed.launch("reload")
    assert "kept: alpha, beta, front\n" in said
    assert "not running, as before: gamma\n" in said
    assert host.main_pid("launch-alpha.service") == old

    assert installed.chat("gamma") == 200
    assert "gamma" in installed.launch("stop", "gamma")
    assert {active(installed, f"gamma{part}") for part in (".socket", "-proxy.service", ".service")} == {"inactive"}

    said = installed.launch("logs", "alpha", "-n", "500")
    assert "Started launch-alpha.service" in said
    assert "llama-server[" in said
    with subprocess.Popen(host.command("launch", "logs", "-f", "-n", "1", "beta"), stdout=subprocess.PIPE) as follow:
        try:
            assert follow.stdout is not None
            assert follow.stdout.readline()
            host.run("systemctl", "restart", "launch-beta.service")
            while b"Started launch-beta.service" not in follow.stdout.readline():
                assert follow.poll() is None
        finally:
            host.run("pkill", "journalctl")
    installed.launch("stop", "--all")
    assert {active(installed, f"{name}.service") for name in ("alpha", "beta", "gamma", "front")} == {"inactive"}
    assert {p["state"] for p in status(installed)[1].values()} == {"stopped"}
    host.run("systemctl", "start", "launch-hot.target")
    assert installed.chat("alpha") == 200


def test_slots_and_drift_where_keys_are_asked_for(fleet: Fleet) -> None:
    """The front is asked how many slots are taken, with its key; a server's own key hides no drift."""
    host = fleet.host
    for name in ("front", "server"):
        (host.root / f"etc/{name}.key").write_text(f"a-long-enough-key-of-the-{name}\n")
        (host.root / f"etc/{name}.key").chmod(0o600)
    fleet.config["runtime"] |= {"server_key_file": "/etc/server.key"}
    fleet.config["runtime"]["front"]["api_key_file"] = "/etc/front.key"
    fleet.server("alpha", slots=2)
    fleet.install()
    alpha = status(fleet)[1]["alpha"]
    assert (alpha["in_flight"], alpha["slots"]) == (0, 2)
    assert "running: -" not in alpha["drift"]
    assert " 0/2 " in fleet.launch("status")
    assert "kept: alpha, front\n" in fleet.launch("reload")

    pid = str(host.main_pid("launch-alpha.service"))
    host.run("kill", "-STOP", pid)
    words = ("-s", "-m", "20", "-H", "Authorization: Bearer a-long-enough-key-of-the-front", f"{FRONT}/v1/completions")
    asked = host.command("curl", *words, "--data", '{"model":"alpha","prompt":"1","max_tokens":2}')
    with subprocess.Popen(asked, stdout=subprocess.PIPE) as asking:
        while status(fleet)[1]["alpha"]["in_flight"] != 1:
            assert asking.poll() is None
        host.run("kill", "-CONT", pid)
        assert b'"choices"' in asking.communicate()[0]

    unit = host.root / "etc/systemd/system/launch-alpha.service"
    unit.write_text(unit.read_text().replace("--parallel 2", "--parallel 3"))
    assert "running: --parallel 2 → 3" in status(fleet)[1]["alpha"]["drift"]


@pytest.mark.slow
def test_every_layer_of_drift(installed: Fleet) -> None:
    """Config, generated, installed, loaded, running: each difference is named by its layer, and reload converges."""
    host = installed.host
    units = host.root / "etc/systemd/system"
    installed.config["servers"]["beta"]["slots"] = 2
    installed.server("delta")
    del installed.config["servers"]["gamma"]
    installed.write()
    changes = json.loads(host.run("launch", "plan", *WORDS, "--json").stdout)["changes"]
    assert [(c["manager"], c["started"], c["stopped"], list(c["restarted"])) for c in changes] == [
        ("systemd", ["delta"], ["gamma"], ["beta"])
    ]
    assert "--ctx-size 256 → 512" in changes[0]["restarted"]["beta"]
    said = installed.launch("plan", *WORDS)
    assert "runs here under systemd" in said
    assert "+ delta" in said
    assert "~ beta" in said
    assert "- gamma" in said

    unit = units / "launch-alpha.service"
    unit.write_text(unit.read_text().replace("--parallel 1", "--parallel 3"))
    found, processes = status(installed)
    assert found["drift"] == ["installed: /etc/systemd/system/launch-alpha.service was edited after it was installed"]
    assert "loaded: launch-alpha.service changed on disk since it was loaded" in processes["alpha"]["drift"]
    assert "running: --parallel 1 → 3" in processes["alpha"]["drift"]
    assert "install/hand-edited" in installed.launch("reload", code=6)
    unit.write_text(unit.read_text().replace("--parallel 3", "--parallel 1"))

    (units / "launch-beta.service.d").mkdir()
    (units / "launch-beta.service.d/mine.conf").write_text("[Service]\nOOMScoreAdjust=300\n")
    host.run("systemctl", "set-property", "--runtime", "launch-alpha.service", "MemoryHigh=8G")
    host.run("systemctl", "daemon-reload")
    found, processes = status(installed)
    assert "drop-in /etc/systemd/system/launch-beta.service.d/mine.conf" in processes["beta"]["drift"]
    assert re.search(r"running: OOM score adjustment: -?\d+ → 300", processes["beta"]["drift"])
    assert "/run/systemd/system.control/launch-alpha.service.d/" in processes["alpha"]["drift"]

    (units / "launch-hot.slice").unlink()
    assert "installed: /etc/systemd/system/launch-hot.slice is gone" in status(installed)[0]["drift"]

    reloaded = installed.launch("reload")
    assert "started: delta" in reloaded
    assert "restarted: beta" in reloaded
    found, processes = status(installed)
    assert found["drift"] == []
    assert processes["beta"]["drift"] == "loaded: drop-in /etc/systemd/system/launch-beta.service.d/mine.conf"
    assert "gamma" not in processes
    assert len(installed.ask("http://127.0.0.1:8082", "/slots")[1]) == 2

    installed.host.run(*_render_command())
    said = json.loads(
        host.run("sh", "-c", f"cd /srv && launch plan {' '.join(WORDS)} servers.beta.slots=1 --json").stdout
    )
    assert [line.partition(":")[0] for line in said["changes"][0]["drift"][:1]] == ["generated"]


def _render_command() -> tuple[str, ...]:
    """Renders into /srv/generated."""
    return ("launch", "render", *WORDS, "--output=/srv/generated")


def test_what_failed_is_shown(installed: Fleet) -> None:
    """A crash loop and a stolen port: exit code 7, the unit's result, and who holds the port."""
    host = installed.host
    host.run("systemctl", "stop", "launch-beta.service")
    host.run("systemd-run", "--unit=thief", "python3", "-m", "http.server", "--bind", "127.0.0.1", "8082")
    while installed.ask("http://127.0.0.1:8082", "/")[0] != 200:
        time.sleep(0.05)
    host.run("systemctl", "start", "launch-beta.service", check=False)
    found, processes = status(installed, 7)
    assert found["ready"] is False
    assert processes["beta"]["state"] in ("failed", "backoff", "starting")
    while processes["beta"]["state"] not in ("failed", "backoff"):
        processes = status(installed, 7)[1]
    assert "port 8082 is held by python3" in processes["beta"]["error"]
    assert processes["beta"]["log_tail"]  # of what llama-server wrote last it may lose a part
    host.run("systemctl", "stop", "thief.service")
    assert "started: beta" in installed.launch("reload", "beta")  # however often it failed before
    assert installed.chat("beta") == 200
