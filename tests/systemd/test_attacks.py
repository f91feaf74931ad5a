"""An installed fleet whose runtime is killed at bad moments, and whose units, ports and state are tampered with."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.children import killed_on_failure
from tests.systemd.conftest import FRONT, Fleet
from tests.systemd.scenarios import PORTS, WORDS, Units, describe

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(900), pytest.mark.slow]

RUNTIME = "launch-dev-trio.service"


class Attacked(Units):
    """The fleet of the scenarios, installed."""

    def kill_runtime(self) -> None:
        """Kill -9."""
        pid = self.host.main_pid(RUNTIME)
        if pid:
            self.host.run("kill", "-KILL", str(pid), check=False)

    def whole(self) -> None:
        """Everything is as compiled, ready, nothing runs twice, and both that take turns answer by their names."""
        self.until(lambda: self.status().get("ready"), "ready")
        for name in ("alpha", "beta", "one", "two", "one"):
            assert self.until(lambda name=name: (a := self.ask(name))[0] == 200 and a, name) == (200, name)  # type: ignore[misc]
        (found,) = json.loads(self.host.run("launch", "status", "--json", check=False).stdout)["fleets"]
        assert found["drift"] == []
        assert {p["name"]: p["drift"].partition("running: OOM score")[0] for p in found["processes"]} == dict.fromkeys(
            (p["name"] for p in found["processes"]), ""
        )
        assert not {"one", "two"} <= {p["name"] for p in found["processes"] if p["pid"]}
        running = int(self.host.run("pgrep", "-c", "llama-server", check=False).stdout)
        assert running == sum(p["pid"] is not None and p["kind"] == "server" for p in found["processes"])

    def during(self, words: tuple[str, ...], moment: Callable[[], Any]) -> tuple[int, str]:
        """Kill the runtime when `moment` has come while `launch WORDS` works; its exit code, and what it said."""
        command = self.host.command("launch", *words)
        with killed_on_failure(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ) as child:
            self.until(lambda: moment() or child.poll() is not None, f"{words} begins")
            self.kill_runtime()
            said, _ = child.communicate()
        assert "Traceback" not in said, said
        return child.returncode, said


@pytest.fixture
def run(fleet: Fleet) -> Attacked:
    """Up, and whole."""
    describe(fleet)
    fleet.config["runtime"] |= {"crash_loop_failures": 1000, "health_interval_s": 1}
    run = Attacked(fleet)
    run.bring_up()
    return run


def test_the_runtime_dies_at_work(run: Attacked) -> None:
    """In a swap, in a reload, in an install: the next one finds a whole fleet, or the same command makes it one."""
    host = run.host
    for leaving in ("one", "two"):
        killed_in_a_swap(run, leaving)
        run.whole()

    pid = run.pids()["beta"]
    code, said = run.during(("reload", "servers.beta.slots=3"), lambda: host.main_pid("launch-beta.service") != pid)
    assert code in (0, 7), said
    run.fleet.launch("reload")
    assert run.process("beta")["slots"] == 3
    run.whole()

    unit = host.root / "etc/systemd/system/launch-beta.service"
    before_text = unit.read_text()
    install = ("install", *WORDS, "servers.beta.slots=2")
    code, said = run.during(install, lambda: unit.read_text() != before_text)
    assert code in (0, 7), said
    run.fleet.launch(*install)
    assert run.process("beta")["slots"] == 2
    run.whole()


def killed_in_a_swap(run: Attacked, leaving: str) -> None:
    """The runtime dies when `leaving` has ended, or the other begun; who asked gets nothing, or a right answer."""
    coming = "one" if leaving == "two" else "two"
    assert run.ask(leaving) == (200, leaving)
    body = json.dumps({"model": coming, "prompt": "1", "max_tokens": 1})
    words = ("curl", "-s", "-m", "60", "-H", "content-type: application/json", "-d", body, f"{FRONT}/v1/completions")
    pid = run.host.main_pid(f"launch-{leaving}.service")
    with killed_on_failure(subprocess.Popen(run.host.command(*words), stdout=subprocess.PIPE, text=True)) as client:
        run.until(lambda: run.host.main_pid(f"launch-{leaving}.service") != pid, "a swap begins")
        run.kill_runtime()
        said = client.communicate()[0]
    assert not said or json.loads(said).get("model", coming) == coming


def test_two_at_once(run: Attacked) -> None:
    """Two installs of different plans: one after the other, and what is there is the whole of one of them."""
    commands = [run.host.command("launch", "install", *WORDS, f"servers.beta.slots={n}") for n in (2, 3)]
    both = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
    said = [child.communicate()[0] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    assert run.process("beta")["slots"] in (2, 3)
    run.whole()


def test_what_is_tampered_with(run: Attacked) -> None:
    """State removed, a unit masked, a foreign process on a port, a rival started by hand: said, and mended."""
    host = run.host
    pids = run.pids()
    shutil.rmtree(host.root / "var/lib/launch-dev-trio/dev-trio")
    run.until((host.root / "var/lib/launch-dev-trio/dev-trio/control.sock").exists, "a new control socket")
    run.kill_runtime()
    run.until(lambda: run.status().get("ready"), "ready again")
    assert run.pids() == pids

    host.run("systemctl", "start", "launch-two.service", check=False)
    run.until(lambda: not host.main_pid("launch-two.service"), "the rival is ended")
    assert run.pids()["one"] == pids["one"]

    unit = host.root / "etc/systemd/system/launch-warm.service"
    unit.unlink()
    host.run("systemctl", "mask", "launch-warm.service")
    code, said = run.ask("warm")
    assert (code, said) == (503, "server_failed")
    assert "masked" in run.process("warm")["error"]
    assert "install/hand-edited" in run.fleet.launch("reload", code=6)
    host.run("systemctl", "unmask", "launch-warm.service")
    run.fleet.launch("reload")
    assert run.until(lambda: (a := run.ask("warm"))[0] == 200 and a, "warm") == (200, "warm")

    run.until(lambda: run.process("warm")["state"] == "stopped", "warm is idle")
    port = str(PORTS["warm"])
    host.run("systemd-run", "--unit=thief", "python3", "-m", "http.server", "--bind", "127.0.0.1", port)
    run.until(lambda: run.fleet.ask(f"http://127.0.0.1:{port}", "/")[0] == 200, "the thief")
    assert run.ask("warm")[0] == 503
    assert f"port {port} is held by" in run.process("warm")["error"]
    host.run("systemctl", "stop", "thief")
    assert run.until(lambda: (a := run.ask("warm"))[0] == 200 and a, "warm") == (200, "warm")
    run.whole()
