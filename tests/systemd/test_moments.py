"""The runtime of an installed fleet is killed in each state that a server may be in; systemd itself is meddled with."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.systemd.conftest import FRONT
from tests.systemd.test_attacks import RUNTIME, Attacked, run

__all__ = ["run"]

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(900), pytest.mark.slow]


def asking(run: Attacked, model: str) -> subprocess.Popen[str]:
    """A completion that is under way."""
    body = json.dumps({"model": model, "prompt": "1", "max_tokens": 1})
    words = ("curl", "-s", "-m", "60", "-H", "content-type: application/json", "-d", body, f"{FRONT}/v1/completions")
    return subprocess.Popen(run.host.command(*words), stdout=subprocess.PIPE, text=True)


def answered(client: subprocess.Popen[str], model: str) -> None:
    """What it got, if anything, is an answer of `model`, or an error with a code."""
    said = client.communicate()[0]
    found = json.loads(said) if said else {"model": model}
    assert found.get("model") == model or found["error"]["code"]


def test_the_runtime_dies_in_each_state(run: Attacked) -> None:
    """While servers start, while one drains, and on the ladder after out-of-memory: the next one makes it whole."""
    host = run.host
    run.fleet.launch("stop", "--all")
    host.run("systemctl", "start", "--no-block", RUNTIME)
    run.until(lambda: host.main_pid("launch-alpha.service"), "alpha starts")
    run.kill_runtime()
    run.whole()

    with run.busy("one", 1, times=1000), asking(run, "two") as client:
        run.until(lambda: run.process("one").get("state") == "stopping", "one drains")
        run.kill_runtime()
        answered(client, "two")
    run.whole()

    with asking(run, "wide") as client:
        run.until(lambda: host.show("launch-wide.service", "Result")["Result"] == "exit-code", "wide fails")
        run.kill_runtime()
        answered(client, "wide")
    run.whole()
    assert run.until(lambda: (a := run.ask("wide"))[0] == 200 and a, "wide") == (200, "wide")


def test_what_systemd_is_told_meanwhile(run: Attacked) -> None:
    """daemon-reload at any moment of a swap changes nothing; who is stopped behind the runtime comes back."""
    host = run.host
    for coming in ("two", "one", "two", "one"):
        with asking(run, coming) as client:
            while client.poll() is None:
                host.run("systemctl", "daemon-reload")
            assert json.loads(client.communicate()[0])["model"] == coming
    pid = run.pids()["beta"]
    host.run("systemctl", "stop", "launch-beta.service")
    assert run.until(lambda: (a := run.ask("beta"))[0] == 200 and a, "beta") == (200, "beta")
    assert run.pids()["beta"] != pid
    run.whole()


def test_a_full_disk(run: Attacked) -> None:
    """The state directory is full: servers come and go, the runtime dies and returns; then all is as it should be."""
    host, state = run.host, "/var/lib/launch-dev-trio"
    host.run("systemctl", "stop", RUNTIME)
    host.run("sh", "-c", f"mv {state} {state}.old; mkdir {state}; mount -t tmpfs -o size=4m full {state}")
    host.run("sh", "-c", f"cp -a {state}.old/. {state}/; chown --reference={state}.old {state}")
    host.run("systemctl", "start", RUNTIME)
    run.whole()
    host.run("sh", "-c", f"cat /dev/zero > {state}/filler", check=False)
    pid = run.pids()["beta"]
    host.run("kill", "-KILL", str(pid))
    run.ready("beta", besides=pid)
    assert run.ask("two") == (200, "two")
    run.kill_runtime()
    assert run.until(lambda: (a := run.ask("one"))[0] == 200 and a, "one") == (200, "one")
    assert run.ask("beta") == (200, "beta")
    free = host.run("df", "--output=avail", state).stdout.split()[-1]
    assert int(free) < 64, "what a test filled is full"  # a page or two come free when a record is replaced
    host.run("rm", f"{state}/filler")
    run.until(lambda: not run.status().get("drift"), "what could not be written is")
    run.whole()


def test_a_manifest_of_another_version(run: Attacked) -> None:
    """A runtime that cannot read what is installed says so and ends; servers run on; an install makes it whole."""
    host = run.host
    path = host.root / "etc/launch/dev-trio/fleet.json"
    pids = run.pids()
    text = path.read_text()
    assert text.count("launch.fleet/v") == 1
    path.write_text(text.replace("launch.fleet/v", "launch.fleet/v9"))
    run.kill_runtime()
    host.wait_said(RUNTIME, "launch.fleet/v9")
    assert run.direct("beta") == 200
    assert "install/hand-edited" in run.fleet.launch("reload", code=6)
    run.fleet.launch("install", "--config-dir=/srv/conf", "hardware=dev", "profile=trio", "--force")
    run.whole()
    assert {name: run.pids()[name] for name in ("alpha", "beta")} == {name: pids[name] for name in ("alpha", "beta")}


def test_two_deployments(run: Attacked) -> None:
    """Two on one machine, with prefixes, ports and paths of their own: neither has, stops or removes the other's."""
    host, other = run.host, ("deploy.unit_prefix=other", "runtime.front.port=8900", "profile.name=duo")
    paths = {"beta": "beta", "one": "card", "two": "card"}
    apart = [
        *(f"servers.{name}.port={8100 + n}" for n, name in enumerate(("alpha", "warm", "wide", "frail"))),
        *(f"servers.{name}.host=/run/other-{folder}/http.sock" for name, folder in paths.items()),
    ]
    words = ("install", "--config-dir=/srv/conf", "hardware=dev", "profile=trio", *other, *apart)
    before = run.pids()
    run.fleet.launch(*words)
    began = time.monotonic()
    while run.fleet.ask("http://127.0.0.1:8900", "/ready")[0] != 200:
        assert time.monotonic() - began < 60
    assert run.pids() == before
    user = host.show("other-dev-duo.service", "User")["User"]
    refused = host.run("runuser", "-u", user, "--", "systemctl", "stop", "launch-beta.service", check=False)
    assert refused.returncode
    assert run.pids() == before
    run.fleet.launch("uninstall", "dev-duo")
    assert run.pids() == before
    run.whole()
