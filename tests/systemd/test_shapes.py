"""Shapes of units beyond the plain server, each under a real systemd: watchdog, sockets, exclusive swaps, services."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.systemd.conftest import FRONT, Fleet

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(120)]

HOSTILE = ('a b"c', "50%n $HOME ${X} $$", "line\nbreak\ttab", "naïve — 漢字 🦙", '{"k": ["\\\\", \'x\']}', "; # \\")


def test_a_stopped_server_is_restarted(fleet: Fleet) -> None:
    """`watchdog: true`: ready by notification, and a SIGSTOPped server is killed and serves again."""
    fleet.config["deploy"]["watchdog"] = True
    fleet.server("alpha")
    fleet.install()
    unit = "launch-alpha.service"
    host = fleet.host
    assert host.show(unit, "Type")["Type"] == "notify"
    pid = host.main_pid(unit)
    assert "llama-server" in host.run("cat", f"/proc/{pid}/cmdline").stdout.split("\0")[0]
    host.run("kill", "-STOP", str(pid))
    began = time.monotonic()
    while host.main_pid(unit) in (0, pid):
        assert time.monotonic() - began < 40
        time.sleep(0.2)
    host.wait_state(unit, "active")
    assert "watchdog" in host.journal(unit).lower()
    assert fleet.chat("alpha") == 200


def test_a_request_starts_a_warm_server(fleet: Fleet) -> None:
    """WARM without our runtime: six requests at once start it through its socket, all are answered; idle ends it."""
    fleet.config["tiers"] = {"warm": {"idle_timeout_s": 2}}
    fleet.server("alpha")
    fleet.server("beta", tier="warm", slots=2)
    fleet.install()
    host = fleet.host
    units = ("launch-beta.service", "launch-beta-proxy.service")
    assert host.show("launch-beta.socket", "ActiveState")["ActiveState"] == "active"
    assert {host.show(u, "ActiveState")["ActiveState"] for u in units} == {"inactive"}
    body = json.dumps({"model": "beta", "prompt": "1", "max_tokens": 2})
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "30", "-d", body]
    argv += ["-H", "Content-Type: application/json", f"{FRONT}/v1/completions"]
    asking = [subprocess.Popen(host.command(*argv), stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert [process.communicate(timeout=60)[0] for process in asking] == ["200"] * 6
    assert {host.show(u, "ActiveState")["ActiveState"] for u in units} == {"active"}
    for unit in units:
        host.wait_state(unit, "inactive", 15)
    assert fleet.chat("beta") == 200


@pytest.mark.slow
def test_a_warm_server_that_cannot_load(fleet: Fleet) -> None:
    """Each request gets a typed error; the socket that gives up is opened again, and serves once the model is whole."""
    fleet.server("alpha", tier="warm")
    fleet.install()
    host = fleet.host
    pause = host.root / "etc/systemd/system/launch-revive@.service.d"
    pause.mkdir()
    (pause / "short.conf").write_text(
        "[Service]\nExecStart=\nExecStart=/bin/sh -c 'sleep 1; systemctl reset-failed %i; systemctl start %i'\n"
    )
    host.run("systemctl", "daemon-reload")
    model, sound = host.root / "srv/models/tiny.gguf", host.root / "srv/models/sound.gguf"
    model.rename(sound)
    model.write_bytes(sound.read_bytes()[:-4096])
    began = time.monotonic()
    assert fleet.chat("alpha") in (500, 502, 503, 504)
    while host.show("launch-alpha.socket", "ActiveState")["ActiveState"] != "failed":
        host.run("curl", "-s", "-m", "1", "http://127.0.0.1:8081/health", check=False)
        assert time.monotonic() - began < 60
    host.wait_state("launch-alpha.socket", "active")
    host.run("systemctl", "reset-failed", "launch-alpha.service", check=False)
    sound.rename(model)
    while fleet.chat("alpha") != 200:
        assert time.monotonic() - began < 90
        time.sleep(0.5)


def test_a_swap_waits_for_a_stream(fleet: Fleet) -> None:
    """Two exclusive servers: starting one drains the other; a stream that runs is answered to its end."""
    fleet.config["runtime"]["drain_timeout_s"] = 20
    fleet.server("alpha", exclusive="one", default=True, n_ctx=4096)
    fleet.server("beta", exclusive="one", port=8081)
    fleet.install()
    host = fleet.host
    body = json.dumps({"model": "alpha", "prompt": "1", "max_tokens": 600, "stream": True, "ignore_eos": True})
    argv = ["curl", "-sN", "-m", "60", "-d", body, "-H", "Content-Type: application/json"]
    with subprocess.Popen(
        host.command(*argv, "http://127.0.0.1:8081/v1/completions"), stdout=subprocess.PIPE, text=True
    ) as stream:
        assert stream.stdout is not None
        first = stream.stdout.readline()
        assert first.startswith("data: ")
        host.run("systemctl", "start", "launch-beta.service")
        rest = stream.stdout.read()
    assert "[DONE]" in rest
    assert '"finish_reason":"length"' in rest
    assert host.show("launch-alpha.service", "ActiveState")["ActiveState"] == "inactive"
    assert fleet.chat("beta") == 200


def test_hostile_words_arrive(fleet: Fleet) -> None:
    """Arguments, variables and a command's words reach the processes as written; the front's keys may be root's."""
    script = fleet.host.root / "srv/service.py"
    script.write_text(
        "import http.server, json, os, sys\n"
        "answer = json.dumps([sys.argv[2:], os.environ['X']]).encode()\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(answer)\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    written = [text.replace("${", "\\${") for text in HOSTILE]  # OmegaConf's escape
    keys = fleet.host.root / "etc/launch-keys"
    keys.write_text("a-long-enough-key-0123456789\n")
    keys.chmod(0o600)
    fleet.config["runtime"]["front"]["api_key_file"] = "/etc/launch-keys"
    fleet.server("alpha", extra_args=[w for text in written for w in ("--reverse-prompt", text)], env={"X": HOSTILE[0]})
    fleet.config["services"] = {
        "echo": {
            "command": ["/usr/bin/env", "python3", "/srv/service.py", "9009", *written],
            "port": 9009,
            "env": {"X": HOSTILE[2]},
        }
    }
    fleet.install()
    host = fleet.host
    pid = host.main_pid("launch-alpha.service")
    argv = (host.root / f"proc/{pid}/cmdline").read_bytes().decode().split("\0")
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--reverse-prompt"] == list(HOSTILE)
    assert f"X={HOSTILE[0]}" in (host.root / f"proc/{pid}/environ").read_bytes().decode().split("\0")
    assert fleet.chat("alpha") == 401
    given = host.run("curl", "-s", "-H", "Authorization: Bearer a-long-enough-key-0123456789", f"{FRONT}/v1/models")
    assert '"alpha"' in given.stdout
    assert fleet.ask("http://127.0.0.1:9009", "/health")[1] == [list(HOSTILE), HOSTILE[2]]
