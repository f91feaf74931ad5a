"""The commands on an installed fleet: plan, status, stop, reload, logs, and where things have drifted apart."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.children import killed_on_failure
from tests.systemd.conftest import FRONT, FRONT_PORT, Fleet

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]

WORDS = ("--config-dir=/srv/conf", "hardware=dev", "profile=trio")


@pytest.fixture
def installed(fleet: Fleet) -> Fleet:
    """Two servers that run, one that a request starts, and the front by a name."""
    fleet.config["runtime"]["health_interval_s"] = 1
    fleet.config["services"] = {"orchestrator": {"builtin": "front", "port": FRONT_PORT}}
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
    """What runs is shown with its pids; one server is stopped and started again; all are; the front has its name."""
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
        "orchestrator": "ready",
    }
    assert processes["beta"]["pid"] == host.main_pid("launch-beta.service")
    assert processes["beta"]["measured_bytes"]["ram"] > 0
    # a container may not be allowed to lower the score; systemd then goes on without
    scored = "running: OOM score adjustment: 0 → "
    assert {p["drift"].partition(scored)[0] for p in processes.values()} == {""}
    text = installed.launch("status")
    assert "run by systemd, runtime pid " in text
    assert ", front http://127.0.0.1:8000" in text

    assert installed.launch("stop", "beta").strip() == "stopped beta"
    assert (active(installed, "beta.service"), active(installed, "alpha.service")) == ("inactive", "active")
    assert "did you mean beta" in installed.launch("stop", "betta", code=2)
    assert installed.chat("beta") == 503
    assert "started: beta" in installed.launch("reload", "beta")
    assert installed.chat("beta") == 200
    pid = host.main_pid("launch-beta.service")
    assert "restarted: beta" in installed.launch("reload", "beta")
    assert host.main_pid("launch-beta.service") not in (0, pid)
    old = host.main_pid("launch-alpha.service")
    said = installed.launch("reload")
    assert "kept: alpha, beta, dev-trio\n" in said
    assert "not running, as before: gamma\n" in said
    assert host.main_pid("launch-alpha.service") == old
    assert "front-stays" in installed.launch("stop", "orchestrator", code=7)
    assert "~ reloaded: orchestrator" in installed.launch("reload", "orchestrator")
    would = installed.launch("reload", "--dry-run", "servers.beta.slots=2")
    assert "~ restarted: beta  (argv: --ctx-size 256 → 512" in would
    assert "kept: alpha, gamma, orchestrator\n" in would
    assert "dev-trio is installed" in installed.launch("switch", *WORDS, code=2)
    assert host.main_pid("launch-alpha.service") == old

    assert installed.chat("gamma") == 200
    assert "gamma" in installed.launch("stop", "gamma")
    assert active(installed, "gamma.service") == "inactive"

    said = installed.launch("restart")
    assert "gamma" not in said.replace("not running, as before: gamma", "")
    started_by_hand(installed)
    assert "dev-trio is installed: systemd runs it" in installed.launch("up", *WORDS, "--detach", code=6)

    installed.launch("stop", "--all")
    assert "dev-trio is installed" in installed.launch("up", *WORDS, "--detach", code=6)
    assert {active(installed, f"{name}.service") for name in ("alpha", "beta", "gamma", "dev-trio")} == {"inactive"}
    assert {p["state"] for p in status(installed)[1].values()} == {"stopped"}
    assert "~ reloaded: orchestrator" in installed.launch("reload", "orchestrator")
    host.run("systemctl", "start", "launch-dev-trio.service")
    assert installed.chat("alpha") == 200


def started_by_hand(fleet: Fleet) -> None:
    """`systemctl start` of a server that sleeps: the runtime has it, and who asks is answered by that process."""
    fleet.host.run("systemctl", "start", "launch-gamma.service")
    pid = fleet.host.main_pid("launch-gamma.service")
    until(lambda: status(fleet)[1]["gamma"]["state"] == "ready")
    assert fleet.chat("gamma") == 200
    assert status(fleet)[1]["gamma"]["pid"] == pid


def until(holds: Callable[[], bool]) -> None:
    """Wait for it."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < 60
        time.sleep(0.2)


def test_what_happened(installed: Fleet) -> None:
    """Logs are the journal's, of one, of several, of all, and of the front; events and the page are the runtime's."""
    host = installed.host
    said = installed.launch("logs", "alpha", "-n", "500")
    assert "Started launch-alpha.service" in said
    assert "llama-server[" in said
    lines = json.loads(host.run("launch", "logs", "alpha", "-n", "500", "--json").stdout)["lines"]
    assert {line["name"] for line in lines} == {"alpha"}
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert any(line["line"].startswith("Started launch-alpha.service") for line in lines)
    merged = installed.launch("logs", "-n", "500")
    assert ("Started launch-alpha.service" in merged, "Started launch-beta.service" in merged) == (True, True)
    assert "launch[" in installed.launch("logs", "orchestrator", "-n", "500")
    assert "no running fleet has betta" in installed.launch("logs", "betta", "alpha", code=2)
    known = json.loads(host.run("launch", "events", "--json").stdout)["fleets"]
    assert "beta" in {e["name"] for fleet in known if fleet["deployment"] == "dev-trio" for e in fleet["events"]}
    assert installed.launch("ui", "--print").startswith(f"{FRONT}/ui/#enter=")
    with subprocess.Popen(host.command("launch", "logs", "-f", "-n", "1", "beta"), stdout=subprocess.PIPE) as follow:
        try:
            assert follow.stdout is not None
            assert follow.stdout.readline()
            installed.launch("reload", "beta")
            while b"Started launch-beta.service" not in follow.stdout.readline():
                assert follow.poll() is None
        finally:
            host.run("pkill", "journalctl")


def test_slots_and_drift_where_keys_are_asked_for(fleet: Fleet) -> None:
    """The front is asked how many slots are taken, with its key; a server's own key hides no drift."""
    host = fleet.host
    for name in ("front", "server"):
        (host.root / f"etc/{name}.key").write_text(f"a-long-enough-key-of-the-{name}\n")
        (host.root / f"etc/{name}.key").chmod(0o600)
    fleet.config["runtime"] |= {"server_key_file": "/etc/server.key"}
    fleet.config["runtime"]["front"]["api_key_file"] = "/etc/front.key"
    fleet.server("alpha", slots=2, n_ctx=65536)
    fleet.install()
    alpha = status(fleet)[1]["alpha"]
    assert (alpha["in_flight"], alpha["slots"]) == (0, 2)
    assert "running: -" not in alpha["drift"]
    assert " 0/2 " in fleet.launch("status")
    assert "kept: alpha, dev-trio\n" in fleet.launch("reload")

    words = ("-sN", "-m", "40", "-H", "Authorization: Bearer a-long-enough-key-of-the-front", f"{FRONT}/v1/completions")
    body = {"model": "alpha", "prompt": "1", "max_tokens": 60000, "stream": True, "ignore_eos": True}
    with killed_on_failure(
        subprocess.Popen(host.command("curl", *words, "--data", json.dumps(body)), stdout=subprocess.PIPE)
    ) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline().startswith(b"data: ")
        assert status(fleet)[1]["alpha"]["in_flight"] == 1
        asking.kill()

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


@pytest.mark.slow
def test_a_sweep_beside_an_installed_fleet(installed: Fleet) -> None:
    """As beside one of `launch up`: of the config that is named, on ports of its own; what runs is not touched."""
    pids = {name: p["pid"] for name, p in status(installed)[1].items()}
    quick = ("--batches", "2", "--warmup", "0", "--n-predict", "4", "--prompt-tokens", "16", "--json")
    done = installed.host.run("launch", "sweep", *WORDS, "alpha", "slots=1,2", *quick, timeout_s=300)
    found = json.loads(done.stdout)
    assert {(p["settings"]["slots"], p["refused"]) for p in found["points"]} == {("1", ""), ("2", "")}
    assert {name: p["pid"] for name, p in status(installed)[1].items()} == pids


def _render_command() -> tuple[str, ...]:
    """Renders into /srv/generated."""
    return ("launch", "render", *WORDS, "--output=/srv/generated")
