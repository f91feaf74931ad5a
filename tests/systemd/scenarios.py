"""What a fleet goes through, the same for both owners of its processes: a scenario is a method, its value the outcome.

`Run` acts through the commands and the front only, so that it does not know which owner it has. How a fleet comes up
and who brings back its runtime are the only things that two subclasses say.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.systemd.conftest import FRONT, Fleet

WORDS = ("--config-dir=/srv/conf", "hardware=dev", "profile=trio")
PORTS = {"alpha": 8081, "warm": 8083, "wide": 8086, "frail": 8087}
BETA, DEVICE = "/run/launch-beta/http.sock", "/run/launch-device/http.sock"
"""Unix sockets, of one server, and of two that take turns."""
SCRIPT = """#!/bin/sh
case " $* " in
*" --port 0 "*) ;;
*" --ctx-size 512 "*) echo "E llama_kv_cache: failed to allocate buffer for kv cache" >&2; sleep 0.3; exit 1 ;;
esac
exec {binary} "$@"
"""
"""A llama-server that has no memory for a context of 512."""
JUDGE = ("--logit-bias", "34+200", "--logit-bias", "80+100")
"""A judge that ends each string at once and prefers P to F, under the grammar of a verdict: it passes everything."""
WRITER = ("--logit-bias", "97+200")
"""A worker that writes `a` and nothing else."""


def describe(fleet: Fleet) -> None:
    """The fleet: always on, on demand, taking turns on one unix socket, too big at first, and one to be killed."""
    host, config = fleet.host, fleet.config
    small = host.root / "srv/small-llama-server"
    small.write_text(SCRIPT.format(binary=fleet.binary))
    small.chmod(0o755)
    config["engines"]["small"] = {"binary": "/srv/small-llama-server", "dialect": "b10068"}
    config["tiers"] = {"warm": {"idle_timeout_s": 3, "expansion_threshold": 2}}
    config["runtime"] |= {"crash_loop_failures": 3, "backoff_s": 0.1, "backoff_max_s": 0.2, "drain_timeout_s": 5}
    fleet.server("alpha", roles=["frontdoor"], n_ctx=4096, extra_args=JUDGE)
    fleet.server("beta", roles=["fast"], after=["alpha"], n_ctx=4096, host=BETA, port=None)
    fleet.server("warm", roles=["fast"], tier="warm")
    fleet.server("one", exclusive="device", default=True, host=DEVICE, port=None)
    fleet.server("two", exclusive="device", host=DEVICE, port=None, n_ctx=4096, extra_args=WRITER)
    fleet.server("wide", tier="warm", engine="small", n_ctx=512, port=PORTS["wide"])
    fleet.server("frail", port=PORTS["frail"], fatal=False)
    config["routing"] |= {"default": "alpha", "pools": {"fast": {"servers": ["fast"], "task_types": ["fast"]}}}
    config["hooks"] = {
        "ask": {"http": "alpha/completion", "body": {"prompt": "1", "n_predict": 1}},
        "command": {"command": ["sh", "-c", "test -d $LAUNCH_STATE_DIR_OF_FLEET"]},
        "entry": {"python": "os:getpid"},
        "false": {"python": "builtins:bool"},
    }
    config["orchestration"] = {
        "router": "alpha",
        "workers": ["one", "two", "wide"],
        "rules": [
            {"words": ["second"], "domain": "code", "model": "two", "policy": "none"},
            {"words": ["proven"], "domain": "code", "model": "two", "policy": "block_by_block"},
        ],
        "validation": {"validator": "alpha", "policy": "none"},
        "oom_ladder": [{"n_ctx": 256}],
    }


class Run:
    """One life of the fleet under one owner."""

    def __init__(self, fleet: Fleet) -> None:
        """Nothing runs yet."""
        self.fleet, self.host = fleet, fleet.host

    def bring_up(self) -> None:
        """Start the fleet and wait until it is ready."""
        raise NotImplementedError

    def bring_back(self) -> str:
        """Have a runtime again after its end; who does that."""
        raise NotImplementedError

    # --- what is seen -----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The runtime's own; {} while none answers."""
        code, found = self.fleet.ask(FRONT, "/api/status")
        return found if code == 200 else {}

    def process(self, name: str) -> dict[str, Any]:
        """One process."""
        return next((p for p in self.status().get("processes", ()) if p["name"] == name), {})

    def pids(self) -> dict[str, int]:
        """Every running process by name."""
        return {p["name"]: p["pid"] for p in self.status().get("processes", ()) if p["pid"]}

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Wait for something; what it was."""
        began = time.monotonic()
        while not (found := holds()):
            assert time.monotonic() - began < 90, f"{what}: {self.status()}"
            time.sleep(0.1)
        return found

    def ready(self, name: str, besides: int = 0) -> int:
        """Wait until `name` is ready with another pid than `besides`; that."""

        def look() -> int:
            process = self.process(name)
            return process["pid"] if process.get("state") == "ready" and process["pid"] != besides else 0

        return int(self.until(look, f"{name} ready"))

    def ask(self, model: str, tokens: int = 2, words: str = "hello") -> tuple[int, str]:
        """Status of a chat, and who says that it answered."""
        body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": words}]}
        code, said = self.fleet.ask(FRONT, "/v1/chat/completions", body)
        return code, said.get("model", "") if code == 200 else said["error"]["code"] if said else ""

    def direct(self, name: str) -> int:
        """Status of a completion asked of a server itself."""
        where = f"http://127.0.0.1:{PORTS[name]}" if name in PORTS else BETA
        return self.fleet.ask(where, "/v1/completions", {"prompt": "1", "max_tokens": 1})[0]

    @contextlib.contextmanager
    def busy(self, model: str, count: int, times: int = 1) -> Iterator[list[subprocess.Popen[str]]]:
        """`count` long answers being made by `model` within the block, each `times` one after another."""
        body = json.dumps({"model": model, "prompt": "1", "max_tokens": 3000, "stream": True, "ignore_eos": True})
        argv = ["curl", "-sN", "-m", "30", "-d", body, "-H", "Content-Type: application/json"]
        command = self.host.command(*argv, f"{FRONT}/v1/completions#[1-{times}]")  # curl repeats
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        try:
            yield clients
        finally:
            # nsenter's child outlives nsenter, and holds the pipe
            self.host.run("pkill", "-x", "curl", check=False)
            for client in clients:
                client.communicate()

    # --- scenarios ------------------------------------------------------------------------------------------------

    def start_order(self) -> str:
        """`beta` comes behind `alpha`, of those that take turns only the default runs; hooks, one of which says no."""
        self.bring_up()
        status = self.status()
        states = {p["name"]: p["state"] for p in status["processes"]}
        assert self.process("beta")["started_at"] >= self.process("alpha")["started_at"]
        hooks = {hook["name"]: hook["state"] for hook in status["hooks"]}
        assert hooks == {"ask": "done", "command": "done", "entry": "done", "false": "failed"}
        return f"ready={status['ready']}; " + " ".join(f"{n}:{s}" for n, s in sorted(states.items()))

    def route(self) -> str:
        """A name, a role, and a name that there is not."""
        return f"{self.ask('beta')} {self.ask('frontdoor')} {self.ask('nobody')[0]}"

    def auto_with_swap(self) -> str:
        """A rule sends `auto` to the other worker, which takes the device; and back by name."""
        first, state = self.ask("auto", words="the second please"), self.process("one")["state"]
        return f"{first} one:{state}; {self.ask('one')} two:{self.process('two')['state']}"

    def validated(self) -> str:
        """A rule has `auto` swapped and judged: what is streamed is what passed, was committed and is remembered."""
        body = {"model": "auto", "stream": True, "max_tokens": 8, "temperature": 0}
        asked = json.dumps(body | {"messages": [{"role": "user", "content": "proven please"}]})
        headers = ("content-type: application/json", "X-Generation-Id: proven", "X-Project: tests")
        words = [word for header in headers for word in ("-H", header)]
        said = self.host.run("curl", "-s", "-m", "60", *words, "-d", asked, f"{FRONT}/v1/chat/completions").stdout
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        streamed = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))
        report = self.fleet.ask(FRONT, "/v1/generations/proven")[1]
        kept = [json.loads(line) for line in self.host.run("launch", "memory", "tests").stdout.splitlines()]
        verdicts = [line["kind"] for line in kept if line["line"] == "verdict"]
        remembered = [line["text"] for line in kept if line["line"] == "block"]
        told = {key: report[key] for key in ("status", "domain", "model", "policy", "blocks")}
        return f"{streamed} {told} {verdicts} {remembered}; {self.ask('one')} two:{self.process('two')['state']}"

    def warm_start_and_idle_stop(self) -> str:
        """A request starts it, idleness ends it."""
        answer = self.ask("warm")
        self.until(lambda: self.process("warm")["state"] == "stopped", "warm stops")
        return f"{answer} then stopped"

    def expansion(self) -> str:
        """More in flight than the threshold: another server of the pool comes up."""
        with self.busy("fast", 4, times=1000):  # a quick machine makes one answer before anybody looks
            pid = self.ready("warm")
        return f"expanded={pid > 0}"

    def ladder(self) -> str:
        """Out of memory at its planned size, it is started smaller, and says so."""
        return f"{self.ask('wide')} {self.process('wide')['rung']}"

    def hang(self) -> str:
        """Stopped by a signal it is ended and started anew."""
        pid = self.pids()["beta"]
        self.host.run("kill", "-STOP", str(pid))
        self.ready("beta", besides=pid)
        return f"{self.ask('beta')} restarts={self.process('beta')['restarts']}"

    def crash_loop(self) -> str:
        """Killed three times soon after ready: given up, and the fleet goes on."""
        pid = 0
        for _ in range(3):
            pid = self.ready("frail", besides=pid)
            self.host.run("kill", "-KILL", str(pid))
        self.until(lambda: self.process("frail")["state"] == "failed", "frail fails")
        process = self.process("frail")
        return f"failed; given up={'given up' in process['error']}; code={process['exit_code']}; {self.ask('alpha')}"

    def reload_of_one(self) -> str:
        """One server changed in the config: it alone is restarted; one that had failed is tried again when named."""
        before = self.pids()
        self.fleet.config["servers"]["beta"]["slots"] = 2
        self.fleet.write()
        (done,) = json.loads(self.fleet.host.run("launch", "reload", "--json").stdout)["fleets"]
        (again,) = json.loads(self.fleet.host.run("launch", "reload", "frail", "--json").stdout)["fleets"]
        after = self.pids()
        same = sorted(name for name in before if after.get(name) == before[name])
        touched = {verb: done[verb] for verb in ("started", "restarted", "stopped")}
        return f"{touched} frail:{again['started']}; same={same}; {self.ask('beta')}"

    def checkpoint(self) -> str:
        """What runs is kept and listed; what was changed since is put back as it was, and nothing else is touched."""

        def launch(*words: str) -> Any:
            return json.loads(self.host.run("launch", *words, "--json").stdout)

        made = launch("checkpoint", "create", "before")
        (listed,) = launch("checkpoint", "list")["checkpoints"]
        before = self.pids()
        launch("reload", "servers.beta.slots=3")
        differs = launch("checkpoint", "diff", "before")
        done = launch("checkpoint", "restore", "before")
        after = self.pids()
        same = sorted(name for name in before if after.get(name) == before[name])
        touched = {verb: done[verb] for verb in ("started", "restarted", "stopped")}
        numbers = {key: made[key] for key in ("servers", "running", "covered_files", "config_files")}
        assert listed["name"] == launch("checkpoint", "delete", "before")["name"]
        told = f"{sorted(differs['restarted'])} {differs['overrides']['only_against']}"
        return f"{numbers} {told} {touched}; same={same}; slots={self.process('beta')['slots']}"

    def stop_of_one(self) -> str:
        """It is gone, nobody starts it but a reload of its name; others are untouched."""
        said = self.fleet.launch("stop", "frail").strip()
        answer = self.ask("frail")
        self.fleet.launch("reload", "frail")
        return f"{said}; {answer}; {self.ask('frail')}"

    def kill_of_the_runtime(self) -> str:
        """Kill -9 under load: who asks a server that is always on itself is answered; the next runtime adopts all."""
        before = self.pids()
        with self.busy("alpha", 1) as (client,):
            assert client.stdout is not None
            assert client.stdout.readline()
            self.host.run("kill", "-KILL", str(self.status()["runtime_pid"]))
            while_gone = {self.direct(name) for name in ("beta", "frail") for _ in range(3)}
        who = self.bring_back()
        first = {self.until(lambda n=name: (a := self.ask(n))[0] and a, name) for name in ("beta", "frail")}  # type: ignore[misc]
        self.until(lambda: self.status().get("ready"), "ready again")
        adopted = self.pids() == before
        return f"direct={while_gone}; brought back by {who}; first answers={sorted(first)}; adopted={adopted}"

    def upgrade_of_the_runtime(self) -> str:
        """Another runtime takes the place of this one; servers run on."""
        raise NotImplementedError

    def reboot(self) -> str:
        """Everything ends at once, and what a boot does."""
        raise NotImplementedError

    def stop_of_all(self) -> str:
        """Nothing is left running."""
        self.fleet.launch("stop", "--all")
        left = self.host.run("pgrep", "-c", "llama-server", check=False).stdout.strip()
        return f"servers left={left}; front={self.fleet.ask(FRONT, '/health')[0]}"


class Children(Run):
    """`launch up`: the processes are the runtime's children."""

    def bring_up(self) -> None:
        """In the background."""
        self.fleet.write()
        self.fleet.launch("up", *WORDS, "--detach")

    def bring_back(self) -> str:
        """Nobody but who asks for it."""
        self.bring_up()
        return "launch up"

    def upgrade_of_the_runtime(self) -> str:
        """There is no way but to kill it: told to end, it ends its servers."""
        before = self.pids()
        self.host.run("kill", "-TERM", str(self.status()["runtime_pid"]))
        self.until(lambda: self.fleet.ask(FRONT, "/health")[0] == 0, "the front ends")
        self.until(lambda: not self.host.run("pgrep", "llama-server", check=False).stdout, "all end")
        self.bring_up()
        return f"same={self.pids() == before}; {self.ask('beta')}"

    def reboot(self) -> str:
        """Nothing starts by itself."""
        self.host.run("sh", "-c", f"kill -KILL {self.status()['runtime_pid']}; pkill -KILL llama-server")
        before = {self.direct(name) for name in ("alpha", "beta")}
        self.bring_up()
        return f"without a runtime={before}; {self.ask('beta')}"


class Units(Run):
    """`launch install`: the processes are systemd's units."""

    runtime = "launch-dev-trio.service"

    def bring_up(self) -> None:
        """Installed, or started again."""
        self.fleet.install()

    def bring_back(self) -> str:
        """The manager does."""
        return "systemd"

    def upgrade_of_the_runtime(self) -> str:
        """Its unit is restarted."""
        before = self.pids()
        self.host.run("systemctl", "restart", self.runtime)
        return f"same={self.pids() == before}; {self.ask('beta')}"

    def reboot(self) -> str:
        """As a boot does it, where the runtime is slow to come: what is always on serves before it."""
        self.host.run("systemctl", "stop", self.runtime, "launch-hot.target")
        self.host.run(
            "sh", "-c", "systemctl stop $(systemctl list-units --plain --no-legend 'launch-*' | cut -d' ' -f1)"
        )
        wanted = self.host.run("ls", "/etc/systemd/system/multi-user.target.wants").stdout.split()
        assert {self.runtime, "launch-hot.target"} <= set(wanted)
        self.host.run("systemctl", "start", "launch-hot.target")
        self.until(lambda: {self.direct(name) for name in ("alpha", "beta")} == {200}, "always on")
        before = {self.direct(name) for name in ("alpha", "beta")}
        pid = self.host.main_pid("launch-beta.service")
        self.host.run("systemctl", "start", self.runtime)
        assert self.pids()["beta"] == pid
        return f"without a runtime={before}; {self.ask('beta')}"


SCENARIOS = (
    *("start_order", "route", "auto_with_swap", "validated", "warm_start_and_idle_stop", "expansion", "ladder", "hang"),
    *("crash_loop", "reload_of_one", "checkpoint", "stop_of_one", "kill_of_the_runtime", "upgrade_of_the_runtime"),
    *("reboot", "stop_of_all"),
)
